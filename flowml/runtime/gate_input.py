"""What one member brings to one gate: kept over a period, filtered, encoded, flattened."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from flowml.actions import Aggregate, Update
from flowml.codecs.contract import Payload, nbytes
from flowml.keyed_rows import coalesce, each_once, last_of_each
from flowml.layout import Layout
from flowml.plan import Firing, PlanPort
from flowml.runtime.calls import Spot, number_of, returned
from flowml.runtime.contributions import NOTHING, Contribution
from flowml.runtime.domain import layout_of_port
from flowml.runtime.edge_codec import EdgeCodec, decoded, encoded
from flowml.runtime.loose_plan import LoosePlan
from flowml.runtime.rank import Rank
from flowml.runtime.row_memory import ids_of_gate
from flowml.runtime.row_tables import RowSpec
from flowml.runtime.step_ids import StepIds
from flowml.runtime.value_filter import SizeFilter
from flowml.runtime.values import EMPTY, Kept, Value, copied
from flowml.types import Array

Buffers = tuple[Array, ...]


class GateInput:
    """The sender's end of the edges into one gate.

    Parameters
    ----------
    loose : LoosePlan
    number : int
        Of the gate.
    rank : Rank
    firing : Firing
        Of the local plan.
    specs : mapping of str to RowSpec
        Of the shared tables that are kept as rows.
    read : mapping of str to flat buffers
        The rank's copies of the tables that it reads whole.
    step_ids : StepIds

    Attributes
    ----------
    moved : int
        Bytes of the last contribution, as a network would carry them.
    payloads : list of Payload
        What a codec made of it, leaf by leaf; without one, empty.
    """

    def __init__(
        self,
        loose: LoosePlan,
        number: int,
        rank: Rank,
        firing: Firing,
        specs: Mapping[str, RowSpec],
        read: Mapping[str, Buffers],
        step_ids: StepIds,
    ) -> None:
        gate = loose.gates[number]
        self.gate = gate
        self.moved = 0
        self.payloads: list[Payload] = []
        self._loose = loose
        self._rank = rank
        self._firing = firing
        self._step_ids = step_ids
        ports = dict(enumerate(gate.operator.inputs))
        whole = Firing(loose.plan)  # the local plan does not have the periods of gates
        self._kept = {n: Kept(p.keep) for n, p in ports.items() if p.every > 1}
        self._held = {n: EMPTY for n, p in ports.items() if whole.holds(p, gate.operator)}
        port = gate.operator.inputs[0]
        self._ids = ids_of_gate(gate.operator)
        self._spec = specs[gate.spec.tables[0]] if self._ids is not None else None
        self._layout = None if self._spec else layout_of_port(loose.plan, rank.layouts, port)
        self._nbytes = self._layout.nbytes if self._layout is not None else 0
        member = rank.plan.instance_of(loose.teams[gate.spec.team].kind, rank.number)
        edge = f"{port.source} -> {gate.operator.name}"
        self._codec = (
            EdgeCodec(port.codec, self._layout, edge, member, rank.order.seed)
            if port.codec is not None and self._layout is not None
            else None
        )
        table = gate.spec.tables[0] if gate.spec.tables else ""
        self._filter = None if port.threshold is None else SizeFilter(port.threshold, port.keep)
        self._parameter = read.get(table, ())
        action = gate.operator.action
        self._seen = read[table] if isinstance(action, Update) and action.rule.reads else ()
        self._registers = self._steady_registers()
        self._spot: Callable[[int], Spot] = lambda step: Spot(
            loose.plan.operator(port.source), rank.number, step, rank.worker
        )

    def _steady_registers(self) -> tuple[int, ...] | None:
        """Return where the inputs lie in every step, if they are new there in every step."""
        ports, local = self.gate.operator.inputs, self._loose.local
        steady = self._firing.is_steady and not self._kept and not self._held
        if not steady or any(local.operator(p.source).writes is not None for p in ports):
            return None
        return tuple(self._rank.slots[p.source, p.output] for p in ports)

    @property
    def unsent(self) -> tuple[str, ...]:
        """The edges, of this gate, that keep something which they have not sent."""
        kept = {number for number, kept in self._kept.items() if kept.seen}
        if self._filter is not None and self._filter.holds:
            kept.add(0)
        return tuple(self._loose.plan.edge_name(self.gate.operator, n) for n in sorted(kept))

    def give(self, step: int, staleness: int) -> Contribution | None:
        """Return what the gate gets of a step; None where its edge has nothing in it."""
        if self._registers is not None:
            registers = self._rank.registers
            values = [registers[slot] for slot in self._registers]
        else:
            inputs = enumerate(self.gate.operator.inputs)
            values = [self._input(n, p, step) for n, p in inputs]
            if not self.gate.spec.delivers(step):
                return None
        value = values[0]
        if self._filter is not None:
            value = self._filter.send(value, self._parameter)
        self.moved = 0
        if value.empty:
            return NOTHING
        examples = math.nan if value.examples is None else value.examples
        weight = self._weight([value, *values[1:]], step)
        if self._spec is not None:
            keys, rows = self._keyed(value, values, step)
            return Contribution(examples, weight, (rows,), keys, (), staleness)
        flat = self._flat(value, step)
        self.moved += sum(buffer.nbytes for buffer in self._seen)
        return Contribution(examples, weight, flat, None, self._seen, staleness)

    # -- the value -----------------------------------------------------------------------------

    def _flat(self, value: Value, step: int) -> Buffers:
        """Return the flat buffers of a value, decoded if the edge has a codec."""
        layout = self._layout
        assert layout is not None
        self.moved = self._nbytes
        made = self._rank.backing.get(id(value.content))
        if made is not None and self._codec is None:
            return made
        self._check(layout, value, step)
        if self._codec is not None:
            value = self._codec.send(value)
            self.moved, self.payloads = self._codec.moved, self._codec.payloads
        return layout.flat(value.content)

    def _check(self, layout: Layout, value: Value, step: int) -> None:
        wrong = layout.mismatch(value.content)
        if wrong is not None:
            raise returned(
                self._spot(step),
                "its value must have the same structure, shapes and dtypes in every replica and "
                "step",
                wrong,
                "Return arrays of one shape.",
            )

    def _keyed(self, value: Value, values: list[Value], step: int) -> tuple[Array, Array]:
        """Return the rows of a value, each key once."""
        spec, ids = self._spec, self._ids
        assert spec is not None
        assert ids is not None
        where = f"edge {self.gate.operator.inputs[0].source} -> {self.gate.operator.name}"
        found = values[1] if self.gate.operator.writes else self._made(*ids, step)
        keys = self._step_ids.keys(spec, found.content, where)
        rows = np.asarray(value.content)
        if rows.shape != keys.shape + spec.shape or rows.dtype != spec.dtype:
            raise returned(
                self._spot(step),
                f"rows of table {spec.table!r} must have shape {keys.shape + spec.shape}, "
                f"{spec.dtype}: one for each id",
                f"shape {rows.shape}, {rows.dtype}",
                "Cast or reshape them before.",
            )
        keys, flat = keys.reshape(-1), rows.reshape(keys.size, spec.items)
        if not each_once(keys):
            adds = isinstance(self.gate.operator.action, Update | Aggregate)
            keys, flat = coalesce(keys, flat) if adds else last_of_each(keys, flat)
        self.moved = keys.nbytes + flat.nbytes
        codec = self.gate.operator.inputs[0].codec
        if codec is not None:  # without feedback: rows come and go, so there is no residual
            payload = encoded(codec, flat)
            self.moved, self.payloads = keys.nbytes + nbytes(payload), [payload]
            flat = decoded(codec, payload, flat)
        return keys, flat

    # -- periods -------------------------------------------------------------------------------

    def _input(self, number: int, port: PlanPort, step: int) -> Value:
        """Return what an input has in a step: semantics.md section 3."""
        found: Value | None = None
        if self._firing.fires(self._loose.local.operator(port.source), step):
            found = self._made(port.source, port.output, step)
        if number in self._kept:
            if found is not None:
                self._kept[number].put(found)
            found = self._kept[number].take() if self._firing.delivers(port, step) else None
        if number in self._held:
            if found is not None:
                self._held[number] = Value(copied(found.content), found.examples)
            found = self._held[number]
        return EMPTY if found is None else found

    def _made(self, source: str, output: int, step: int) -> Value:
        local, rank = self._loose.local, self._rank
        table = local.operator(source).writes
        if table is None:
            return rank.registers[rank.slots[source, output]]
        names = local.table(table).writes
        writers = [local.operator(n) for n in names[: names.index(source) + 1]]
        return rank.tables[table].value(sum(self._firing.fires(w, step) for w in writers))

    def _weight(self, values: list[Value], step: int) -> float:
        action, value = self.gate.operator.action, values[0]
        if not isinstance(action, Aggregate) or action.weight == "equal":
            return 1.0
        if action.weight == "examples":
            return 1.0 if value.examples is None else value.examples
        if values[1].empty:
            return 0.0
        spot = Spot(self.gate.operator, self._rank.number, step, self._rank.worker)
        return number_of(
            lambda: spot, values[1].content, "the weight must be one number", "Return a float."
        )
