"""The serial executor for loose plans: replicas take turns in one loop.

Each turn is a read, a step and its delivery. In rank order, turn after turn, every promise holds
by itself, so that it is one of the orders that a run on a cluster may have; in a recorded order it
is the replay of such a run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from flowml.actions import GLOBAL
from flowml.errors import FlowmlError, StalledError
from flowml.events import Evaluated
from flowml.plan import Plan
from flowml.protocol.promise_rule import ENDED, NO_STOP
from flowml.runtime.blas import blas_threads
from flowml.runtime.center import Center, Contribution
from flowml.runtime.center_memory import CenterMemory
from flowml.runtime.domain import Layouts
from flowml.runtime.evaluation import evaluate_source
from flowml.runtime.feeding import (
    Feed,
    loads,
    local_feed,
    open_stream,
    steps_per_epoch,
    total_steps,
)
from flowml.runtime.loose_plan import split
from flowml.runtime.loose_rank import DELIVER, EVENT, LEAVE, READ, LooseRank
from flowml.runtime.outcome import (
    HistoryBuilder,
    Order,
    Outcome,
    Tables,
    evaluation_due,
    history_block,
)
from flowml.runtime.serial import evaluated_table
from flowml.types import Array


@dataclass
class Interleaved:
    """A loose run in one process."""

    plan: Plan
    order: Order
    center: Center
    ranks: list[LooseRank]
    feeds: list[Feed]
    events: list[tuple[int, int, int, int, int, int, float, int]] = field(default_factory=list)
    made: dict[int, tuple[list[Contribution | None], float]] = field(default_factory=dict)
    """What a replica has computed and not delivered, and the seconds that it took."""
    rows: list[list[tuple[float, float, int]]] = field(default_factory=list)
    """For each replica and step: loss, seconds, staleness."""

    @classmethod
    def start(cls, plan: Plan, order: Order, layouts: Layouts) -> Interleaved:
        """Read the data, make the tables, and stand before step 0."""
        loose = split(plan)
        memory = CenterMemory.private(loose, layouts, order.seed)
        center = Center(loose, layouts, memory, order.on_nonfinite == "stop")
        center.rule.begin()
        found = [local_feed(o, plan.replicas, order.seed) for o in loads(plan)]
        ranks = [
            LooseRank.make(
                loose,
                rank,
                layouts,
                order,
                {f.name: open_stream(f, rank, parts[rank], prefetch=False) for f, parts in found},
            )
            for rank in range(plan.replicas)
        ]
        return cls(plan, order, center, ranks, [f for f, _ in found], rows=[[] for _ in ranks])

    def close(self) -> None:
        """Let go of the data."""
        for rank in self.ranks:
            for stream in rank.rank.streams.values():
                stream.close()

    # -- events ------------------------------------------------------------------------------

    def read(self, number: int) -> None:
        """Let a replica read for its next step."""
        rank, rule = self.ranks[number], self.center.rule
        event = rank.read(self.center)
        clock, version = rule.clock(number), max(rank.known.values(), default=0)
        self.events.append((event, READ, number, clock, version, rank.staleness, 0.0, rank.moved))

    def step(self, number: int) -> None:
        """Let a replica compute and deliver the step that it has read for."""
        self.compute(number)
        self.deliver(number)

    def compute(self, number: int) -> int:
        """Let a replica compute the step that it has read for; return the bytes that it sends."""
        rank, began = self.ranks[number], time.perf_counter()
        made = rank.compute(self.center.rule.clock(number))
        self.made[number] = made, time.perf_counter() - began
        return rank.moved

    def deliver(self, number: int) -> None:
        """Let what a replica has computed arrive."""
        rank, rule = self.ranks[number], self.center.rule
        made, seconds = self.made.pop(number)
        clock = rule.clock(number)
        event = self.center.deliver(number, made, rank.staleness)
        if rank.rank.ended:
            rule.request_stop(ended=True)
        self.rows[number].append((rank.rank.loss, seconds, rank.staleness))
        self.events.append((event, DELIVER, number, clock, 0, rank.staleness, 0.0, rank.moved))

    def leave(self, number: int) -> None:
        """Let a replica be waited for no longer."""
        clock = self.center.rule.clock(number)
        self.events.append((self.center.leave(number), LEAVE, number, clock, 0, 0, 0.0, 0))

    def turns(self, until: int, last: int) -> None:
        """Let all replicas go on to a clock, in turns, as far as promises allow.

        Raises
        ------
        StalledError
            If nobody may go on: a fault of the rule.
        """
        rule = self.center.rule
        while rule.stop == NO_STOP:
            waiting = [r for r in range(self.plan.replicas) if rule.clock(r) < until]
            moved = False
            for number in waiting:
                if rule.missing(number) is None and rule.room(number) is None:
                    self.read(number)
                    self.step(number)
                    moved = True
                    if rule.clock(number) == last:
                        self.leave(number)
            if not waiting:
                return
            if not moved:
                raise self._stuck(waiting)

    def _stuck(self, waiting: list[int]) -> StalledError:
        rule = self.center.rule
        missing = rule.missing(waiting[0]) or rule.room(waiting[0])
        edge = missing.edge if missing else ""
        return StalledError(
            f"edge {edge}",
            f"some replica must be able to go on; replica {waiting[0]} waits in step "
            f"{rule.clock(waiting[0])}",
            str(missing),
            "This is a fault in flowml.",
            edge=edge,
            waiting_for=str(missing.replicas if missing else ()),
            since_seconds=0.0,
        )

    def replay(self, record: Iterable[tuple[int, int]]) -> None:
        """Do the events of a record: (kind, replica), in order."""
        act = {READ: self.read, DELIVER: self.step, LEAVE: self.leave}
        for kind, number in record:
            act[int(kind)](int(number))

    # -- what it leaves ----------------------------------------------------------------------

    def tables(self) -> Tables:
        """Return copies of all tables."""
        return {
            t.name: (
                [self.center.copy_of(t.name)]
                if t.scope == GLOBAL
                else [rank.rank.tables[t.name].copy() for rank in self.ranks]
            )
            for t in self.plan.tables
        }

    def history(self) -> dict[str, Array]:
        """Return what each replica did in each step."""
        builder = HistoryBuilder()
        for number, rows in enumerate(self.rows):
            loss, seconds, staleness = np.array(rows, np.float64).reshape(-1, 3).T
            steps = range(len(rows))
            builder.add(history_block(steps, number, loss, seconds, np.zeros(len(rows)), staleness))
        return builder.columns()

    def record(self) -> Array:
        """Return the events in their order."""
        return np.array(self.events, EVENT)


def run_interleaved(
    plan: Plan, order: Order, layouts: Layouts, should_stop: Callable[[], bool] = lambda: False
) -> Outcome:
    """Run a loose plan in this process, replicas in turns.

    Returns
    -------
    Outcome
        With ``error`` set, and the tables as they are, if an operator failed.
    """
    with blas_threads(plan.blas_threads):
        state = Interleaved.start(plan, order, layouts)
        try:
            return _loop(state, should_stop)
        finally:
            state.close()


def _loop(state: Interleaved, should_stop: Callable[[], bool]) -> Outcome:
    plan, order, rule = state.plan, state.order, state.center.rule
    last = total_steps(state.feeds, order.steps, order.epochs)
    epoch = steps_per_epoch(state.feeds)
    dropped = {f.name: f.dropped() for f in state.feeds}
    outcome = Outcome(plan, steps_per_epoch=epoch, dropped_rows=dropped)
    began, step = time.monotonic(), 0
    while step < last and outcome.status == "done":
        try:
            state.turns(step + 1, last)
        except FlowmlError as error:
            outcome.error, outcome.status = error, "failed"
            break
        step = min(map(rule.clock, range(plan.replicas)))
        late = order.max_seconds is not None and time.monotonic() - began >= order.max_seconds
        if rule.stop == ENDED or late or should_stop():
            outcome.status = "until" if rule.stop == ENDED else "stopped"
        _after(state, outcome, step, epoch, ends=step == last or outcome.status != "done")
    outcome.steps = min(map(rule.clock, range(plan.replicas)))
    outcome.tables, outcome.history = state.tables(), state.history()
    if order.record:
        outcome.record, outcome.order = state.record(), order
    outcome.seconds = time.monotonic() - began
    return outcome


def _after(state: Interleaved, outcome: Outcome, step: int, epoch: int, *, ends: bool) -> None:
    if step in state.order.snapshots:
        outcome.snapshots[step] = state.tables()
    for name in evaluation_due(state.plan, step, epoch, ends):
        operator = state.plan.operator(name)
        table = state.center.table(evaluated_table(state.plan, operator))
        metrics = evaluate_source(operator, table, step)
        outcome.metrics.append({"step": step, "name": name, **metrics})
        state.order.tell(Evaluated(step=step, name=name, metrics=metrics))


def replay(plan: Plan, order: Order, layouts: Layouts, record: Array) -> Outcome:
    """Run a recorded loose run again in this process: the same reads and deliveries, in order."""
    with blas_threads(plan.blas_threads):
        state = Interleaved.start(plan, order, layouts)
        try:
            ordered = record[np.argsort(record["event"])]
            state.replay(zip(ordered["kind"].tolist(), ordered["replica"].tolist(), strict=True))
            outcome = Outcome(plan, steps=int(record["clock"].max(initial=-1)) + 1)
            outcome.tables, outcome.history = state.tables(), state.history()
            outcome.record, outcome.order = state.record(), order
            return outcome
        finally:
            state.close()
