"""What the replicas of a loose run share: tables, queues, and what fires when one delivers.

Every change happens inside ``read``, ``deliver`` or ``leave``, one at a time, and is a function of
the order of these calls: the serial executor makes them in turn, the resident one under a lock,
and a replay in the order that was recorded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from flowml.actions import Aggregate, Map, Until
from flowml.errors import FlowmlError
from flowml.keyed_rows import KeyedRows
from flowml.layout import Layout, layout_of
from flowml.plan import PlanOperator
from flowml.protocol.promise_rule import PromiseRule
from flowml.protocol.promise_specs import Firing
from flowml.rules import At
from flowml.runtime.calls import (
    Spot,
    all_finite,
    call,
    check_outputs,
    diverged,
    is_true,
    nonfinite,
    placed_errors,
    returned,
)
from flowml.runtime.center_memory import CenterMemory
from flowml.runtime.center_sums import Sum
from flowml.runtime.center_writes import (
    Buffers,
    DenseWriter,
    NotFinite,
    RowWriter,
    Update,
    Writer,
)
from flowml.runtime.contributions import Contribution, Queues
from flowml.runtime.domain import Layouts, layout_of_port
from flowml.runtime.loose_plan import Gate, LoosePlan
from flowml.runtime.row_memory import ids_of_gate
from flowml.runtime.values import EMPTY, Value, agreed_examples
from flowml.types import Array, Pytree

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
        self._memory = memory
        self._layouts = layouts
        self._worker = worker
        self._enter, self._by = enter, 0
        self._index = {o.name: n for n, o in enumerate(loose.plan.steps)}
        self._queues = Queues(memory, loose.queue, tuple(spec.name for spec in specs))
        self._views = {
            name: [layouts[name, -1].views(v, writeable=False) for v in versions]
            for name, versions in memory.tables.items()
        }
        self._incoming = [self._layout_of_gate(gate) for gate in loose.gates]
        self._sums = {n: self._sum(n, gate) for n, gate in enumerate(loose.gates) if _sums(gate)}
        self._writers = {
            operator.name: self._writer(operator, checks=stops_on_nonfinite)
            for gate in loose.gates
            for operator in (gate.operator, *gate.behind)
            if operator.writes
        }
        self._backing = dict(self._flat_sums())
        self._brought: tuple[int, int, Made] = -1, -1, {}
        """(member, stamp, what it brings) while it is delivered: it need not wait in a queue."""

    def _flat_sums(self) -> Iterator[tuple[tuple[str, int], Buffers]]:
        """Yield for the writes of a sum its value's identity, and its buffers: it is not copied."""
        for number, found in self._sums.items():
            view, buffers = found.backing
            for operator in self.loose.gates[number].behind:
                layout = self._layouts.get((str(operator.writes), -1))
                if view is not None and layout == self._incoming[number]:
                    yield (operator.name, id(view)), buffers

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

    def _writer(self, operator: PlanOperator, *, checks: bool) -> Writer:
        table = str(operator.writes)
        if table in self._memory.rows:
            return RowWriter(operator, self._memory.rows[table], checks=checks)
        rule = self._memory.rules.get(operator.name)
        version = partial(self.rule.version, table)
        return DenseWriter(self._memory.tables[table], version, rule, checks=checks)

    # -- the events ------------------------------------------------------------------------------

    def copy_tables(self, targets: Mapping[str, Buffers], known: dict[str, int]) -> int:
        """Copy the tables that have changed into a replica's own buffers.

        Parameters
        ----------
        targets : mapping of table to flat buffers
        known : dict of table to version
            What the buffers hold; brought up to date.

        Returns
        -------
        int
            Bytes that were copied.
        """
        moved = 0
        for name, buffers in targets.items():
            version = self.rule.version(name)
            if known.get(name) != version:
                for source, target in zip(self._buffers(name), buffers, strict=True):
                    target[...] = source
                    moved += target.nbytes
                known[name] = version
        return moved

    def rows_of(self, table: str, keys: Array) -> Array:
        """Return a copy of rows of a table that is kept as rows, or of a dense one."""
        store = self._memory.rows.get(table)
        if store is not None:
            return store.read(keys)
        (leaf,) = self._layouts[table, -1].leaves
        found: Array = self.table(table).reshape(leaf.shape[0], -1).take(keys, 0)
        return found

    def receive(self, operator: str, output: int, targets: Buffers) -> float | None:
        """Copy what a gate came to last into a replica's own buffers.

        Returns
        -------
        float or None
            The examples that it stands for; None: it carries none.
        """
        table = self.loose.plan.operator(operator).writes
        if table is not None:
            for source, target in zip(self._buffers(table), targets, strict=True):
                target[...] = source
            return None
        received = self._memory.answers[operator, output]
        examples = received.header[0]
        if examples != 0.0:
            for source, target in zip(received.buffers, targets, strict=True):
                target[...] = source
        return None if math.isnan(examples) else examples

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

    # -- tables ----------------------------------------------------------------------------------

    def table(self, name: str) -> Pytree:
        """Return a table as it is: a read-only view, or a copy of one that is kept as rows."""
        store = self._memory.rows.get(name)
        if store is None:
            return self._views[name][self.rule.version(name) % 2]
        return self._shaped(name, store.copy())

    def copy_of(self, name: str) -> Pytree:
        """Return a private copy of a table.

        Notes
        -----
        Needs no lock, which a replica that is stuck may hold: the version that is read is written
        again only after the next one has been counted, and then it is copied once more. Rows that
        a write has begun to change are taken as they were before.
        """
        store = self._memory.rows.get(name)
        if store is not None:
            return self._shaped(name, store.copy())
        layout, version = self._layouts[name, -1], -1
        fresh = layout.allocate()
        while version != self.rule.version(name):
            version = self.rule.version(name)
            for source, target in zip(self._memory.tables[name][version % 2], fresh, strict=True):
                target[...] = source
        return layout.views(fresh)

    def _shaped(self, name: str, rows: KeyedRows) -> Pytree:
        """Return rows as the table was declared: all of an array, or rows by key."""
        spec = self._memory.specs[name]
        shaped = rows.rows.reshape(len(rows), *spec.shape)
        return shaped if spec.dense else KeyedRows(rows.keys, shaped, rows.initial)

    def _buffers(self, name: str) -> Buffers:
        store = self._memory.rows.get(name)
        if store is not None:
            return (store.copy().rows.reshape(-1),)
        return self._memory.tables[name][self.rule.version(name) % 2]

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
        self._enter(self._by, self._index[gate.operator.name], firing.taken[-1][1])
        self._write(gate, firing, gate.operator, given)
        if gate.behind:
            moved = Value(self.table(gate.spec.tables[0]), None)
            self._behind(gate, firing, {(gate.operator.name, 0): moved}, late)

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
        self._behind(gate, firing, {(gate.operator.name, 0): value}, late)

    def _behind(
        self, gate: Gate, firing: Firing, made: dict[tuple[str, int], Value], late: int
    ) -> None:
        for operator in gate.behind:
            spot = partial(Spot, operator, 0, firing.number, self._worker)
            values = [
                Value(self.table(p.source), None) if p.table else made[p.source, p.output]
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
                self._written(gate, firing, operator, values[0], late)
                made[operator.name, 0] = Value(self.table(str(operator.writes)), None)

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
                _check(layout, value.content, spot, "what replicas receive must keep its structure")
                layout.write(value.content, received.buffers)
                received.header[0] = math.nan if value.examples is None else value.examples

    def _written(
        self, gate: Gate, firing: Firing, operator: PlanOperator, value: Value, late: int
    ) -> None:
        if value.empty:
            return
        table = str(operator.writes)
        at = At(firing.number, self.rule.updates(table), late, 0, value.examples or 0.0)
        if isinstance(value.content, KeyedRows):
            given: Update = (value.content.rows,), value.content.keys, at
        else:
            given = self._flat(operator, firing, value.content), None, at
        self._write(gate, firing, operator, [given])

    def _flat(self, operator: PlanOperator, firing: Firing, content: Pytree) -> Buffers:
        """Return the flat buffers of what is written."""
        table = str(operator.writes)
        layout = self._layouts[table, -1]
        known = self._backing.get((operator.name, id(content)))
        if known is not None:
            return known
        spot = Spot(operator, 0, firing.number, self._worker)
        _check(layout, content, spot, f"what is written to table {table!r} must have its")
        return layout.flat(content)

    def _write(
        self,
        gate: Gate,
        firing: Firing,
        operator: PlanOperator,
        given: Sequence[Update],
    ) -> None:
        at = given[-1][2]
        try:
            with placed_errors(partial(Spot, operator, at.writer, at.step, self._worker)):
                self._writers[operator.name].write(given)
        except FlowmlError as error:
            if isinstance(error.__cause__, NotFinite):
                raise self._not_finite(gate, firing, operator, error.__cause__.buffers) from None
            raise
        self.rule.commit(str(operator.writes), len(given))

    def _not_finite(
        self, gate: Gate, firing: Firing, operator: PlanOperator, new: Buffers
    ) -> FlowmlError:
        """Return the error for a write that is not finite: it names who brought that, if anyone."""
        source = self.loose.plan.operator(gate.operator.inputs[0].source)
        for member, stamp in firing.taken:
            given = self._given(firing.gate, member, stamp)
            if not given.empty and not all_finite([b.reshape(-1) for b in given.buffers]):
                rank = self.loose.plan.ranks_of(source.scope, member)[0]
                return diverged(
                    Spot(source, rank, stamp, self._worker),
                    "its value must be finite",
                    _nonfinite(self._incoming[firing.gate], given.buffers),
                )
        table = str(operator.writes)
        member, stamp = firing.taken[-1]
        rank = self.loose.plan.ranks_of(source.scope, member)[0]
        layout = self._layouts.get((table, -1), self._incoming[firing.gate])
        return diverged(
            Spot(operator, rank, stamp, self._worker),
            f"what this write makes of table {table!r} must be finite",
            _nonfinite(layout, new),
        )


def _sums(gate: Gate) -> bool:
    return isinstance(gate.operator.action, Aggregate)


def _check(layout: Layout, content: Pytree, spot: Spot, what: str) -> None:
    wrong = layout.mismatch(content)
    if wrong is not None:
        raise returned(
            spot, f"{what} structure, shapes and dtypes", wrong, "Cast or reshape it before."
        )


def _nonfinite(layout: Layout, buffers: Buffers) -> str:
    if all(b.size == size for b, size in zip(buffers, layout.sizes, strict=True)):
        return nonfinite(layout, buffers)
    return f"{sum(int((~np.isfinite(b)).sum()) for b in buffers)} numbers of its rows that are not"


def _mapped(operator: PlanOperator, values: list[Value], spot: Callable[[], Spot]) -> list[Value]:
    assert isinstance(operator.action, Map)
    try:
        examples = agreed_examples(values)
    except ValueError as error:
        raise returned(spot(), str(error), "") from error
    if examples == 0:
        return [EMPTY] * operator.outputs
    result = call(spot, operator.action.function, *[v.content for v in values])
    return [Value(c, examples) for c in check_outputs(spot, result, operator.outputs)]
