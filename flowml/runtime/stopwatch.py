"""The parts of one replica's step, timed in this process with the runtime's own code.

A plan for one replica is run step by step: of a synchronous one each operator is a part, of a loose
one the read, the computation and the delivery. Replicas that are to be timed while all of them are
busy meet as often as in a run, and the meeting is not timed: whoever comes from a system call, or
has slept, computes slower for a while. So the same steps also stay side by side: the cores of one
machine may differ by half for a tenth of a second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from flowml.data.stream import BatchStream
from flowml.errors import StalledError
from flowml.plan import Plan
from flowml.runtime.center import Center
from flowml.runtime.center_memory import CenterMemory
from flowml.runtime.center_seat import CenterSeat
from flowml.runtime.cursor import Act, Cursor
from flowml.runtime.domain import Domain, Layouts
from flowml.runtime.inputs import Pattern
from flowml.runtime.interleaved import group_memory
from flowml.runtime.loose_plan import is_loose, split
from flowml.runtime.loose_rank import EVENT, NO_EDGE, LooseRank
from flowml.runtime.moved_loose import edge_names
from flowml.runtime.outcome import Order
from flowml.runtime.program import BODIES
from flowml.runtime.threads import thread_ranks
from flowml.types import Array

READ, COMPUTE, DELIVER = "read", "compute", "deliver"
BYTES, EDGE = (list(EVENT.names or ()).index(name) for name in ("bytes", "edge"))
"""Where these stand in a row of the record."""
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
        Bytes a step of each edge of a loose plan, as its codec, filter or row ids make them.
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
    step: Callable[[int], list[float]]
    """Makes a step; returns the seconds of each part."""
    payloads: Callable[[int], dict[str, float]]
    """Bytes a step of each edge that passes a gate, after so many steps."""


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
    found = (_at_own_pace if is_loose(plan) else _operators)(plan, layouts, streams, order)
    for step in range(WARM_UP_STEPS):
        found.step(step)
    step = WARM_UP_STEPS
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
            rows.append(found.step(step))
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


def _operators(
    plan: Plan, layouts: Layouts, streams: Mapping[str, BatchStream], order: Order
) -> Parts:
    (rank,) = thread_ranks(plan, layouts, order, [dict(streams)])
    acts = tuple(BODIES[o.kind](Pattern(rank, 0), o) for o in plan.steps)
    commits = [(rank.tables[t.name], len(t.writes)) for t in plan.tables]

    def make(step: int) -> list[float]:
        row, since = [], perf_counter()
        for act in acts:
            act(step)
            now = perf_counter()
            row.append(now - since)
            since = now
        for table, writes in commits:
            table.commit(writes)
        return row

    return Parts(tuple(o.name for o in plan.steps), make, lambda steps: {})


def _at_own_pace(
    plan: Plan, layouts: Layouts, streams: Mapping[str, BatchStream], order: Order
) -> Parts:
    cursor = _cursor(plan, layouts, streams, order)
    moved: Counter[int] = Counter()

    def make(step: int) -> list[float]:
        spent = dict.fromkeys((READ, COMPUTE, DELIVER), 0.0)
        since = perf_counter()
        while cursor.step == step:
            part = _PART_OF.get(cursor.act, COMPUTE)
            _go(cursor, moved)
            now = perf_counter()
            spent[part] += now - since
            since = now
        return list(spent.values())

    names = edge_names(split(plan))
    return Parts(
        (READ, COMPUTE, DELIVER),
        make,
        lambda steps: {names[edge]: nbytes / steps for edge, nbytes in moved.items()},
    )


_PART_OF = {Act.READ: READ, Act.ANSWER: READ, Act.DELIVER: DELIVER}
"""What is done with the lock in hand; the rest is the replica's own."""


def _go(cursor: Cursor, moved: Counter[int]) -> None:
    """Let a replica that is alone do its next action, and count the bytes of each edge."""
    missing = cursor.blocked()  # looked at before each action, as in a run
    if missing is not None:
        raise StalledError(
            f"edge {missing.edge}",
            "a replica that is alone waits for nobody",
            str(missing),
            "This is a fault in flowml.",
            edge=missing.edge,
            waiting_for="",
            since_seconds=0.0,
        )
    for row in cursor.go():
        if row[EDGE] != NO_EDGE:
            moved[int(row[EDGE])] += int(row[BYTES])


def _cursor(
    plan: Plan, layouts: Layouts, streams: Mapping[str, BatchStream], order: Order
) -> Cursor:
    """Return the only replica of a loose plan, before step 0."""
    loose = split(plan)
    memory = CenterMemory.private(loose, layouts, order.seed)
    center = Center(loose, layouts, memory, order.on_nonfinite == "stop")
    center.rule.begin()
    domain = Domain(0, ((0,),))
    shared = group_memory(loose.local, layouts, domain)
    replica = LooseRank.make(loose, 0, layouts, order, streams, memory.specs, domain, shared)
    cursor = Cursor(CenterSeat(replica, center))
    cursor.peers = [cursor]
    return cursor
