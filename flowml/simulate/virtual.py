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

import numpy as np

from flowml.errors import FlowmlError
from flowml.events import Evaluated
from flowml.plan import Plan
from flowml.protocol.promise_rule import NO_STOP
from flowml.runtime.blas import blas_threads
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
from flowml.simulate.models import Compute, Faults, Network
from flowml.types import Array

ASK, DELIVER, LOST = 0, 1, 2


@dataclass
class Virtual:
    """A run in virtual time."""

    state: Interleaved
    compute: Compute
    network: Network
    rng: np.random.Generator
    last: int
    now: float = 0.0
    """Virtual seconds since the start."""
    queue: list[tuple[float, int, int, int]] = field(default_factory=list)
    """(time, number, kind, replica)."""
    waiting: dict[int, list[int]] = field(default_factory=dict)
    """Replicas that may not read yet, by the clock that they wait for."""
    rows: list[list[tuple[float, float, float, int]]] = field(default_factory=list)
    """For each replica and step: loss, seconds, wait, staleness."""
    asked: dict[int, float] = field(default_factory=dict)
    began: dict[int, float] = field(default_factory=dict)
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
            self.asked[rank] = 0.0
            self.at(0.0, ASK, rank)
        while self.queue and rule.stop == NO_STOP:
            self.now, _, kind, rank = heapq.heappop(self.queue)
            (self._ask, self._deliver, self._lose)[kind](rank)
            if kind != ASK:
                self._release()
                slowest = rule.least()
                if slowest > self._slowest:
                    self._slowest = slowest
                    if look(slowest):
                        return

    def _ask(self, rank: int) -> None:
        rule = self.state.center.rule
        if rank in self.gone:
            return
        missing = rule.missing(rank) or rule.room(rank)
        if missing is not None:
            self.waiting.setdefault(missing.clock, []).append(rank)
            return
        self.state.read(rank)
        self.began[rank] = self.now
        pulled = self.state.ranks[rank].moved
        pushed = self.state.compute(rank)  # from its own copies: when does not matter
        spent = self.network.draw(self.rng, pulled) + self.compute.draw(self.rng, rank)
        self.at(self.now + spent + self.network.draw(self.rng, pushed), DELIVER, rank)

    def _deliver(self, rank: int) -> None:
        if rank in self.gone:
            return
        state, asked = self.state, self.asked[rank]
        state.deliver(rank)
        loss, _, staleness = state.rows[rank][-1]
        self.rows[rank].append((loss, self.now - asked, self.began[rank] - asked, staleness))
        if state.center.rule.clock(rank) == self.last:
            state.leave(rank)
            self.gone.add(rank)
        else:
            self.asked[rank] = self.now
            self.at(self.now, ASK, rank)

    def _lose(self, rank: int) -> None:
        if rank not in self.gone:
            self.state.leave(rank)
            self.gone.add(rank)

    def _release(self) -> None:
        """Let those ask again who wait for what may be there now."""
        if not self.waiting:
            return
        reached = self.state.center.rule.most_complete()
        for clock in [c for c in self.waiting if c <= reached]:
            for rank in self.waiting.pop(clock):
                self.at(self.now, ASK, rank)

    def history(self) -> dict[str, Array]:
        """Return what each replica did in each step, in virtual seconds."""
        builder = HistoryBuilder()
        for rank, rows in enumerate(self.rows):
            loss, seconds, waits, staleness = np.array(rows, np.float64).reshape(-1, 4).T
            builder.add(history_block(range(len(rows)), rank, loss, seconds, waits, staleness))
        return builder.columns()


def run_virtual(
    plan: Plan,
    order: Order,
    layouts: Layouts,
    compute: Compute,
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
    compute: Compute,
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
    outcome.steps, outcome.seconds = state.center.rule.least(), virtual.now
    outcome.tables, outcome.history = state.tables(), virtual.history()
    if outcome.error is None:
        _evaluate(state, outcome, virtual.now, outcome.steps, epoch, ends=True)
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
        table = state.center.table(evaluated_table(state.plan, operator))
        metrics = evaluate_source(operator, table, step)
        outcome.metrics.append({"step": step, "name": name, "seconds": now, **metrics})
        state.order.tell(Evaluated(step=step, name=name, metrics=metrics))
