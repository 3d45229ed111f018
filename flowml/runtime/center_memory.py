"""Where the shared part of a loose run lies: words of the promise rule, tables, queues, rule state.

::

    words      of protocol/promise_rule.py
    queues     for each gate, replica and turn: examples, weight, staleness; flat buffers
    tables     two versions of each global table: the next one is written, then counted
    states     the arrays of each rule's state

A table is committed by counting its version, after its last byte is written: whoever dies before
leaves the version that is read as it was. A rule's state has one version; it is of no use to
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
from flowml.runtime.domain import Layouts, layout_of_port
from flowml.runtime.loose_plan import LoosePlan
from flowml.runtime.tablestate import RuleState, initial, whole
from flowml.types import Array, aligned_empty

ALIGN = 64
HEADER = 3
"""float64 items before a contribution: examples, weight, staleness of the read behind it."""


@dataclass(frozen=True)
class Slot:
    """A contribution of one replica that a gate has not taken yet."""

    header: Any
    """Items of an array of float64, read and written as Python numbers: a memoryview."""
    buffers: tuple[Array, ...]


@dataclass
class _Cursor:
    """Hands out parts of a block, or counts how many bytes they need."""

    block: Array | None
    at: int = 0

    def take(self, count: int, dtype: np.dtype[Any]) -> Array:
        start, nbytes = self.at, count * dtype.itemsize
        self.at += -(-nbytes // ALIGN) * ALIGN
        if self.block is None:
            return np.empty(0, dtype)
        return self.block[start : start + nbytes].view(dtype)

    def buffers(self, layout: Layout) -> tuple[Array, ...]:
        return tuple(self.take(s, d) for s, d in zip(layout.sizes, layout.dtypes, strict=True))


@dataclass
class CenterMemory:
    """The shared part of a loose run over a block of bytes; the same map in every process."""

    words: Array
    queues: dict[tuple[int, int], list[Slot]] = field(default_factory=dict)
    """(gate, replica) -> turns."""
    tables: dict[str, list[tuple[Array, ...]]] = field(default_factory=dict)
    rules: dict[str, RuleState] = field(default_factory=dict)
    """By update operator."""
    nbytes: int = 0

    @classmethod
    def over(
        cls, loose: LoosePlan, layouts: Layouts, seed: int, block: Array | None
    ) -> CenterMemory:
        """Map a block; None only counts the bytes that are needed, in ``nbytes``."""
        cursor = _Cursor(block)
        plan = loose.plan
        size = PromiseRule.size(plan.replicas, len(loose.gates))
        found = cls(cursor.take(size, np.dtype(np.int64)))
        for number, gate in enumerate(loose.gates):
            layout = layout_of_port(plan, layouts, gate.operator.inputs[0])
            for rank in range(plan.replicas):
                found.queues[number, rank] = [_slot(cursor, layout) for _ in range(loose.queue)]
        for table in plan.tables:
            if table.scope == GLOBAL:
                layout = layouts[table.name, -1]
                found.tables[table.name] = [cursor.buffers(layout) for _ in range(2)]
        for operator in plan.steps:
            if operator.scope == GLOBAL and isinstance(operator.action, Update):
                found.rules[operator.name] = _rule(cursor, loose, layouts, seed, operator)
        found.nbytes = cursor.at
        return found

    @classmethod
    def private(cls, loose: LoosePlan, layouts: Layouts, seed: int) -> CenterMemory:
        """Return the map over memory of this process, filled with what a run begins with."""
        block = aligned_empty(cls.over(loose, layouts, seed, None).nbytes, np.dtype(np.uint8))
        block[:] = 0
        found = cls.over(loose, layouts, seed, block)
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


def _slot(cursor: _Cursor, layout: Layout) -> Slot:
    header = cursor.take(HEADER, np.dtype(np.float64))
    return Slot(header.data, cursor.buffers(layout))


def _rule(
    cursor: _Cursor, loose: LoosePlan, layouts: Layouts, seed: int, operator: PlanOperator
) -> RuleState:
    assert isinstance(operator.action, Update)
    layout = layouts[str(operator.writes), -1]
    state = RuleState(operator.action.rule, layout, whole(layout))
    buffers = layout.allocate()
    layout.write(initial(loose.plan, loose.plan.table(str(operator.writes)), 0, seed), buffers)
    shapes = _started(state, buffers)
    state.states = optree.tree_map(
        lambda a: cursor.take(a.size, a.dtype).reshape(a.shape if cursor.block is not None else -1),
        shapes,
    )
    return state


def _started(rule: RuleState, buffers: tuple[Array, ...]) -> Any:
    """Return a fresh state for some parameters."""
    made = RuleState(rule.rule, rule.layout, rule.parts)
    made.start(buffers)
    return made.states


def _copy_into(target: Array, source: Array) -> None:
    target[...] = source
