"""The parts of one replica's step, timed in this process with the runtime's own code.

A plan for one replica is run step by step: of a synchronous one each operator is a part, of a loose
one the read, the computation and the delivery. Replicas that are to be timed while all of them are
busy meet as often as in a run, and the meeting is not timed: whoever comes from a system call, or
has slept, computes slower for a while. So the same steps also stay side by side: the cores of one
machine may differ by half for a tenth of a second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from flowml.data.stream import BatchStream
from flowml.plan import Plan
from flowml.runtime.center import Center
from flowml.runtime.center_memory import CenterMemory
from flowml.runtime.domain import Layouts
from flowml.runtime.inputs import Pattern
from flowml.runtime.loose_plan import is_loose, split
from flowml.runtime.loose_rank import LooseRank
from flowml.runtime.outcome import Order
from flowml.runtime.program import BODIES
from flowml.runtime.threads import thread_ranks
from flowml.types import Array

READ, COMPUTE, DELIVER = "read", "compute", "deliver"
WARM_UP_STEPS = 2
ROUND_SECONDS = 0.02
FEWEST_ROUNDS = 3

Meet = Callable[[bool], bool]
"""Waits for all that are timed together; tells whether any of them has enough."""


@dataclass(frozen=True)
class Timings:
    """How long the parts of a replica's step took.

    Attributes
    ----------
    parts : tuple of str
        Operators, or read, compute and deliver.
    rows : ndarray, shape (steps, parts)
        Seconds.
    cuts : tuple of int
        Where rounds begin and the last one ends. Round n of replicas that were timed together was
        at the same time.
    meetings : ndarray, shape (rounds,)
        Seconds from the end of each round until all had ended it.
    examples : float
        Of a batch.
    payloads : mapping of str to float
        Bytes of a contribution, by the operator that it flows into, as its codec makes it.
    """

    parts: tuple[str, ...]
    rows: Array
    cuts: tuple[int, ...]
    meetings: Array
    examples: float = 0.0
    payloads: Mapping[str, float] = field(default_factory=dict)

    def means(self) -> dict[str, float]:
        """Return the mean seconds of each part."""
        return dict(zip(self.parts, self.rows.mean(axis=0).tolist(), strict=True))


@dataclass(frozen=True)
class Parts:
    """A replica whose step can be made and timed part by part."""

    names: tuple[str, ...]
    acts: tuple[Callable[[int], object], ...]
    """Each part as a function of the step."""
    commit: Callable[[], None]
    """Called after each step."""
    payloads: Callable[[int], dict[str, float]]
    """Bytes of a contribution after so many steps."""


def time_parts(
    plan: Plan,
    layouts: Layouts,
    streams: Mapping[str, BatchStream],
    order: Order,
    seconds: float,
    meet: Meet = bool,
    steps_between: int = 0,
) -> Timings:
    """Run the step of a plan for one replica again and again, and time its parts.

    Parameters
    ----------
    seconds : float
        About how long; at least three rounds.
    meet : callable
        Left out: alone.
    steps_between : int
        Steps of a round; 0: as many as fit into 20 ms.
    """
    make = _loose_parts if is_loose(plan) else _operators
    found = make(plan, layouts, streams, order)
    step = 0
    for _ in range(WARM_UP_STEPS):
        _timed_step(found, step)
        step += 1
    rows: list[list[float]] = []
    cuts, meetings = [0], []
    until = perf_counter() + seconds
    meet(False)
    enough = False
    while not enough:
        first, end = len(rows), perf_counter() + ROUND_SECONDS
        while len(rows) == first or (
            len(rows) < first + steps_between if steps_between else perf_counter() < end
        ):
            rows.append(_timed_step(found, step))
            step += 1
        cuts.append(len(rows))
        since = perf_counter()
        enough = meet(len(cuts) > FEWEST_ROUNDS and since > until)
        meetings.append(perf_counter() - since)
    examples = max((s.batch(0)[1] for s in streams.values()), default=0.0)
    return Timings(
        found.names,
        np.array(rows),
        tuple(cuts),
        np.array(meetings),
        examples,
        found.payloads(step),
    )


def _timed_step(found: Parts, step: int) -> list[float]:
    row, since = [], perf_counter()
    for act in found.acts:
        act(step)
        now = perf_counter()
        row.append(now - since)
        since = now
    found.commit()
    return row


def _operators(
    plan: Plan, layouts: Layouts, streams: Mapping[str, BatchStream], order: Order
) -> Parts:
    (rank,) = thread_ranks(plan, layouts, order, [dict(streams)])

    def commit() -> None:
        for table in plan.tables:
            rank.tables[table.name].commit(len(table.writes))

    return Parts(
        tuple(o.name for o in plan.steps),
        tuple(BODIES[o.kind](Pattern(rank, 0), o) for o in plan.steps),
        commit,
        lambda steps: {},
    )


def _loose_parts(
    plan: Plan, layouts: Layouts, streams: Mapping[str, BatchStream], order: Order
) -> Parts:
    loose = split(plan)
    memory = CenterMemory.private(loose, layouts, order.seed)
    center = Center(loose, layouts, memory, order.on_nonfinite == "stop")
    center.rule.begin()
    replica = LooseRank.make(loose, 0, layouts, order, streams)
    made: list[object] = []

    def compute(step: int) -> None:
        center.rule.room(0)  # as before each step of a run
        center.rule.missing(0)
        made[:] = replica.compute(step)

    def deliver(step: int) -> None:
        center.deliver(0, made, replica.staleness)  # type: ignore[arg-type]

    def payloads(steps: int) -> dict[str, float]:
        return {
            loose.gates[gate].operator.name: codec.sent_bytes / steps
            for gate, codec in replica.codecs.items()
        }

    return Parts(
        (READ, COMPUTE, DELIVER),
        (lambda step: replica.read(center), compute, deliver),
        lambda: None,
        payloads,
    )
