"""Runs of graphs with stale or async edges, and the order in which their replicas went.

A plain loop in a test repeats that order: it needs nothing else from the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import optree

import flowml as fl
from flowml.cluster_run import probe_here
from flowml.compiler.place import Groups
from flowml.compiler.stages import compile_graph
from flowml.runtime.interleaved import Interleaved, replay
from flowml.runtime.loose_rank import KINDS
from flowml.runtime.outcome import Order
from tests.graphs.reference import Array, Params, batches, dealt, examples, softmax_gradient

X, Y = examples()
BATCH = 10
STEPS = 14
REPLICAS = 3
SPEEDS = (1.0, 3.0, 9.0)
"""The last replica goes nine times as often as the first, where it may."""

Event = tuple[str, int, int, int]
"""(kind, replica, clock, staleness), in the order of the run."""


@dataclass(frozen=True)
class Ran:
    """What a run left, and the order of its events."""

    tables: dict[str, Any]
    events: tuple[Event, ...]

    def staleness(self) -> list[int]:
        """Return how late each read was."""
        return [late for kind, _, _, late in self.events if kind == "read"]


def in_turns(
    graph: fl.Graph, replicas: int = REPLICAS, steps: int = STEPS, groups: Groups = None
) -> Ran:
    """Run a graph in the serial executor."""
    options: dict[str, Any] = {"steps": steps, "replicas": replicas, "groups": groups}
    return ran(graph.run(executor="serial", record=True, **options))


def ran(run: fl.Run) -> Ran:
    """Return what a recorded run left."""
    names = ("kind", "replica", "clock", "staleness")
    return Ran(run.tables, _once(run.ledger["event"], [run.ledger[name] for name in names]))


def at_random(
    graph: fl.Graph,
    seed: int = 0,
    replicas: int = REPLICAS,
    steps: int = STEPS,
    groups: Groups = None,
) -> Ran:
    """Let replicas of unequal speed read and step in a random order that promises allow.

    The record of the events, replayed, must give the same bytes.
    """
    plan = compile_graph(graph.logical, replicas, groups)
    order = Order(steps=steps, epochs=None, record=True)
    layouts = probe_here(plan, order)
    state = Interleaved.start(plan, order, layouts)
    try:
        _go(state, np.random.default_rng(seed), steps)
        tables, record = state.tables(), state.record()
    finally:
        state.close()
    again = replay(plan, order, layouts, record).tables
    for a, b in zip(optree.tree_leaves(tables), optree.tree_leaves(again), strict=True):
        assert a.tobytes() == b.tobytes()
    columns = [record[name] for name in ("kind", "replica", "clock", "staleness")]
    events = tuple((KINDS[kind], *rest) for kind, *rest in _once(record["event"], columns))
    scopes = {t.name: t.scope for t in plan.tables}
    return Ran({n: v[0] if scopes[n] == "global" else v for n, v in tables.items()}, events)


def _once(numbers: Array, columns: list[Array]) -> tuple[Any, ...]:
    """Return a row an event, in their order, though an event has one for each of its edges."""
    _, first = np.unique(numbers, return_index=True)
    return tuple(zip(*(column[first].tolist() for column in columns), strict=True))


def _go(state: Interleaved, rng: np.random.Generator, steps: int) -> None:
    live = list(state.cursors)
    while live:
        may = [c for c in live if c.behind() or c.blocked() is None]
        odds = np.array([SPEEDS[c.number % len(SPEEDS)] for c in may])
        cursor = may[int(rng.choice(len(may), p=odds / odds.sum()))]
        state.events += cursor.skip() if cursor.behind() else cursor.go()
        if cursor.step == steps:
            state.leave(cursor)
            live.remove(cursor)


ORDERS: dict[str, Callable[[fl.Graph], Ran]] = {
    "in turns": in_turns,
    "random 1": lambda graph: at_random(graph, 1),
    "random 2": lambda graph: at_random(graph, 2),
    "random 3": lambda graph: at_random(graph, 3),
}


@dataclass
class Work:
    """What the replicas of a plain loop compute: gradients on their batches, in their order."""

    events: tuple[Event, ...]
    replicas: int = REPLICAS
    steps: int = STEPS

    def __post_init__(self) -> None:
        self._rows = batches(dealt(len(X), self.replicas), BATCH, self.steps)

    def __iter__(self) -> Iterator[tuple[str, int, int]]:
        """Give (kind, replica, clock), the clock counted here."""
        clocks = [0] * self.replicas
        for kind, replica, _, _ in self.events:
            yield kind, replica, clocks[replica]
            clocks[replica] += kind in ("deliver", "skip")

    def rows(self, replica: int, clock: int) -> Array:
        """Return the rows of a batch: none where the replica waits for the end of the epoch."""
        return self._rows[clock][replica]

    def gradient(self, params: Params, replica: int, clock: int) -> Params | None:
        """Return the gradient of a batch, or None without rows."""
        rows = self.rows(replica, clock)
        return softmax_gradient(params, X[rows], Y[rows]) if len(rows) else None


def moved(params: Params, grads: Params, rate: float) -> Params:
    """Return the parameters after a plain step."""
    return {name: params[name] - rate * grads[name] for name in params}
