"""Where the shared part of a loose run lies: words of the promise rule, tables, queues, rule state.

::

    words      of protocol/promise_rule.py
    tables     two versions of each dense table: the next one is written, then counted
    rows       of each table that is kept as rows (row_store.py), in a block that grows
    states     the arrays of each rule's state
    queues     for each gate, member and turn: a header; flat buffers, or keys and rows
    answers    what gates came to, where a replica receives it in the same step

A dense table is committed by counting its version, after its last byte is written: whoever dies
before leaves the version that is read as it was. A rule's state has one version; it is of no use to
anyone after a death, which ends the run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optree

from flowml.actions import GLOBAL, Update
from flowml.layout import Layout
from flowml.plan import PlanOperator
from flowml.protocol.promise_rule import PromiseRule
from flowml.runtime.arena import Arena
from flowml.runtime.domain import Layouts, layout_of_port
from flowml.runtime.loose_plan import Gate, LoosePlan
from flowml.runtime.row_memory import (
    RowRoom,
    ids_of_gate,
    longest_contribution,
    row_room,
    row_store,
)
from flowml.runtime.row_store import RowStore
from flowml.runtime.row_tables import RowSpec, begin_rows, is_row_table, row_spec
from flowml.runtime.tablestate import RuleState, initial, whole
from flowml.types import Array

EXAMPLES, WEIGHT, STALENESS, ROWS = range(4)
HEADER = 5
"""float64 items before a contribution: the four above, and rows that there is memory for."""


@dataclass(frozen=True)
class Slot:
    """A contribution of one member that a gate has not taken yet."""

    header: Any
    """A memoryview: items of an array of float64, read and written as Python numbers."""
    buffers: tuple[Array, ...]
    room: RowRoom | None = None
    """Keys and rows, instead of ``buffers``."""
    read: tuple[Array, ...] = ()
    """What the writer had read, where a rule wants to know."""


@dataclass
class Received:
    """What a gate came to last, for those who receive it in the same step."""

    header: Any
    buffers: tuple[Array, ...]


@dataclass
class CenterMemory:
    """The shared part of a loose run over two blocks of bytes; the same map in every process."""

    words: Array
    tables: dict[str, list[tuple[Array, ...]]] = field(default_factory=dict)
    specs: dict[str, RowSpec] = field(default_factory=dict)
    """Of the tables that are kept as rows."""
    rows: dict[str, RowStore] = field(default_factory=dict)
    rules: dict[str, RuleState] = field(default_factory=dict)
    """By update operator, of dense tables."""
    queues: dict[tuple[int, int], list[Slot]] = field(default_factory=dict)
    """(gate, member) -> turns, and one for what has missed its quorum."""
    answers: dict[tuple[str, int], Received] = field(default_factory=dict)
    """By (operator, output)."""
    nbytes: int = 0
    """Of the block that is all there from the start."""
    growing_bytes: int = 0
    """Addresses of the block that grows."""

    @classmethod
    def over(
        cls,
        loose: LoosePlan,
        layouts: Layouts,
        seed: int,
        fixed: Arena | None = None,
        grows: Arena | None = None,
    ) -> CenterMemory:
        """Map two blocks; without arenas, only count the bytes that are needed."""
        return _Mapping(loose, layouts, seed, fixed or Arena(), grows or Arena()).run()

    @classmethod
    def private(cls, loose: LoosePlan, layouts: Layouts, seed: int) -> CenterMemory:
        """Return the map over memory of this process, filled with what a run begins with."""
        counted = cls.over(loose, layouts, seed)
        arenas = [Arena(_zeroed(n)) for n in (counted.nbytes, counted.growing_bytes)]
        found = cls.over(loose, layouts, seed, *arenas)
        found.fill(loose, layouts, seed)
        return found

    def fill(self, loose: LoosePlan, layouts: Layouts, seed: int) -> None:
        """Write what a run begins with: tables and states of rules. Once a run."""
        plan = loose.plan
        for name, versions in self.tables.items():
            layouts[name, -1].write(initial(plan, plan.table(name), 0, seed), versions[0])
        for name, rule in self.rules.items():
            table = str(plan.operator(name).writes)
            fresh = _started(rule, self.tables[table][0])
            optree.tree_map(_copy_into, rule.states, fresh)
        for name, store in self.rows.items():
            begin_rows(store, plan, plan.table(name), 0, seed)


@dataclass
class _Mapping:
    """One walk over a plan that gives everything its place."""

    loose: LoosePlan
    layouts: Layouts
    seed: int
    fixed: Arena
    grows: Arena

    def run(self) -> CenterMemory:
        loose, plan = self.loose, self.loose.plan
        gates = [gate.spec for gate in loose.gates]
        size = PromiseRule.size(loose.teams, gates, loose.tables)
        found = CenterMemory(self.fixed.take(size, np.int64))
        shared = [plan.table(name) for name in loose.tables]
        found.specs = {
            table.name: row_spec(table, self.layouts.get((table.name, -1)))
            for table in shared
            if is_row_table(plan, table)
        }
        for table in shared:
            if table.name in found.specs:
                spec = found.specs[table.name]
                most = self._most_written(table.name, spec)
                found.rows[table.name] = row_store(
                    self.fixed, self.grows, plan, table, spec, self.seed, most
                )
            else:
                layout = self.layouts[table.name, -1]
                found.tables[table.name] = [self.fixed.buffers(layout) for _ in range(2)]
        for operator in plan.steps:
            if operator.scope == GLOBAL and operator.writes in found.tables:
                if isinstance(operator.action, Update):
                    found.rules[operator.name] = self._rule(operator)
        for number, gate in enumerate(loose.gates):
            for member in range(loose.teams[gate.spec.team].members):
                found.queues[number, member] = [
                    self._slot(gate, found.specs) for _ in range(loose.queue + 1)
                ]
        for key, layout in answered(loose, self.layouts).items():
            header = self.fixed.take(1, np.float64).data
            found.answers[key] = Received(header, self.fixed.buffers(layout))
        found.nbytes, found.growing_bytes = self.fixed.nbytes, self.grows.nbytes
        return found

    def _most_written(self, table: str, spec: RowSpec) -> int:
        """Return how many rows one firing may write to a table: those of all members, at most."""
        most = 1
        for gate in self.loose.gates:
            ids = ids_of_gate(gate.operator)
            if table in gate.spec.tables and ids is not None:
                longest = longest_contribution(self.layouts, ids, spec)
                members = self.loose.teams[gate.spec.team].members
                most = max(most, longest * members * (1 if gate.spec.push else self.loose.queue))
        return min(most, spec.capacity)

    def _slot(self, gate: Gate, specs: dict[str, RowSpec]) -> Slot:
        header = self.fixed.take(HEADER, np.float64).data
        ids = ids_of_gate(gate.operator)
        if ids is not None:
            spec = specs[gate.spec.tables[0]]
            longest = longest_contribution(self.layouts, ids, spec)
            return Slot(header, (), row_room(self.grows, header, spec, longest))
        layout = layout_of_port(self.loose.plan, self.layouts, gate.operator.inputs[0])
        action = gate.operator.action
        reads = isinstance(action, Update) and action.rule.reads
        buffers = self.fixed.buffers(layout)
        return Slot(header, buffers, None, self.fixed.buffers(layout) if reads else ())

    def _rule(self, operator: PlanOperator) -> RuleState:
        assert isinstance(operator.action, Update)
        plan, table = self.loose.plan, str(operator.writes)
        layout = self.layouts[table, -1]
        state = RuleState(operator.action.rule, layout, whole(layout))
        buffers = layout.allocate()
        layout.write(initial(plan, plan.table(table), 0, self.seed), buffers)
        shapes = _started(state, buffers)
        state.states = optree.tree_map(lambda a: self.fixed.take(a.shape, a.dtype), shapes)
        return state


def answered(loose: LoosePlan, layouts: Layouts) -> dict[tuple[str, int], Layout]:
    """Return what replicas receive in the same step and is no table, with its layout."""
    found = {}
    for read in loose.reads:
        operator = loose.plan.operator(read.source) if read.answer else None
        if operator is not None and operator.writes is None:
            for output in range(operator.outputs):
                found[operator.name, output] = layouts[operator.name, output]
    return found


def _zeroed(nbytes: int) -> Array:
    """Return zeros that start on a cache line; what is never touched takes no memory."""
    raw = np.zeros(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes]


def _started(rule: RuleState, buffers: tuple[Array, ...]) -> Any:
    """Return a fresh state for some parameters."""
    made = RuleState(rule.rule, rule.layout, rule.parts)
    made.start(buffers)
    return made.states


def _copy_into(target: Array, source: Array) -> None:
    target[...] = source
