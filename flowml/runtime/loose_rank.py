"""One replica of a loose run: reads when it may, computes at its own pace, delivers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from flowml.actions import Aggregate
from flowml.data.stream import BatchStream
from flowml.plan import Firing
from flowml.protocol.promise_rule import ReadSpec
from flowml.runtime.calls import Spot, number_of
from flowml.runtime.center import Center, Contribution
from flowml.runtime.domain import Domain, DomainMemory, Layouts, MemoryMap, layout_of_port
from flowml.runtime.edge_codec import EdgeCodec
from flowml.runtime.loose_plan import Gate, LoosePlan
from flowml.runtime.outcome import Order
from flowml.runtime.program import Programs
from flowml.runtime.rank import Rank, rank_tables, start_rules
from flowml.runtime.values import EMPTY, Kept, Value, copied
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
        ("bytes", np.int64),
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
    kept: dict[tuple[int, int], Kept]
    """(gate, number of its input) -> what its period keeps."""
    held: dict[tuple[int, int], Value]
    """The same -> the last value of an input that is slower than the other one."""
    codecs: dict[int, EdgeCodec]
    """By gate: what its contributions go through."""
    staleness: int = 0
    """Of its last read, in steps."""
    moved: int = 0
    """Bytes of its last read or delivery."""

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
        firing = Firing(local)
        inputs = {
            (n, number): (port, gate.operator)
            for n, gate in enumerate(loose.gates)
            for number, port in enumerate(gate.operator.inputs)
        }
        kept = {key: Kept(port.keep) for key, (port, _) in inputs.items() if port.every > 1}
        whole = Firing(loose.plan)  # the local plan does not have the periods of gates
        held = {key: EMPTY for key, (port, gate) in inputs.items() if whole.holds(port, gate)}
        codecs = {
            n: EdgeCodec(
                port.codec,
                layout_of_port(loose.plan, layouts, port),
                f"{port.source} -> {gate.operator.name}",
                number,
                order.seed,
            )
            for n, gate in enumerate(loose.gates)
            if (port := gate.operator.inputs[0]).codec is not None
        }
        return cls(loose, rank, Programs(rank), firing, targets, {}, kept, held, codecs)

    @property
    def number(self) -> int:
        """Its rank."""
        return self.rank.number

    def read(self, center: Center) -> int:
        """Bring the private copies up to date; return the number of the event."""
        rule, number = center.rule, self.number
        self.staleness = rule.staleness(number)
        step = rule.clock(number)
        due = {r.table for r in self.loose.reads if self._is_due(r, step)}
        before = dict(self.known)
        event = center.read({t: b for t, b in self.targets.items() if t in due}, self.known)
        changed = (t for t in due if self.known[t] != before.get(t))
        self.moved = sum(b.nbytes for t in changed for b in self.targets[t])
        return event

    def _is_due(self, read: ReadSpec, step: int) -> bool:
        """Tell whether an edge reads in a step: without a period, when its reader fires."""
        if read.every > 1:
            return step % read.every == 0
        return self.firing.fires(self.loose.local.operator(read.reader), step)

    def compute(self, step: int) -> list[Contribution | None]:
        """Run its operators for a step; return what it has for each gate."""
        rank = self.rank
        rank.loss = math.nan
        program = self.programs.of(step)
        for phase in program.phases:
            for act in phase.acts:
                act(step)
        self.moved = 0
        made = [self._contribution(n, gate, step) for n, gate in enumerate(self.loose.gates)]
        for table, writes in program.commits:
            rank.tables[table].commit(writes)
        return made

    def _contribution(self, number: int, gate: Gate, step: int) -> Contribution | None:
        values = [self._input(number, n, step) for n in range(len(gate.operator.inputs))]
        if not gate.spec.delivers(step):
            return None
        return self._sent(number, gate, values[0]), self._weight(gate, values, step)

    def _sent(self, number: int, gate: Gate, value: Value) -> Value:
        """Return what arrives at a gate of a value, and count its bytes."""
        port = gate.operator.inputs[0]
        layout = layout_of_port(self.loose.plan, self.rank.layouts, port)
        codec = self.codecs.get(number)
        if codec is None or value.empty or layout.mismatch(value.content) is not None:
            self.moved += 0 if value.empty else layout.nbytes
            return value
        before = codec.sent_bytes
        decoded = codec.send(value)
        self.moved += codec.sent_bytes - before
        return decoded

    def _input(self, gate: int, number: int, step: int) -> Value:
        """Return what an input of a gate has in a step: semantics.md section 3."""
        port = self.loose.gates[gate].operator.inputs[number]
        found: Value | None = None
        if self.firing.fires(self.loose.local.operator(port.source), step):
            found = self._made(port.source, port.output, step)
        if (gate, number) in self.kept:
            kept = self.kept[gate, number]
            if found is not None:
                kept.put(found)
            found = kept.take() if self.firing.delivers(port, step) else None
        if (gate, number) in self.held:
            if found is not None:
                self.held[gate, number] = Value(copied(found.content), found.examples)
            found = self.held[gate, number]
        return EMPTY if found is None else found

    def _made(self, source: str, output: int, step: int) -> Value:
        table = self.loose.plan.operator(source).writes
        if table is not None:
            names = self.loose.local.table(table).writes
            writers = [self.loose.local.operator(n) for n in names[: names.index(source) + 1]]
            return self.rank.tables[table].value(sum(self.firing.fires(w, step) for w in writers))
        return self.rank.registers[self.rank.slots[source, output]]

    def _weight(self, gate: Gate, values: list[Value], step: int) -> float:
        action, value = gate.operator.action, values[0]
        if not isinstance(action, Aggregate) or action.weight == "equal" or value.empty:
            return 1.0
        if action.weight == "examples":
            return 1.0 if value.examples is None else value.examples
        given = values[1]
        if given.empty:
            return 0.0
        spot = Spot(gate.operator, self.number, step, self.rank.worker)
        return number_of(
            lambda: spot, given.content, "the weight must be one number", "Return a float."
        )
