"""The same bytes on every kind of cluster: TLS, one process, one worker with threads, two runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask
import pytest
from distributed import Client, LocalCluster
from distributed.security import Security

from tests.conformance.catalogue import CATALOGUE
from tests.conformance.test_conformance import assert_same_bytes, groups_of, recorded

SOME = ("momentum", "clipped", "pushes_to_a_group", "slow_pull", "hierarchical", "kmeans")


@contextmanager
def running(**options: Any) -> Iterator[Client]:
    settings: dict[str, Any] = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"} | options
    with LocalCluster(**settings) as cluster, Client(cluster) as client:
        yield client


@pytest.fixture(scope="module")
def one_process() -> Iterator[Client]:
    with running(n_workers=2, threads_per_worker=2, processes=False, host=None) as client:
        yield client


@pytest.fixture(scope="module")
def one_worker() -> Iterator[Client]:
    with running(n_workers=1, threads_per_worker=4) as client:
        yield client


@pytest.fixture(scope="module")
def encrypted() -> Iterator[Client]:
    security = Security.temporary()
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            host="tls://127.0.0.1",
            dashboard_address="127.0.0.1:0",
            security=security,
        ) as cluster,
        Client(cluster) as client,
    ):
        assert cluster.scheduler_address.startswith("tls://")
        yield client


def compare(name: str, replicas: int, client: Client, **options: Any) -> None:
    graph, groups = CATALOGUE[name](), groups_of(replicas)
    truth = recorded(graph, replicas=replicas, groups=groups, executor="serial")
    found = recorded(graph, replicas=replicas, groups=groups, cluster=client, **options)
    assert_same_bytes(truth, found)


@pytest.mark.parametrize("executor", ["resident", "tasks"])
@pytest.mark.parametrize("name", SOME)
def test_workers_that_are_threads_of_one_process(
    name: str, executor: str, one_process: Client
) -> None:
    compare(name, 4, one_process, executor=executor)


@pytest.mark.parametrize("name", SOME)
def test_one_worker_with_four_threads(name: str, one_worker: Client) -> None:
    compare(name, 4, one_worker)


@pytest.mark.parametrize("executor", ["resident", "tasks"])
@pytest.mark.parametrize("name", SOME[:3])
def test_an_encrypted_cluster(name: str, executor: str, encrypted: Client) -> None:
    compare(name, 2, encrypted, executor=executor)


def test_an_encrypted_cluster_between_hosts(encrypted: Client) -> None:
    with dask.config.set({"flowml.transport": "rpc"}):
        compare("hierarchical", 4, encrypted)


def test_two_runs_at_once(one_worker: Client) -> None:
    graphs = [CATALOGUE["momentum"](), CATALOGUE["adam"]()]
    truths = [recorded(g, replicas=2, executor="serial") for g in graphs]
    runs = [g.start(steps=7, replicas=2, cluster=one_worker, snapshots=(1, 2, 7)) for g in graphs]
    for truth, run in zip(truths, runs, strict=True):
        assert_same_bytes(truth, run.wait(120).outcome)
