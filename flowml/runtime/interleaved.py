"""The serial executor for loose plans: replicas take turns in one loop.

Each turn is a read, a step and its delivery. In rank order, turn after turn, every promise holds
by itself, so that it is one of the orders that a run on a cluster may have; in a recorded order it
is the replay of such a run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from flowml.actions import GLOBAL
from flowml.errors import FlowmlError, StalledError
from flowml.events import Evaluated
from flowml.plan import Plan
from flowml.protocol.promise_rule import ENDED, NO_STOP
from flowml.runtime.blas import blas_threads
from flowml.runtime.center import Center
from flowml.runtime.center_memory import CenterMemory
from flowml.runtime.center_seat import CenterSeat
from flowml.runtime.cursor import EVENTS, Act, Cursor
from flowml.runtime.domain import Domain, DomainMemory, Layouts, map_memory
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
from flowml.runtime.loose_rank import EVENT, LEAVE, SKIP, LooseRank, Row
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
    cursors: list[Cursor]
    feeds: list[Feed]
    events: list[Row] = field(default_factory=list)

    @classmethod
    def start(cls, plan: Plan, order: Order, layouts: Layouts) -> Interleaved:
        """Read the data, make the tables, and stand before step 0."""
        loose = split(plan)
        memory = CenterMemory.private(loose, layouts, order.seed)
        center = Center(loose, layouts, memory, order.on_nonfinite == "stop")
        center.rule.begin()
        found = [local_feed(o, plan.replicas, order.seed) for o in loads(plan)]
        domain = Domain(0, (tuple(range(plan.replicas)),))
        shared = group_memory(loose.local, layouts, domain)
        cursors = [
            Cursor(
                CenterSeat(
                    LooseRank.make(
                        loose,
                        rank,
                        layouts,
                        order,
                        {
                            f.name: open_stream(f, rank, parts[rank], prefetch=False)
                            for f, parts in found
                        },
                        memory.specs,
                        domain,
                        shared,
                    ),
                    center,
                )
            )
            for rank in range(plan.replicas)
        ]
        for cursor in cursors:
            cursor.peers = [cursors[r] for r in plan.groups[plan.group_of[cursor.number]]]
        return cls(plan, order, center, cursors, [f for f, _ in found])

    def close(self) -> None:
        """Let go of the data."""
        for cursor in self.cursors:
            for stream in cursor.rank.rank.streams.values():
                stream.close()

    @property
    def steps(self) -> int:
        """Steps that all replicas have made."""
        return min(cursor.step for cursor in self.cursors)

    # -- going on ----------------------------------------------------------------------------

    def turns(self, until: int, last: int) -> None:
        """Let all replicas go on to a clock, in turns, as far as promises allow.

        Raises
        ------
        StalledError
            If nobody may go on: a fault of the rule.
        """
        while True:
            waiting = [c for c in self.cursors if c.step < until and not self._stops(c)]
            if not waiting:
                return
            moved = [self._turn(cursor, last) for cursor in waiting]
            if not any(moved):
                if self.center.rule.stop != NO_STOP:
                    return
                raise self._stuck(waiting)

    def _stops(self, cursor: Cursor) -> bool:
        """Tell whether a replica begins no further step."""
        return self.center.rule.stop != NO_STOP and cursor.act is Act.BEGIN

    def _turn(self, cursor: Cursor, last: int) -> bool:
        """Let a replica go on to the end of its step, or to where it must wait."""
        step, moved = cursor.step, False
        while cursor.step == step and not self._stops(cursor):
            if cursor.behind():
                self.events += cursor.skip()
            elif cursor.blocked() is not None:
                return moved
            else:
                self.events += cursor.go()
            moved = True
        if cursor.step == last != step:
            self.leave(cursor)
        return moved

    def leave(self, cursor: Cursor) -> None:
        """Let a replica be waited for no longer."""
        self.events += cursor.seat.leave(cursor.step)

    def _stuck(self, waiting: list[Cursor]) -> StalledError:
        first = waiting[0]
        missing = first.blocked()
        edge = missing.edge if missing else ""
        return StalledError(
            f"edge {edge}",
            f"some replica must be able to go on; replica {first.number} waits in step "
            f"{first.step}",
            str(missing),
            "This is a fault in flowml.",
            edge=edge,
            waiting_for=str(missing.members if missing else ()),
            since_seconds=0.0,
        )

    def replay(self, record: Array) -> None:
        """Do the events of a record, in order."""
        _, first = np.unique(record["event"], return_index=True)
        for kind, number in zip(
            record["kind"][first].tolist(), record["replica"][first].tolist(), strict=True
        ):
            cursor = self.cursors[number]
            if kind == LEAVE:
                self._finish_step(cursor)
                self.leave(cursor)
            elif kind == SKIP:
                self.events += cursor.skip()
            else:
                self._until_event(cursor)
        for cursor in self.cursors:
            self._finish_step(cursor)

    def _finish_step(self, cursor: Cursor) -> None:
        """Do what is left of a step behind its last event, if it has had that."""
        while cursor.act is not Act.BEGIN and cursor.act not in EVENTS:
            if cursor.act is Act.MEET:
                self._bring_peers(cursor)
                if cursor.blocked() is not None:
                    return
            cursor.go()

    def _until_event(self, cursor: Cursor) -> None:
        """Do what a replica does up to its next event, and that."""
        while cursor.act not in EVENTS:
            if cursor.act is Act.MEET:
                self._bring_peers(cursor)
            cursor.go()
        self.events += cursor.go()

    def _bring_peers(self, cursor: Cursor) -> None:
        """Let the others of a group come to where it meets: they have read what they need."""
        for peer in cursor.peers:
            while peer.met < cursor.met and peer.act not in EVENTS:
                peer.go()

    # -- what it leaves ----------------------------------------------------------------------

    def tables(self) -> Tables:
        """Return copies of all tables."""
        return {
            t.name: (
                [self.center.tables.copy_of(t.name)]
                if t.scope == GLOBAL
                else [
                    self.cursors[ranks[0]].rank.rank.tables[t.name].copy()
                    for ranks in (
                        self.plan.ranks_of(t.scope, i) for i in range(self.plan.instances(t.scope))
                    )
                ]
            )
            for t in self.plan.tables
        }

    def history(self) -> dict[str, Array]:
        """Return what each replica did in each step."""
        builder = HistoryBuilder()
        for cursor in self.cursors:
            steps, loss, seconds, staleness = np.array(cursor.rows, np.float64).reshape(-1, 4).T
            waits = np.zeros(len(steps))
            builder.add(
                history_block(steps.astype(int), cursor.number, loss, seconds, waits, staleness)
            )
        return builder.columns()

    def unsent(self) -> tuple[str, ...]:
        """Return the edges that keep values of the last steps of some replica."""
        return tuple(sorted({edge for c in self.cursors for edge in c.rank.unsent()}))

    def record(self) -> Array:
        """Return the events in their order."""
        return np.array(self.events, EVENT)


def group_memory(local: Plan, layouts: Layouts, domain: Domain) -> DomainMemory:
    """Return memory of this process for what the replicas of a group read of each other."""
    found = map_memory(local, layouts, domain)
    return DomainMemory(found, np.zeros(found.nbytes, np.uint8))


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
        step = state.steps
        late = order.max_seconds is not None and time.monotonic() - began >= order.max_seconds
        if rule.stop == ENDED or late or should_stop():
            outcome.status = "until" if rule.stop == ENDED else "stopped"
        _after(state, outcome, step, epoch, ends=step == last or outcome.status != "done")
    outcome.steps = state.steps
    outcome.tables, outcome.history = state.tables(), state.history()
    outcome.unsent = state.unsent()
    if order.record:
        outcome.record, outcome.order = state.record(), order
    outcome.seconds = time.monotonic() - began
    return outcome


def _after(state: Interleaved, outcome: Outcome, step: int, epoch: int, *, ends: bool) -> None:
    if step in state.order.snapshots:
        outcome.snapshots[step] = state.tables()
    for name in evaluation_due(state.plan, step, epoch, ends):
        operator = state.plan.operator(name)
        table = state.center.tables.table(evaluated_table(state.plan, operator))
        metrics = evaluate_source(operator, table, step)
        outcome.metrics.append({"step": step, "name": name, **metrics})
        state.order.tell(Evaluated(step=step, name=name, metrics=metrics))


def replay(plan: Plan, order: Order, layouts: Layouts, record: Array) -> Outcome:
    """Run a recorded loose run again in this process: the same reads and deliveries, in order."""
    with blas_threads(plan.blas_threads):
        state = Interleaved.start(plan, order, layouts)
        try:
            state.replay(record)
            outcome = Outcome(plan, steps=state.steps)
            outcome.tables, outcome.history = state.tables(), state.history()
            outcome.record, outcome.order = state.record(), order
            outcome.unsent = state.unsent()
            return outcome
        finally:
            state.close()
