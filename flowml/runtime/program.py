"""The step loop of one rank: a list of small functions for each phase, a barrier after each.

What fires in a step is a fact of the periods, so a program is made once for each pattern of
firings and run as it is: no graph, no plan and no lookup by name in the loop.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import chain
from time import perf_counter
from typing import Protocol

import numpy as np

from flowml.plan import Plan, PlanOperator
from flowml.runtime.bodies import (
    Act,
    gradient_body,
    here_body,
    load_body,
    map_body,
    source_keeps,
    until_body,
)
from flowml.runtime.combining import aggregate_body
from flowml.runtime.domain import kept_by_source
from flowml.runtime.exchange import Exchange, exchange_after
from flowml.runtime.inputs import Pattern, hold, keep_at_reader
from flowml.runtime.moved import Moved
from flowml.runtime.outcome import history_block
from flowml.runtime.rank import Rank
from flowml.runtime.row_bodies import received_body, rows_body
from flowml.runtime.writing import write_body
from flowml.types import Array

LONGEST_CYCLE = 100_000
"""Steps: a longer common multiple of the periods is not tabulated but worked out step by step."""

BODIES: dict[str, Callable[[Pattern, PlanOperator], Act]] = {
    "load": load_body,
    "here": here_body,
    "map": map_body,
    "gradient": gradient_body,
    "aggregate": aggregate_body,
    "update": write_body,
    "assign": write_body,
    "until": until_body,
    "rows": rows_body,
    "receive": received_body,
}


class Barrier(Protocol):
    """Where the ranks of a run meet."""

    def __call__(self, stop: bool, step: int, exchange: Exchange | None) -> bool:
        """Wait for all ranks; return whether any of them asked to stop."""


@dataclass(frozen=True)
class PhaseProgram:
    """What a rank does in one phase, and how it meets the others after it."""

    acts: tuple[Act, ...]
    owners: tuple[int, ...]
    """The operator of each act, by its index."""
    meets: bool
    samples_stop: bool
    """Requests to stop from outside are told at this barrier: the same one for all ranks."""
    exchange: Exchange | None


@dataclass(frozen=True)
class StepProgram:
    """One step of one pattern."""

    phases: tuple[PhaseProgram, ...]
    commits: tuple[tuple[str, int], ...]
    """(table, writes that fired)."""
    moved: Moved
    """What the rank writes and reads of shared memory in it."""


class Programs:
    """The programs of a rank, by step."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        self._made: dict[object, StepProgram] = {}
        self._of_step: dict[int, StepProgram] = {}
        self._times = rank.times
        self._timed: dict[int, tuple[StepProgram, StepProgram]] = {}
        """By identity of a program: it, so that it stays, and the same with times."""
        self._cycle = math.lcm(cycle(rank.plan), 2 if rank.plan.own_copies else 1)
        self._aside = Moved()
        """Of steps whose programs are not tabulated: counted as they come."""

    def of(self, step: int) -> StepProgram:
        """Return the program of a step, for the one time that it is run."""
        if step >= self._times.following:
            self._times.choose_after(step)
            return self._with_times(self.of(step))
        representative = step
        if self._cycle <= LONGEST_CYCLE and step >= 2 * self._cycle:
            representative = 2 * self._cycle + step % self._cycle
        found = self._of_step.get(representative)
        if found is None:
            pattern = Pattern(self._rank, representative)
            key = pattern.key()
            found = self._made.get(key) or make_program(pattern)
            self._made[key] = found
            if self._cycle <= LONGEST_CYCLE:
                self._of_step[representative] = found
            else:
                self._aside.add(found.moved)
        return found

    def moved(self, start: int, stop: int) -> Moved:
        """Return what the steps from ``start`` up to ``stop`` have moved, when they have run."""
        if self._cycle > LONGEST_CYCLE:
            found, self._aside = self._aside, Moved()
            return found
        first = min(stop, max(start, 2 * self._cycle))  # before it, edges fill up
        turns, rest = divmod(stop - first, self._cycle)
        one_turn = range(first, first + self._cycle if turns else first)
        times: Counter[int] = Counter()
        programs: dict[int, StepProgram] = {}
        for step in chain(range(start, first), range(stop - rest, stop), one_turn):
            program = self.of(step)
            programs[id(program)] = program
            times[id(program)] += turns if step in one_turn else 1
        found = Moved()
        for number, program in programs.items():
            found.add(program.moved, times[number])
        return found

    def _with_times(self, program: StepProgram) -> StepProgram:
        if id(program) not in self._timed:
            self._timed[id(program)] = program, timed_program(self._rank, program)
        return self._timed[id(program)][1]


def cycle(plan: Plan) -> int:
    """Return after how many steps the pattern of firings repeats."""
    return math.lcm(*(p.every for o in plan.steps for p in o.inputs), 1)


def make_program(pattern: Pattern) -> StepProgram:
    """Return the program of a rank for one pattern."""
    rank = pattern.rank
    plan = rank.plan
    acts: dict[int, list[tuple[Act, int]]] = {}
    for operator in plan.steps:
        here = acts.setdefault(operator.phase, [])
        if rank.works_on(operator):
            mine = _reader_acts(pattern, operator)
            if pattern.fires(operator.name):
                mine.append(BODIES[operator.kind](pattern, operator))
            mine += source_keeps(pattern, operator)
            here += [(act, rank.index[operator.name]) for act in mine]
    meeting = rank.firing.meeting(pattern.step)
    phases = []
    for number in sorted(acts):
        exchange = exchange_after(pattern, number)
        phases.append((acts[number], number in meeting, exchange))
    writes = [(t.name, sum(pattern.fires(w) for w in t.writes)) for t in plan.tables if t.writes]
    moved = pattern.moved if plan.replicas > 1 else Moved()  # alone, it moves nothing
    return StepProgram(_with_stops(rank, phases), tuple((n, w) for n, w in writes if w), moved)


def timed_program(rank: Rank, program: StepProgram) -> StepProgram:
    """Return a program that also notes how long each act takes."""
    phases = (
        replace(
            phase,
            acts=tuple(
                rank.times.timed(act, rank.number, owner)
                for act, owner in zip(phase.acts, phase.owners, strict=True)
            ),
        )
        for phase in program.phases
    )
    return replace(program, phases=tuple(phases))


def _with_stops(
    rank: Rank, phases: list[tuple[list[tuple[Act, int]], bool, Exchange | None]]
) -> tuple[PhaseProgram, ...]:
    """Choose the one barrier of a step at which requests to stop are told."""
    several = len(rank.domain.domains) > 1
    out: list[PhaseProgram] = []
    chosen = False
    for acts, meets, exchange in phases:
        samples = meets and not chosen and (exchange is not None or not several)
        chosen = chosen or samples
        own = tuple(act for act, _ in acts), tuple(owner for _, owner in acts)
        out.append(PhaseProgram(*own, meets, samples, exchange))
    return tuple(out)


def _reader_acts(pattern: Pattern, reader: PlanOperator) -> list[Act]:
    """Return what a reader does with its inputs before it fires, or although it does not."""
    rank, acts = pattern.rank, []
    for number, port in enumerate(reader.inputs):
        own = not (port.crosses and kept_by_source(rank.plan, port))
        if own and rank.firing.keeps(port) and pattern.fires(port.source):
            acts.append(keep_at_reader(pattern, reader, number))
        if _holds(pattern, reader, number):
            acts.append(hold(pattern, reader, number))
    return acts


def _holds(pattern: Pattern, reader: PlanOperator, number: int) -> bool:
    port = reader.inputs[number]
    combined = number == 0 and pattern.rank.plan.combines(reader)
    return (
        not combined
        and pattern.delivers(reader, number)
        and pattern.rank.firing.holds(port, reader)
    )


@dataclass
class WindowRecord:
    """What a rank did in a window."""

    steps: int
    stopped: bool
    ended: bool
    history: dict[str, Array]
    events: Array | None = None
    """Reads and deliveries of a loose run that is recorded."""
    began: float | None = None
    """When its first step began, on the clock of its process; None: with the window."""
    moved: Moved = field(default_factory=Moved)
    """Bytes between replicas of a synchronous run."""
    unsent: tuple[str, ...] | None = None
    """Edges of a loose run that keep values at its end; None: it is not known here."""


def run_window(
    rank: Rank,
    programs: Programs,
    start: int,
    stop: int,
    barrier: Barrier,
    stop_requested: Callable[[], bool],
) -> WindowRecord:
    """Run the steps from ``start`` up to ``stop``, or up to the one in which a stop was agreed."""
    count = stop - start
    loss, seconds, waits = np.full(count, np.nan), np.zeros(count), np.zeros(count)
    starts, origin = np.zeros(count), perf_counter()
    step, stopped = start, False
    while step < stop and not stopped:
        program = programs.of(step)
        rank.loss = math.nan
        began, waited = perf_counter(), 0.0
        for phase in program.phases:
            for act in phase.acts:
                act(step)
            if phase.meets:
                since = perf_counter()
                asked = rank.ended or (phase.samples_stop and stop_requested())
                stopped = barrier(asked, step, phase.exchange) or stopped
                waited += perf_counter() - since
        for table, writes in program.commits:
            rank.tables[table].commit(writes)
        rank.committed = step + 1
        number = step - start
        loss[number], waits[number], starts[number] = rank.loss, waited, began - origin
        seconds[number] = perf_counter() - began
        step += 1
    done = step - start
    history = history_block(
        range(start, step),
        rank.number,
        loss[:done],
        seconds[:done],
        waits[:done],
        began=starts[:done],
    )
    moved = programs.moved(start, step)
    return WindowRecord(step, stopped, rank.ended, history, began=origin, moved=moved)
