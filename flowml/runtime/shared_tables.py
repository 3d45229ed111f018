"""The tables and answers that all replicas of a loose run share, as they lie in memory."""

from __future__ import annotations

import math

from flowml.keyed_rows import KeyedRows
from flowml.plan import Plan
from flowml.protocol.one_version import copy_one_version
from flowml.protocol.promise_rule import PromiseRule
from flowml.runtime.center_memory import CenterMemory
from flowml.runtime.domain import Layouts
from flowml.types import Array, Pytree

Buffers = tuple[Array, ...]


class SharedTables:
    """One process's view.

    Parameters
    ----------
    plan : Plan
    layouts : mapping of (operator, output) to Layout
    memory : CenterMemory
    rule : PromiseRule
        Knows which version of a table is the current one.
    """

    def __init__(
        self, plan: Plan, layouts: Layouts, memory: CenterMemory, rule: PromiseRule
    ) -> None:
        self._plan = plan
        self._layouts = layouts
        self._memory = memory
        self._rule = rule
        self._views = {
            name: [layouts[name, -1].views(v, writeable=False) for v in versions]
            for name, versions in memory.tables.items()
        }

    def table(self, name: str) -> Pytree:
        """Return a table as it is: a read-only view, or a copy of one that is kept as rows."""
        store = self._memory.rows.get(name)
        if store is None:
            return self._views[name][self._rule.version(name) % 2]
        return self._shaped(name, store.copy())

    def buffers(self, name: str) -> Buffers:
        """Return the flat buffers of a table as it is; of rows, a copy."""
        store = self._memory.rows.get(name)
        if store is not None:
            return (store.copy().rows.reshape(-1),)
        return self._memory.tables[name][self._rule.version(name) % 2]

    def rows(self, name: str, keys: Array, out: Array | None = None) -> Array:
        """Return a copy of rows, shape (n, items), of a table kept as rows or of a dense one.

        Parameters
        ----------
        out : ndarray, shape (n, items), optional
            Room for them.

        Notes
        -----
        Under the lock: a writer may have died with it in the middle of these rows.
        """
        store = self._memory.rows.get(name)
        if store is not None:
            store.mend()
            return store.read(keys, out)
        (leaf,) = self._layouts[name, -1].leaves
        found: Array = self.table(name).reshape(leaf.shape[0], -1).take(keys, 0, out, "clip")
        return found

    def answer(self, operator: str, output: int) -> tuple[float | None, Buffers]:
        """Return what a gate came to last, and its examples: 0, it is empty; None, it has none."""
        table = self._plan.operator(operator).writes
        if table is not None:
            return None, self.buffers(table)
        received = self._memory.answers[operator, output]
        examples = received.header[0]
        return None if math.isnan(examples) else examples, received.buffers

    def copy_of(self, name: str) -> Pytree:
        """Return a private copy of a table.

        Notes
        -----
        Needs no lock, which a replica that is stuck may hold. Rows that a write has begun to
        change are taken as they were before.
        """
        store = self._memory.rows.get(name)
        if store is not None:
            return self._shaped(name, store.copy())
        layout = self._layouts[name, -1]
        fresh = layout.allocate()

        def copy(version: int) -> Pytree:
            for source, target in zip(self._memory.tables[name][version % 2], fresh, strict=True):
                target[...] = source
            return layout.views(fresh)

        return copy_one_version(lambda: self._rule.version(name), copy)

    def _shaped(self, name: str, rows: KeyedRows) -> Pytree:
        """Return rows as the table was declared: all of an array, or rows by key."""
        spec = self._memory.specs[name]
        shaped = rows.rows.reshape(len(rows), *spec.shape)
        return shaped if spec.dense else KeyedRows(rows.keys, shaped, rows.initial)
