"""A cluster that is made to fail: operators with a trap in them, and what must be left."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import dask
import numpy as np
import optree
import pytest
from distributed import Client, LocalCluster

import flowml as fl
from flowml.data.rows import Rows
from flowml.errors import FlowmlError

FEATURES, CLASSES, ROWS, BATCH = 12, 3, 83, 8
VERDICT_SECONDS = 5.0
"""What must be known of a fault is known this long after it."""
CLEAN_SECONDS = 10.0
WAIT_SECONDS = 60.0
"""No test waits longer for anything: a hang is a failure."""
# Pools that Dask and asyncio start at first use and keep for the life of a process.
POOLS = ("Dask-", "asyncio_")
TRANSPORTS = ("auto", "rpc")


class Mishap(Exception):
    """What an operator of a user may raise."""


@dataclass(frozen=True)
class Trap:
    """Something that happens once: in one replica at one step, never in the driver.

    Attributes
    ----------
    kind : str
        "kill", "_exit", "exit", "raise", "sleep" or "nan".
    log : str
        File that is given the time at which it happened.
    """

    kind: str = ""
    replica: int = 1
    step: int = 5
    seconds: float = 0.0
    log: str = ""
    driver: int = field(default_factory=os.getpid)

    def spring(self, replica: int, step: int) -> None:
        if (
            self.kind
            and (replica, step) == (self.replica, self.step)
            and os.getpid() != self.driver
        ):
            self.happen()

    def happen(self) -> None:
        if self.log:
            Path(self.log).write_text(repr(time.time()))
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.kind == "_exit":
            os._exit(3)
        elif self.kind == "exit":
            sys.exit(3)
        elif self.kind == "raise":
            raise Mishap("the milk is spilt")
        elif self.kind == "sleep":
            time.sleep(self.seconds)


@dataclass(frozen=True)
class TrappedModel:
    """A model whose gradient springs a trap."""

    model: Any
    trap: Trap

    def value_and_grad(self, params: Any, batch: Any, place: Any) -> Any:
        self.trap.spring(place.replica, place.clock)
        loss, gradient = self.model.value_and_grad(params, batch)
        if self.trap.kind == "nan" and (place.replica, place.clock) == (
            self.trap.replica,
            self.trap.step,
        ):
            loss = float("nan")
        return loss, gradient


def examples(rows: int = ROWS) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(rows, FEATURES)).astype("float32")
    return X, rng.integers(0, CLASSES, rows)


def training(
    trap: Trap | None = None,
    *,
    rule: Any = None,
    source: Any = None,
    between: Callable[..., Any] | None = None,
    name: str = "training",
) -> fl.Graph:
    """Return a graph with the operators batch, gradient, (between,) mean and update."""
    model = fl.models.softmax(FEATURES, CLASSES)
    w = fl.table("w", model.init(seed=0))
    here = fl.here()
    batch = fl.load(examples() if source is None else source, batch_size=BATCH, name="batch")
    grads = fl.gradient(TrappedModel(model, trap or Trap()), w, batch, here, name="gradient")
    if between is not None:
        grads = fl.map(between, grads, here, name="between")
    mean = fl.aggregate("mean", grads, name="mean")
    update = fl.update(w, mean, rule or fl.sgd(0.1, momentum=0.9), name="update")
    return fl.Graph(update, name=name)


def same_bytes(a: Any, b: Any) -> bool:
    leaves, others = optree.tree_leaves(a), optree.tree_leaves(b)
    return len(leaves) == len(others) and all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(leaves, others, strict=True)
    )


def assert_serial(run: Any, healthy: fl.Graph, replicas: int) -> None:
    """Check that a run's table is that of a serial run of as many steps."""
    if run.steps == 0:
        expected = fl.models.softmax(FEATURES, CLASSES).init(seed=0)
    else:
        expected = healthy.run(steps=run.steps, replicas=replicas, executor="serial").tables["w"]
    assert same_bytes(run.tables["w"], expected), f"not the table after {run.steps} steps"
    assert all(np.isfinite(leaf).all() for leaf in optree.tree_leaves(run.tables["w"]))


def assert_readable(error: FlowmlError) -> None:
    """Check that a message has no Dask key, no hash and no word of Dask's inside."""
    text = str(error)
    for word in ("LLGExpr", "flowml:", "superstep", "Future", "CommClosed", "<Task", "<Worker"):
        assert word not in text, text
    assert re.search(r"[0-9a-f]{8,}", text) is None, text


def failure(run: Any, trap: Trap | None = None) -> FlowmlError:
    """Wait for a run that must fail; return its error."""
    with pytest.raises(FlowmlError) as caught:
        run.wait(WAIT_SECONDS)
    error = caught.value
    if trap is not None:
        late = time.time() - float(Path(trap.log).read_text())
        assert late < VERDICT_SECONDS, f"known only after {late:.1f} s"
    assert error.run is run
    assert run.status == "failed"
    assert_readable(error)
    return error


def logged(trap: Trap, folder: Path) -> Trap:
    """Return a trap that notes when it was sprung."""
    return replace(trap, log=str(folder / "sprung"))


# --- a cluster, and what is open in it --------------------------------------------------------


def _inside(dask_worker: Any) -> dict[str, Any]:
    plugin = dask_worker.plugins.get("flowml")
    kept = (
        {}
        if plugin is None
        else {
            "gangs": len(plugin.gangs),
            "parts": len(plugin._parts),
            "runs": len(plugin.settings.runs),
            "listeners": len(plugin._listeners),
            "couriers": len(plugin._couriers),
        }
    )
    return {"pid": os.getpid(), **open_here(), **kept}


def pooled() -> set[str]:
    """Return the established TCP connections of this machine.

    They are Dask's alone, who keeps them in pools; flowml's own sockets are unix sockets.
    """
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "01":
                found.add(f"socket:[{words[9]}]")
    return found


def open_here() -> dict[str, Any]:
    """Return the file descriptors and the threads of this process, pools of Dask left out."""
    targets = []
    connections = pooled()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(descriptor)
        except FileNotFoundError:  # the one that lists the folder
            continue
        if target not in connections:
            targets.append(target)
    threads = [t.name for t in threading.enumerate() if not any(p in t.name for p in POOLS)]
    return {"files": targets, "threads": threads}


@dataclass
class Bed:
    """A cluster with a client, and the state to which it must come back."""

    cluster: LocalCluster
    client: Client
    driver: dict[str, Any] = field(default_factory=dict)
    workers: dict[str, dict[str, Any]] = field(default_factory=dict)

    def inside(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = self.client.run(_inside)
        return found

    def pids(self) -> dict[str, int]:
        """Return the process of each worker, those of lower replicas first."""
        pids: dict[str, int] = self.client.run(os.getpid)
        info = self.client.scheduler_info(n_workers=-1)["workers"]
        order = sorted(pids, key=lambda a: (str(info[a]["name"]).zfill(8), a))
        return {address: pids[address] for address in order}

    def address_of(self, replica: int) -> str:
        return list(self.pids())[replica]

    def ready(self) -> None:
        """Wait for two workers, run once over each transport, and remember what is open."""
        self.client.wait_for_workers(2, timeout=WAIT_SECONDS)
        eventually(lambda: len(self.client.run(os.getpid)) == 2)
        for transport in TRANSPORTS:
            with dask.config.set({"flowml.transport": transport}):
                assert training().start(steps=3, replicas=2).wait(WAIT_SECONDS).status == "done"
        eventually(lambda: not self.kept())
        self.workers, self.driver = self.inside(), open_here()

    def kept(self) -> list[str]:
        """Return what flowml still holds, on workers and scheduler."""
        found = [
            f"{name} on {address}"
            for address, state in self.inside().items()
            for name in ("gangs", "parts", "runs", "listeners", "couriers")
            if state.get(name)
        ]
        plugin = self.cluster.scheduler.plugins["flowml"]
        admission = plugin.admission
        found += [name for name in ("members", "lost") if getattr(plugin, name)]
        found += [name for name in ("_held", "_waiting") if getattr(admission, name)]
        return found

    def left_behind(self) -> list[str]:
        """Return what is open or held that was not before."""
        found = self.kept()
        for address, now in self.inside().items():
            before = self.workers.get(address)
            if before is not None:
                found += [
                    f"{name} of {address}: {what}"
                    for name in ("files", "threads")
                    for what in more(before[name], now[name])
                ]
        now = open_here()
        return found + [
            f"{name} of the driver: {what}"
            for name in ("files", "threads")
            for what in more(self.driver[name], now[name])
        ]

    def assert_clean(self) -> None:
        """Check that nothing is left behind within ten seconds."""
        end = time.monotonic() + CLEAN_SECONDS
        left = self.left_behind()
        while left and time.monotonic() < end:
            threading.Event().wait(0.1)
            left = self.left_behind()
        assert not left, left

    def assert_usable(self) -> None:
        """Check that the cluster runs another graph at once, and correctly."""
        other = training(name="another")
        run = other.start(steps=4, replicas=2).wait(WAIT_SECONDS)
        assert_serial(run, other, 2)


def more(before: list[str], after: list[str]) -> list[str]:
    """Return what is there now, if it is more than before."""
    new = list(after)
    for name in before:
        if name in new:
            new.remove(name)
    return new if len(after) > len(before) else []


def eventually(condition: Callable[[], Any], seconds: float = CLEAN_SECONDS) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:g} s"
        threading.Event().wait(0.05)


@contextmanager
def bed(threads_per_worker: int = 1, set_as_default: bool = True, **options: Any) -> Iterator[Bed]:
    """Give a cluster of two processes on this machine."""
    # Dask gives a nanny up that has no worker 15 s after it once lost one: killed twice is enough.
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1 hour"}),
        LocalCluster(
            n_workers=2,
            threads_per_worker=threads_per_worker,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            **options,
        ) as cluster,
        Client(cluster, set_as_default=set_as_default) as client,
    ):
        yield Bed(cluster, client)


@dataclass(frozen=True)
class MadePartition:
    """Rows that are made when they are read; ``trap`` springs in the read of partition 1."""

    number: int
    rows: int | None = ROWS
    trap: Trap = Trap()

    @property
    def name(self) -> str:
        return f"made {self.number}"

    def read(self) -> Rows:
        if self.trap.kind and self.number == 1 and os.getpid() != self.trap.driver:
            self.trap.happen()
        rng = np.random.default_rng(self.number)
        X = rng.normal(size=(ROWS, FEATURES)).astype("float32")
        return Rows((X, rng.integers(0, CLASSES, ROWS)))


@dataclass(frozen=True)
class MadeSource:
    """Partitions that are made when they are read."""

    made: tuple[MadePartition, ...]
    dealt = False
    name = "made"

    def rows(self) -> Rows:
        return Rows.concat([p.read() for p in self.made])

    def partitions(self) -> tuple[MadePartition, ...]:
        return self.made

    def token(self) -> str:
        return f"made-{len(self.made)}"
