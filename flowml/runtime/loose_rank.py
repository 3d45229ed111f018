"""One replica of a loose run: reads when it may, computes at its own pace, delivers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from flowml.actions import Aggregate
from flowml.data.stream import BatchStream
from flowml.plan import Firing
from flowml.runtime.calls import Spot, number_of
from flowml.runtime.center import Center, Contribution
from flowml.runtime.domain import Domain, DomainMemory, Layouts, MemoryMap
from flowml.runtime.loose_plan import Gate, LoosePlan
from flowml.runtime.outcome import Order
from flowml.runtime.program import Programs
from flowml.runtime.rank import Rank, rank_tables, start_rules
from flowml.runtime.values import EMPTY, Kept, Value
from flowml.types import Array

READ, DELIVER, LEAVE = 0, 1, 2
KINDS = ("read", "deliver", "leave")
EVENT = np.dtype(
    [
        ("event", np.int64),
        ("kind", np.int8),
        ("replica", np.int32),
        ("clock", np.int64),
        ("version", np.int64),
        ("staleness", np.int32),
        ("wait_seconds", np.float32),
    ]
)
"""One row of the record: its number among all events of the run says the order."""


@dataclass
class LooseRank:
    """A replica, the programs of its steps, and what it has read."""

    loose: LoosePlan
    rank: Rank
    programs: Programs
    firing: Firing
    targets: dict[str, tuple[Array, ...]]
    """Its private copies of the tables that it reads."""
    known: dict[str, int]
    kept: dict[int, Kept]
    staleness: int = 0
    """Of its last read, in steps."""

    @classmethod
    def make(
        cls,
        loose: LoosePlan,
        number: int,
        layouts: Layouts,
        order: Order,
        streams: Mapping[str, BatchStream],
        worker: str = "driver",
        enter: Callable[[int, int], None] = lambda operator, step: None,
    ) -> LooseRank:
        """Return a replica that stands before step 0."""
        local = loose.local
        domain = Domain(0, (tuple(range(local.replicas)),))
        nothing = DomainMemory(MemoryMap(), np.zeros(0, np.uint8))
        tables = rank_tables(local, number, nothing, layouts, order.seed)
        rank = Rank(local, number, domain, nothing, layouts, order, streams, tables, worker, enter)
        rank.index = {o.name: n for n, o in enumerate(loose.plan.steps)}
        start_rules(rank)
        read = {r.table for r in loose.reads}
        targets = {t: tables[t].versions[0] for t in read}
        kept = {
            n: Kept(gate.operator.inputs[0].keep)
            for n, gate in enumerate(loose.gates)
            if gate.spec.every > 1
        }
        return cls(loose, rank, Programs(rank), Firing(local), targets, {}, kept)

    @property
    def number(self) -> int:
        """Its rank."""
        return self.rank.number

    def read(self, center: Center) -> int:
        """Bring the private copies up to date; return the number of the event."""
        rule, number = center.rule, self.number
        self.staleness = rule.staleness(number)
        step = rule.clock(number)
        due = {r.table for r in self.loose.reads if step % r.every == 0}
        return center.read({t: b for t, b in self.targets.items() if t in due}, self.known)

    def compute(self, step: int) -> list[Contribution | None]:
        """Run its operators for a step; return what it has for each gate."""
        rank = self.rank
        rank.loss = math.nan
        program = self.programs.of(step)
        for phase in program.phases:
            for act in phase.acts:
                act(step)
        made = [self._contribution(n, gate, step) for n, gate in enumerate(self.loose.gates)]
        for table, writes in program.commits:
            rank.tables[table].commit(writes)
        return made

    def _contribution(self, number: int, gate: Gate, step: int) -> Contribution | None:
        port = gate.operator.inputs[0]
        source = self.loose.plan.operator(port.source)
        value = EMPTY
        if self.firing.fires(self.loose.local.operator(source.name), step):
            value = self._made(port.source, port.output, step)
        if number in self.kept:
            self.kept[number].put(value)
            if not gate.spec.delivers(step):
                return None
            value = self.kept[number].take()
        return value, self._weight(gate, value, step)

    def _made(self, source: str, output: int, step: int) -> Value:
        table = self.loose.plan.operator(source).writes
        if table is not None:
            names = self.loose.local.table(table).writes
            writers = [self.loose.local.operator(n) for n in names[: names.index(source) + 1]]
            return self.rank.tables[table].value(sum(self.firing.fires(w, step) for w in writers))
        return self.rank.registers[self.rank.slots[source, output]]

    def _weight(self, gate: Gate, value: Value, step: int) -> float:
        action = gate.operator.action
        if not isinstance(action, Aggregate) or action.weight == "equal" or value.empty:
            return 1.0
        if action.weight == "examples":
            return 1.0 if value.examples is None else value.examples
        port = gate.operator.inputs[1]
        given = self._made(port.source, port.output, step)
        if given.empty:
            return 0.0
        spot = Spot(gate.operator, self.number, step, self.rank.worker)
        return number_of(
            lambda: spot, given.content, "the weight must be one number", "Return a float."
        )
