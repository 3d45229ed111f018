"""What table.py measures: tables, what a step pushes, and flowml's graph and the limit for them.

A push adds ones, so that what a table comes to says how often it was pushed to.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from distributed import Client

import flowml as fl
from flowml.runtime.loop_settings import keep_freed_memory
from flowml.types import Array

ROWS, ITEMS = 1_000, 64
"""Rows that a step reads and adds to, and floats of a row."""
KEYS = 100_000
"""Rows of a table of rows."""
TURNS = 64
"""Sets of row keys that steps take in turn."""


@dataclass(frozen=True)
class Case:
    """One table."""

    name: str
    kind: str
    """"dense", "sparse" (rows of an array, by number) or "hash" (rows by any key)."""
    items: int
    """Of a dense table, float32."""

    def value(self) -> Array:
        """Return what a step pushes: a dense table's, or that of its rows."""
        return np.ones(self.items if self.kind == "dense" else (ROWS, ITEMS), np.float32)

    def fresh(self) -> Array:
        """Return a table as it begins; rows by any key are rows by number for peers."""
        return np.zeros(self.items if self.kind == "dense" else (KEYS, ITEMS), np.float32)

    def pushed(self, steps: int) -> float:
        """Return the sum of a table after so many pushes."""
        return float(steps * (self.items if self.kind == "dense" else ROWS * ITEMS))


CASES = (
    Case("4 kB", "dense", 1_000),
    Case("31 kB", "dense", 7_840),
    Case("400 kB", "dense", 100_000),
    Case("4 MB", "dense", 1_000_000),
    Case("1,000 rows, sparse", "sparse", 0),
    Case("1,000 rows, hash", "hash", 0),
)


def key_sets(replica: int) -> Array:
    """Return the keys of a replica's steps, shape (TURNS, ROWS): each set without repeats."""
    rng = np.random.default_rng(replica)
    return np.stack([rng.permutation(KEYS)[:ROWS] for _ in range(TURNS)])


# -- flowml --------------------------------------------------------------------------------------


def constant(value: Array, read: Any, batch: Any) -> Array:
    """Return what is pushed: a trivial step."""
    return value


def graph_of(case: Case, replicas: int) -> fl.Graph:
    """Return pull and push, and nothing between; rows are named by what is loaded."""
    push = partial(constant, case.value())
    if case.kind == "dense":
        w, batch = fl.table("w", case.fresh()), fl.load(np.zeros(4096), batch_size=1, shuffle=False)
        return fl.Graph(fl.update(w, fl.map(push, w.async_(), batch, name="push"), fl.add()))
    push = partial(constant, case.value()[None])
    sets = np.concatenate([key_sets(replica) for replica in range(replicas)])
    keys = fl.load(sets, batch_size=1, shuffle=False)
    table = (
        fl.table("w", case.fresh())
        if case.kind == "sparse"
        else fl.sparse_table("w", ITEMS, capacity=KEYS)
    )
    pushed = fl.map(push, table.async_().at(keys), keys, name="push")
    return fl.Graph(fl.update(table.at(keys), pushed, fl.add()))


def total(table: Any) -> float:
    """Return the sum of a table of a run."""
    rows = table.rows if isinstance(table, fl.KeyedRows) else table
    return float(np.asarray(rows, np.float64).sum())


class Flowml:
    """The resident executor, a replica a worker process."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.wall = 0.0
        """Of the last run by its steps, windows and their submission included. Unit: seconds."""

    def seconds(self, case: Case, replicas: int, steps: int) -> Times:
        """Return the seconds of a step, over all replicas."""
        run = graph_of(case, replicas).run(
            steps=steps,
            replicas=replicas,
            executor="resident",
            cluster=self._client,
            progress=False,
        )
        check(case, replicas * steps, total(run.tables["w"]))
        self.wall = float(run.seconds / run.steps)
        return pooled([run.history["seconds"]])


def check(case: Case, pushes: int, found: float) -> None:
    """Require a table to have got each push once."""
    if found != case.pushed(pushes):
        raise RuntimeError(f"{case.name}: {found} after {pushes} pushes, not {case.pushed(pushes)}")


# -- the limit -----------------------------------------------------------------------------------


class Limit:
    """NumPy on memory of one's own: two copies, or rows by fancy index."""

    def __init__(self, client: Client, workers: list[str]) -> None:
        self._client, self._workers = client, workers

    def seconds(self, case: Case, replicas: int, steps: int) -> Times:
        """Return the seconds of a step, in as many processes at once as replicas."""
        tasks = [
            self._client.submit(limit, case, rank, steps, workers=[worker], pure=False)
            for rank, worker in enumerate(self._workers[:replicas])
        ]
        return pooled(self._client.gather(tasks))


def limit(case: Case, rank: int, steps: int) -> Array:
    """Return the seconds of each step, in a process in which a replica may run.

    Notes
    -----
    The process keeps what it frees, as one with a replica does: with the settings that Dask's nanny
    leaves, NumPy would pay each result in page faults.
    """
    keep_freed_memory()
    table, value, sets = case.fresh(), case.value(), key_sets(rank)
    copy, seconds = np.empty_like(table), np.zeros(steps)
    for step in range(-TURNS, steps):
        keys = sets[step % TURNS]
        began = time.perf_counter()
        if case.kind == "dense":
            np.copyto(copy, table)
            np.copyto(table, value)
        else:
            copy = table[keys]
            table[keys] += value
        if step >= 0:
            seconds[step] = time.perf_counter() - began
    return seconds


class Times(NamedTuple):
    """Of the steps of one run, over all callers. Unit: seconds."""

    median: float
    tenth: float
    """A tenth of the steps took less: nobody else had the processor meanwhile."""


def pooled(found: Sequence[Array]) -> Times:
    """Return what the steps of all callers come to."""
    middle, tenth = np.quantile(np.concatenate(found), (0.5, 0.1))
    return Times(float(middle), float(tenth))
