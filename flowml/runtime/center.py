"""What the replicas of a loose run share: tables, queues, and what fires when one delivers.

Every change happens inside ``read``, ``deliver`` or ``leave``, one at a time, and is a function of
the order of these calls: the serial executor makes them in turn, the resident one under a lock,
and a replay in the order that was recorded.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from flowml.actions import Aggregate, Map, Until
from flowml.layout import Layout, layout_of
from flowml.plan import PlanOperator
from flowml.protocol.promise_rule import PromiseRule
from flowml.protocol.promise_specs import Firing
from flowml.rules import At
from flowml.runtime.calls import (
    Spot,
    call,
    call_map,
    is_true,
    returned,
)
from flowml.runtime.center_memory import CenterMemory
from flowml.runtime.center_sums import Sum
from flowml.runtime.center_writes import Update
from flowml.runtime.contributions import Contribution, Queues
from flowml.runtime.domain import Layouts, layout_of_port
from flowml.runtime.gate_writing import GateWriting, check_layout
from flowml.runtime.loose_plan import Gate, LoosePlan
from flowml.runtime.reads import SharedReads
from flowml.runtime.row_memory import ids_of_gate
from flowml.runtime.shared_tables import SharedTables
from flowml.runtime.values import EMPTY, Value, agreed_examples

Made = Mapping[int, Contribution]
"""By gate."""


class Center:
    """One process's view of what all replicas share.

    Parameters
    ----------
    loose : LoosePlan
    layouts : mapping of (operator, output) to Layout
    memory : CenterMemory
        Private, or shared by the processes of a host.
    stops_on_nonfinite : bool
    worker : str
        For messages.
    enter : callable of (int, int, int)
        Told (replica, index of the operator in the plan, step) of each operator that a replica's
        delivery sets off, for those who watch for silence.
    """

    def __init__(
        self,
        loose: LoosePlan,
        layouts: Layouts,
        memory: CenterMemory,
        stops_on_nonfinite: bool = True,
        worker: str = "driver",
        enter: Callable[[int, int, int], None] = lambda replica, operator, step: None,
    ) -> None:
        self.loose = loose
        specs = tuple(gate.spec for gate in loose.gates)
        self.rule = PromiseRule(memory.words, loose.teams, specs, loose.tables, loose.queue)
        self.tables = SharedTables(loose.plan, layouts, memory, self.rule)
        self.reads = SharedReads(loose, layouts, self.tables, self.rule)
        self._memory = memory
        self._layouts = layouts
        self._worker = worker
        self._enter, self._by = enter, 0
        self._index = {o.name: n for n, o in enumerate(loose.plan.steps)}
        self._queues = Queues(memory, loose.queue, tuple(spec.name for spec in specs))
        self._incoming = [self._layout_of_gate(gate) for gate in loose.gates]
        self._sums = {n: self._sum(n, gate) for n, gate in enumerate(loose.gates) if _sums(gate)}
        self._writing = GateWriting(
            loose,
            layouts,
            memory,
            self.rule,
            self._incoming,
            self._sums,
            worker,
            checks=stops_on_nonfinite,
        )
        self._before = tuple(_read_after_write(gate) for gate in loose.gates)
        self._brought: tuple[int, int, Made] = -1, -1, {}
        """(member, stamp, what it brings) while it is delivered: it need not wait in a queue."""

    def _layout_of_gate(self, gate: Gate) -> Layout:
        """Return the layout of what flows in; of one row where that is rows."""
        ids = ids_of_gate(gate.operator)
        if ids is None:
            return layout_of_port(self.loose.plan, self._layouts, gate.operator.inputs[0])
        spec = self._memory.specs[gate.spec.tables[0]]
        return layout_of(np.zeros(spec.items, spec.dtype))

    def _sum(self, number: int, gate: Gate) -> Sum:
        action = gate.operator.action
        assert isinstance(action, Aggregate)
        return Sum(
            action.reduction,
            self.loose.plan.tree(gate.operator, 0),
            self.loose.teams[gate.spec.team].members,
            self._incoming[number],
            rows=ids_of_gate(gate.operator) is not None,
        )

    # -- the events ------------------------------------------------------------------------------

    def deliver(self, team: int, member: int, made: Made, by: int, *, skips: bool = False) -> int:
        """Take in what a member made in its step, and do what fires.

        Parameters
        ----------
        made : mapping of gate to Contribution
            Without those whose edge has nothing in this step.
        by : int
            The replica that does it.
        skips : bool
            The member has moved over the step.

        Returns
        -------
        int
            Number of the event.
        """
        stamp, self._by = self.rule.teams[team].clock(member), by
        late = {gate: self.rule.gates[gate].is_late(stamp) for gate in made}
        self._brought = member, stamp, made
        event = self.rule.deliver(team, member, skips=skips)
        taken = self._fire_all()
        self._brought = -1, -1, {}
        for gate, given in made.items():
            dropped = late[gate] and (skips or not self.rule.gates[gate].spec.carries)
            if not dropped and (gate, member, stamp) not in taken:
                self._queues.put(gate, member, stamp, given, late=late[gate])
        return event

    def leave(self, kind: str, member: int, by: int) -> int:
        """Let a member be waited for no longer, and do what fires without it."""
        self._by = by
        event = self.rule.leave(kind, member)
        self._fire_all()
        return event

    # -- what fires ------------------------------------------------------------------------------

    def _given(self, gate: int, member: int, stamp: int) -> Contribution:
        who, when, made = self._brought
        if (who, when) == (member, stamp) and gate in made:
            return made[gate]
        late = self.rule.gates[gate].is_late(stamp)
        return self._queues.get(gate, member, stamp, late=late)

    def _fire_all(self) -> set[tuple[int, int, int]]:
        """Do what fires; return (gate, member, stamp) of all that was taken."""
        taken = set()
        for firing in self.rule.firings():
            gate = self.loose.gates[firing.gate]
            (self._push if gate.spec.push else self._aggregate)(gate, firing)
            taken |= {(firing.gate, member, stamp) for member, stamp in firing.taken}
        return taken

    def _push(self, gate: Gate, firing: Firing) -> None:
        """Apply contributions one after another; what is read changes once, at the end."""
        given: list[Update] = []
        late = 0
        for member, stamp in firing.taken:
            found = self._given(firing.gate, member, stamp)
            if found.empty:
                continue
            applied = self.rule.updates(gate.spec.tables[0]) + len(given)
            at = At(stamp, applied, found.staleness, member, found.counted, found.read or None)
            given.append((found.buffers, found.keys, at))
            late = max(late, found.staleness)
        if not given:
            return
        before = self._tables_before(firing) if gate.behind else {}
        self._enter(self._by, self._index[gate.operator.name], firing.taken[-1][1])
        self._writing.write(gate, firing, gate.operator, given, self._given)
        if gate.behind:
            moved = Value(self.tables.table(gate.spec.tables[0]), None)
            self._behind(gate, firing, {(gate.operator.name, 0): moved}, late, before)

    def _aggregate(self, gate: Gate, firing: Firing) -> None:
        self._enter(self._by, self._index[gate.operator.name], firing.number)
        taken = {q: self._given(firing.gate, *q) for q in firing.taken}
        present = {q: g for q, g in taken.items() if not g.empty and g.weight != 0.0}
        spot = partial(Spot, gate.operator, 0, firing.number, self._worker)
        value = EMPTY
        if present:
            out = call(spot, self._sums[firing.gate].take, firing.taken, present)
            total = sum(given.examples for given in present.values())
            value = Value(out, None if math.isnan(total) else total)
        late = max((given.staleness for given in present.values()), default=0)
        self._keep_answer(gate.operator, [value])
        before = self._tables_before(firing)
        self._behind(gate, firing, {(gate.operator.name, 0): value}, late, before)

    def _tables_before(self, firing: Firing) -> dict[str, Value]:
        """Return copies of the tables that are read after this firing has written them.

        Notes
        -----
        A step reads a table as it was before the step, wherever in it the reader stands.
        """
        names = self._before[firing.gate]
        return {name: Value(copy.deepcopy(self.tables.table(name)), None) for name in names}

    def _behind(
        self,
        gate: Gate,
        firing: Firing,
        made: dict[tuple[str, int], Value],
        late: int,
        before: Mapping[str, Value],
    ) -> None:
        for operator in gate.behind:
            spot = partial(Spot, operator, 0, firing.number, self._worker)
            values = [
                self._table_now(p.source, before) if p.table else made[p.source, p.output]
                for p in operator.inputs
            ]
            self._enter(self._by, self._index[operator.name], firing.number)
            if isinstance(operator.action, Map):
                found = _mapped(operator, values, spot)
                self._keep_answer(operator, found)
                for output, value in enumerate(found):
                    made[operator.name, output] = value
            elif isinstance(operator.action, Until):
                if not values[0].empty and is_true(
                    spot, operator.action.function, values[0].content
                ):
                    self.rule.request_stop(ended=True)
            else:
                self._writing.write_value(gate, firing, operator, values[0], late, self._given)
                made[operator.name, 0] = Value(self.tables.table(str(operator.writes)), None)

    def _table_now(self, name: str, before: Mapping[str, Value]) -> Value:
        return before[name] if name in before else Value(self.tables.table(name), None)

    def _keep_answer(self, operator: PlanOperator, values: Sequence[Value]) -> None:
        """Keep what a gate came to for those who receive it."""
        for output, value in enumerate(values):
            received = self._memory.answers.get((operator.name, output))
            if received is None:
                continue
            received.header[0] = 0.0
            if not value.empty:
                layout = self._layouts[operator.name, output]
                spot = Spot(operator, 0, 0, self._worker)
                check_layout(
                    layout, value.content, spot, "what replicas receive must keep its structure"
                )
                layout.write(value.content, received.buffers)
                received.header[0] = math.nan if value.examples is None else value.examples


def _sums(gate: Gate) -> bool:
    return isinstance(gate.operator.action, Aggregate)


def _read_after_write(gate: Gate) -> tuple[str, ...]:
    """Return the tables that an operator of a gate reads after an earlier one has written them."""
    written, found = {gate.operator.writes}, set()
    for operator in gate.behind:
        found |= {p.source for p in operator.inputs if p.table and p.source in written}
        written.add(operator.writes)
    return tuple(sorted(found))


def _mapped(operator: PlanOperator, values: list[Value], spot: Callable[[], Spot]) -> list[Value]:
    assert isinstance(operator.action, Map)
    try:
        examples = agreed_examples(values)
    except ValueError as error:
        raise returned(spot(), str(error), "") from error
    if examples == 0:
        return [EMPTY] * operator.outputs
    contents = [v.content for v in values]
    made = call_map(spot, operator.action.function, contents, operator.outputs)
    return [Value(c, examples) for c in made]
