"""The simulated executor: events of all replicas in the order of virtual time.

A replica asks to read, waits until its promises let it, gets the tables after a message's time,
computes for a step's time, and its contribution arrives after another message's time. What it reads
and what its contribution sets off is done by the code that real runs use (runtime/center.py), so
that what a run computes is true and only *when* is made up. All random times come from one seed.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from flowml.errors import FlowmlError
from flowml.events import Evaluated
from flowml.plan import Plan, loss_operator
from flowml.protocol.promise_rule import NO_STOP
from flowml.runtime.blas import blas_threads
from flowml.runtime.cursor import Act, Cursor
from flowml.runtime.domain import Layouts
from flowml.runtime.evaluation import evaluate_source
from flowml.runtime.feeding import steps_per_epoch, total_steps
from flowml.runtime.interleaved import Interleaved
from flowml.runtime.outcome import (
    HistoryBuilder,
    Order,
    Outcome,
    evaluation_due,
    history_block,
)
from flowml.runtime.serial import evaluated_table
from flowml.simulate.models import Compute, Faults, Network, Timed
from flowml.types import Array

GO, LOST = 0, 1


@dataclass
class Virtual:
    """A run in virtual time."""

    state: Interleaved
    compute: Compute | Timed
    network: Network
    rng: np.random.Generator
    last: int
    now: float = 0.0
    """Virtual seconds since the start."""
    queue: list[tuple[float, int, int, int]] = field(default_factory=list)
    """(time, number, kind, replica)."""
    waiting: dict[int, list[int]] = field(default_factory=dict)
    """Replicas that may not go on yet, by the clock that they wait for."""
    meeting: set[int] = field(default_factory=set)
    """Replicas that wait for others of their group."""
    rows: list[list[tuple[int, float, float, float, int]]] = field(default_factory=list)
    """For each replica and step: its number, loss, seconds, wait, staleness."""
    stopped: dict[int, float] = field(default_factory=dict)
    """Since when a replica waits."""
    began: dict[int, float] = field(default_factory=dict)
    waits: dict[int, float] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)
    _made: int = 0
    _slowest: int = 0

    def at(self, time: float, kind: int, replica: int) -> None:
        """Let something happen; what was planned first happens first at equal times."""
        heapq.heappush(self.queue, (time, self._made, kind, replica))
        self._made += 1

    def run(self, look: Callable[[int], bool]) -> None:
        """Go on until nothing is left to happen.

        Parameters
        ----------
        look : callable of (int) -> bool
            Called with the clock of the slowest replica whenever that moves on; True stops.
        """
        rule = self.state.center.rule
        for rank in range(self.state.plan.replicas):
            self.at(0.0, GO, rank)
        while self.queue and rule.stop == NO_STOP:
            self.now, _, kind, rank = heapq.heappop(self.queue)
            if rank in self.gone:
                continue
            moved = self._lose(rank) if kind == LOST else self._go(rank)
            if moved:
                self._release()
                slowest = self.least()
                if slowest > self._slowest:
                    self._slowest = slowest
                    if look(slowest):
                        return

    def least(self) -> int:
        """Return the steps that all who are there have delivered."""
        rule = self.state.center.rule
        return rule.least(len(rule.teams) - 1)

    def _go(self, rank: int) -> bool:
        """Let a replica go on up to what takes time; return whether others may go on by it."""
        cursor, moved = self.state.cursors[rank], False
        while True:
            if cursor.behind():
                self.state.events += cursor.skip()
                moved = True
            elif self._waits(cursor):
                return moved
            else:
                spent, told = self._act(cursor)
                moved = moved or told
                if spent:
                    self.at(self.now + spent, GO, rank)
                    return moved
            if cursor.step == self.last:
                self.state.leave(cursor)
                self.gone.add(rank)
                return True

    def _waits(self, cursor: Cursor) -> bool:
        """Note what a replica must wait for, if it must."""
        missing, rank = cursor.blocked(), cursor.number
        if missing is None:
            since = self.stopped.pop(rank, self.now)
            self.waits[rank] = self.waits.get(rank, 0.0) + self.now - since
            return False
        self.stopped.setdefault(rank, self.now)
        if cursor.act is Act.MEET:
            self.meeting.add(rank)
        else:
            self.waiting.setdefault(missing.clock, []).append(rank)
        return True

    def _act(self, cursor: Cursor) -> tuple[float, bool]:
        """Do an action; return its seconds, and whether others may go on by it."""
        act, rank, step = cursor.act, cursor.number, cursor.step
        if act is Act.BEGIN:
            self.began[rank], self.waits[rank] = self.now, 0.0
        self.state.events += cursor.go()
        if cursor.step > step:
            _, loss, _, staleness = cursor.rows[-1]
            seconds = self.now - self.began[rank]
            self.rows[rank].append((step, loss, seconds, self.waits[rank], staleness))
        spent = 0.0
        if act in (Act.READ, Act.ANSWER, Act.GIVE):
            spent = self.network.draw(self.rng, cursor.moved)
        elif act is Act.COMPUTE and cursor.phase == self._busy_phase:
            spent = self.compute.draw(self.rng, rank)
        if cursor.act is Act.MEET or act is Act.COMPUTE:
            self._let_meet(cursor)
        return spent, act is Act.DELIVER

    @cached_property
    def _busy_phase(self) -> int:
        """The phase whose work is counted as a step's: that of the gradient, or the first one."""
        local = self.state.cursors[0].rank.loose.local
        name = loss_operator(local)
        return 0 if name is None else local.operator(name).phase

    def _let_meet(self, cursor: Cursor) -> None:
        """Let those go on who waited for this one of their group."""
        if not self.meeting:  # of a thousand replicas none usually waits for its group
            return
        for peer in cursor.peers:
            if peer.number in self.meeting and peer.blocked() is None:
                self.meeting.discard(peer.number)
                self.at(self.now + self.network.wake, GO, peer.number)

    def _lose(self, rank: int) -> bool:
        self.state.leave(self.state.cursors[rank])
        self.gone.add(rank)
        return True

    def _release(self) -> None:
        """Let those go on who wait for what may be there now."""
        if not self.waiting:
            return
        reached = self.state.center.rule.most_complete()
        for clock in [c for c in self.waiting if c <= reached]:
            for rank in self.waiting.pop(clock):
                self.at(self.now + self.network.wake, GO, rank)

    def history(self) -> dict[str, Array]:
        """Return what each replica did in each step, in virtual seconds."""
        builder = HistoryBuilder()
        for rank, rows in enumerate(self.rows):
            steps, loss, seconds, waits, staleness = np.array(rows, np.float64).reshape(-1, 5).T
            builder.add(history_block(steps.astype(int), rank, loss, seconds, waits, staleness))
        return builder.columns()


def run_virtual(
    plan: Plan,
    order: Order,
    layouts: Layouts,
    compute: Compute | Timed,
    network: Network,
    faults: Faults,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Run a plan in virtual time; ``outcome.seconds`` and ``max_seconds`` are virtual too."""
    with blas_threads(plan.blas_threads):
        state = Interleaved.start(plan, order, layouts)
        try:
            return _outcome(state, compute, network, faults, should_stop)
        finally:
            state.close()


def _outcome(
    state: Interleaved,
    compute: Compute | Timed,
    network: Network,
    faults: Faults,
    should_stop: Callable[[], bool],
) -> Outcome:
    plan, order = state.plan, state.order
    epoch, last = steps_per_epoch(state.feeds), total_steps(state.feeds, order.steps, order.epochs)
    outcome = Outcome(plan, steps_per_epoch=epoch)
    outcome.dropped_rows = {f.name: f.dropped() for f in state.feeds}
    rng = np.random.default_rng(np.random.SeedSequence((order.seed, 0x5EED)))
    virtual = Virtual(state, compute, network, rng, last)
    virtual.rows = [[] for _ in range(plan.replicas)]
    for rank, seconds in faults.leaves.items():
        virtual.at(seconds, LOST, rank)
    limit = math.inf if order.max_seconds is None else order.max_seconds

    def look(slowest: int) -> bool:
        if slowest in order.snapshots:
            outcome.snapshots[slowest] = state.tables()
        _evaluate(state, outcome, virtual.now, slowest, epoch, ends=False)
        if virtual.now >= limit or should_stop():
            outcome.status = "stopped"
        return outcome.status != "done"

    try:
        virtual.run(look)
    except FlowmlError as error:
        outcome.error, outcome.status = error, "failed"
    if state.center.rule.has_ended:
        outcome.status = "until"
    outcome.steps, outcome.seconds = virtual.least(), virtual.now
    outcome.tables, outcome.history = state.tables(), virtual.history()
    if outcome.error is None:
        _evaluate(state, outcome, virtual.now, outcome.steps, epoch, ends=True)
    outcome.unsent = state.unsent()
    if order.record:
        outcome.record, outcome.order = state.record(), order
    return outcome


def _evaluate(
    state: Interleaved, outcome: Outcome, now: float, step: int, epoch: int, *, ends: bool
) -> None:
    known = {(m["step"], m["name"]) for m in outcome.metrics}
    for name in evaluation_due(state.plan, step, epoch, ends):
        if (step, name) in known:
            continue
        operator = state.plan.operator(name)
        table = state.center.tables.table(evaluated_table(state.plan, operator))
        metrics = evaluate_source(operator, table, step)
        outcome.metrics.append({"step": step, "name": name, "seconds": now, **metrics})
        state.order.tell(Evaluated(step=step, name=name, metrics=metrics))
