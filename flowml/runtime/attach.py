"""Which cluster a run uses: the one given, the current one, or an embedded one on this machine."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import resource_tracker
from pathlib import Path
from time import monotonic
from typing import Any

import dask
from distributed import Client, LocalCluster, get_client, secede
from distributed.diagnostics.plugin import WorkerPlugin

from flowml.errors import PlanError, WorkerLostError
from flowml.interrupts import interrupts_blocked
from flowml.mainguard import refuse_inherited_start
from flowml.runtime._dask import run_within
from flowml.runtime.scheduler_plugin import FlowScheduler

CONNECT_SECONDS = 10.0
WORKERS_SECONDS = 60.0
EMBEDDED = {
    "distributed.logging": {"distributed": "error"},
    # Each process of Dask notes every 20 ms that its event loop is awake. All of them, scheduler
    # and nannies included, share the cores with the step loops here.
    "distributed.admin.tick.interval": "500ms",
    # They ask for processor, network and disk every 500 ms, a millisecond each time; workers and
    # nannies for memory every 100 ms.
    "distributed.admin.system-monitor.interval": "2s",
    "distributed.worker.memory.monitor-interval": "500ms",
}
"""Configuration of a cluster that flowml starts."""
DASHBOARD_PORT = 8787


@dataclass(frozen=True)
class Worker:
    """A worker that a run may use."""

    address: str
    host: str
    threads: int
    memory_limit: int
    """Bytes; 0: none."""


@dataclass(frozen=True)
class Attached:
    """A client, and whether its cluster is our own."""

    client: Client
    embedded: bool

    def workers(self) -> tuple[Worker, ...]:
        """Return the running workers, those of one host side by side."""
        found = self.client.scheduler_info(n_workers=-1)["workers"]
        return tuple(
            sorted(
                (
                    Worker(address, w["host"], w["nthreads"], int(w["memory_limit"] or 0))
                    for address, w in found.items()
                    if w.get("status", "running") == "running"
                ),
                key=lambda w: (w.host, str(found[w.address].get("name")).zfill(8), w.address),
            )
        )


class SharedTerminal(WorkerPlugin):
    """Leave the terminal to the driver: workers of an embedded cluster are in the same one."""

    name = "flowml-shared-terminal"

    def setup(self, worker: Any) -> None:
        """Ignore Ctrl-C in a process of one's own, and do not log tasks that failed.

        Notes
        -----
        The error of the run says what failed; Dask would add the key of its task and the traceback
        of our inside, once a worker.
        """
        logging.getLogger("distributed.worker").setLevel(logging.CRITICAL)
        with suppress(ValueError):  # not the main thread: the cluster lives in the driver
            signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def attached(cluster: Any, replicas: int | None) -> Iterator[Attached]:
    """Yield a client with flowml's plugins installed; close what was started here.

    Parameters
    ----------
    cluster : None, Client, Cluster, address or path of a scheduler file
    replicas : int or None
        How many processes an embedded cluster gets; as many as cores when left out.

    Raises
    ------
    WorkerLostError
        If nobody answers at the address.
    PlanError
        If there is no worker, or versions differ.
    """
    found = _given(cluster)
    if found is not None:
        client, ours = found
        try:
            _prepare(client)
            yield Attached(client, False)
        finally:
            if ours:
                client.close()
        return
    refuse_inherited_start()
    with (
        embedded_cluster(replicas or os.cpu_count() or 1) as local,
        Client(local, set_as_default=False) as client,
    ):
        client.register_plugin(SharedTerminal())
        _prepare(client)
        yield Attached(client, True)


def leave_pool() -> None:
    """Give the slot of the Dask task that calls this back, if it is one: it is going to wait.

    Notes
    -----
    The run needs a slot on each worker, this one's included. As with Dask's ``secede``, the task
    does not come back to the pool.
    """
    with suppress(ValueError, KeyError, AttributeError):  # not a task, or one that left before
        secede()


def _given(cluster: Any) -> tuple[Client, bool] | None:
    if cluster is None:
        try:
            current = get_client(timeout="2s")
        except ValueError:
            return None
        return current, False
    if isinstance(cluster, Client):
        return cluster, False
    if isinstance(cluster, str | Path):
        return _connect(str(cluster)), True
    return Client(cluster, set_as_default=False), True


def _connect(address: str) -> Client:
    options: dict[str, Any] = {"address": address}
    if "://" not in address and Path(address).suffix == ".json":
        if not Path(address).exists():
            raise WorkerLostError(
                "cluster",
                "the scheduler file must exist",
                repr(address),
                "Is the cluster running?",
                kind="scheduler",
                worker=address,
            )
        options = {"scheduler_file": address}
    began = monotonic()
    try:
        return Client(**options, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        cause = error.__cause__ or error
        raise WorkerLostError(
            f"cluster {address}",
            "a scheduler must answer there",
            f"{type(cause).__name__} after {monotonic() - began:.0f} s",
            "Is the address right, and `dask scheduler` running?",
            kind="scheduler",
            worker=address,
        ) from error


@contextmanager
def embedded_cluster(processes: int) -> Iterator[LocalCluster]:
    """Yield a cluster of single-threaded processes that listens on 127.0.0.1 only."""
    resource_tracker.ensure_running()  # whichever thread starts it has its signals unblocked
    with dask.config.set(EMBEDDED), interrupts_blocked():
        cluster = LocalCluster(
            n_workers=processes,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address=f"127.0.0.1:{_dashboard_port()}",
            worker_dashboard_address="127.0.0.1:0",
            silence_logs=logging.ERROR,
        )
    # Closed by us alone: when a program leaves in the middle of that, Dask's function for the exit
    # would close it once more beside us, and fail.
    cluster.shutdown_on_close = False
    with cluster:
        yield cluster


def _dashboard_port() -> int:
    """Return Dask's usual port if it is free, else 0: any; Dask would warn otherwise."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", DASHBOARD_PORT))
        except OSError:
            return 0
    return DASHBOARD_PORT


def _prepare(client: Client) -> None:
    """Wait for a worker, compare versions, install the plugins."""
    began = monotonic()
    while not client.nthreads():
        if monotonic() - began > WORKERS_SECONDS:
            raise PlanError(
                "cluster",
                "needs at least one worker",
                f"none after {WORKERS_SECONDS:.0f} s",
                "Start one with `dask worker`.",
            )
        with suppress(TimeoutError):
            client.wait_for_workers(1, timeout=2)
    _check_versions(client)
    client.register_plugin(FlowScheduler())


def _check_versions(client: Client) -> None:
    ours = version("flowml")
    workers = list(client.nthreads())
    found = run_within(client, _flowml_version, workers=workers, seconds=CONNECT_SECONDS)
    for address in workers:
        if address not in found:
            if address not in client.nthreads():
                continue  # it left just now, and no run will use it
            raise WorkerLostError(
                f"worker {address}",
                f"must answer within {CONNECT_SECONDS:g} s",
                "nothing",
                "See whether it is stopped or cut off.",
                kind="worker",
                worker=address,
                operator="",
            )
        theirs = found[address]
        if isinstance(theirs, BaseException):
            raise PlanError(
                f"worker {address}",
                "must have flowml installed",
                f"{type(theirs).__name__}: {theirs}",
                "Install it on all workers.",
            )
        if theirs != ours:
            raise PlanError(
                f"worker {address}",
                f"must run flowml {ours} as the client does",
                theirs,
                "Upgrade the older one.",
            )


def _flowml_version() -> str:
    return version("flowml")
