"""Every executor gives the bytes of the serial one, after 1, 2 and 7 steps of one run."""

from __future__ import annotations

from typing import Any

import dask
import optree
import pytest
from distributed import Client

from flowml.run import Graph
from flowml.runtime.outcome import Outcome
from tests.conformance.catalogue import CATALOGUE

STEPS = (1, 2, 7)


def recorded(graph: Graph, **options: Any) -> Outcome:
    """Run a graph and keep its tables after each of STEPS."""
    run = graph.run(steps=STEPS[-1], snapshots=STEPS, **options)
    return run.outcome


def assert_same_bytes(truth: Outcome, found: Outcome) -> None:
    assert found.steps == truth.steps
    assert sorted(found.snapshots) == sorted(truth.snapshots)
    for step in truth.snapshots:
        for name, instances in truth.snapshots[step].items():
            for number, value in enumerate(instances):
                other = found.snapshots[step][name][number]
                leaves, others = optree.tree_leaves(value), optree.tree_leaves(other)
                for a, b in zip(leaves, others, strict=True):
                    assert a.dtype == b.dtype
                    assert a.tobytes() == b.tobytes(), f"{name}[{number}] after step {step}"


def groups_of(replicas: int) -> Any:
    return 2 if replicas > 1 else 1


@pytest.mark.parametrize("replicas", [1, 2, 5])
@pytest.mark.parametrize("name", CATALOGUE)
def test_resident_is_serial(name: str, replicas: int, client: Client) -> None:
    graph = CATALOGUE[name]()
    truth = recorded(graph, replicas=replicas, groups=groups_of(replicas), executor="serial")
    found = recorded(graph, replicas=replicas, groups=groups_of(replicas))
    assert_same_bytes(truth, found)


@pytest.mark.parametrize("replicas", [2, 5])
@pytest.mark.parametrize("name", CATALOGUE)
def test_resident_where_owners_compute_is_serial(name: str, replicas: int, client: Client) -> None:
    graph = CATALOGUE[name]()
    truth = recorded(graph, replicas=replicas, groups=groups_of(replicas), executor="serial")
    with dask.config.set({"flowml.own-copies": "0 B"}):
        found = recorded(graph, replicas=replicas, groups=groups_of(replicas))
    assert_same_bytes(truth, found)


@pytest.mark.parametrize("replicas", [2, 5])
@pytest.mark.parametrize("name", CATALOGUE)
def test_resident_between_hosts_is_serial(name: str, replicas: int, client: Client) -> None:
    graph = CATALOGUE[name]()
    truth = recorded(graph, replicas=replicas, groups=groups_of(replicas), executor="serial")
    with dask.config.set({"flowml.transport": "rpc"}):
        found = recorded(graph, replicas=replicas, groups=groups_of(replicas))
    assert_same_bytes(truth, found)


@pytest.mark.parametrize("replicas", [2, 3])
@pytest.mark.parametrize("name", CATALOGUE)
def test_tasks_are_serial(name: str, replicas: int, client: Client) -> None:
    graph = CATALOGUE[name]()
    truth = recorded(graph, replicas=replicas, groups=groups_of(replicas), executor="serial")
    found = recorded(graph, replicas=replicas, groups=groups_of(replicas), executor="tasks")
    assert_same_bytes(truth, found)
