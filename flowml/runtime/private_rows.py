"""A table that is kept as rows, in memory of one process: a replica's, or the serial executor's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flowml.actions import SparseRows, Update
from flowml.keyed_rows import KeyedRows, coalesce, last_of_each
from flowml.layout import Layout, layout_of
from flowml.plan import Plan, PlanOperator, PlanTable
from flowml.rules import At
from flowml.runtime.arena import Arena
from flowml.runtime.center_writes import RowWriter
from flowml.runtime.row_memory import row_store
from flowml.runtime.row_store import RowStore
from flowml.runtime.row_tables import RowSpec, begin_rows, is_row_table, row_spec
from flowml.runtime.tablestate import TableInstance, initial, make_instance
from flowml.runtime.values import Value
from flowml.types import Array, Pytree


@dataclass
class PrivateRows:
    """Rows of one instance of a table.

    Attributes
    ----------
    spec : RowSpec
    store : RowStore
    layout : Layout or None
        Of the whole table, where it was declared as an array.
    """

    spec: RowSpec
    store: RowStore
    layout: Layout | None
    rules: dict[str, Any] = field(default_factory=dict)
    """Nothing: the states of rules lie beside the rows."""
    versions: Sequence[tuple[Array, ...]] = ()
    current: tuple[Array, ...] = ()
    latest: tuple[Array, ...] = ()

    @classmethod
    def make(cls, plan: Plan, table: PlanTable, instance: int, run_seed: int) -> PrivateRows:
        """Return an instance at its initial value."""
        layout = None
        if not isinstance(table.init, SparseRows):
            layout = layout_of(initial(plan, table, instance, run_seed))
        spec = row_spec(table, layout)
        counted = Arena(), Arena()
        row_store(*counted, plan, table, spec, run_seed, spec.capacity)
        fixed, grows = (Arena(np.zeros(a.nbytes, np.uint8)) for a in counted)
        store = row_store(fixed, grows, plan, table, spec, run_seed, spec.capacity)
        begin_rows(store, plan, table, instance, run_seed)
        return cls(spec, store, layout)

    def at(self, ids: Any, where: str) -> Array:
        """Return the rows of some ids, aligned with them, read-only."""
        keys = self.spec.check_ids(ids, where)
        found = self.store.read(keys.reshape(-1)).reshape(keys.shape + self.spec.shape)
        found.flags.writeable = False
        return found

    def view(self, _: tuple[Array, ...] = ()) -> Pytree:
        """Return a copy of all rows: an array if it was declared as one."""
        rows = self.store.copy()
        shaped = rows.rows.reshape(len(rows), *self.spec.shape)
        shaped.flags.writeable = False
        return shaped if self.spec.dense else KeyedRows(rows.keys, shaped, rows.initial)

    def value(self, writes: int = 0) -> Value:
        """Return all rows as a value."""
        return Value(self.view(), None)

    def copy(self) -> Pytree:
        """Return a private copy of the rows as they were after the last committed step."""
        found = self.view()
        return np.array(found) if self.spec.dense else found

    def commit(self, writes: int) -> None:
        """Let what the step wrote be so for good."""
        self.store.settle()

    def keyed(self, operator: PlanOperator, ids: Any, rows: Any, where: str) -> tuple[Array, Array]:
        """Return each key once, with what a write brings for it."""
        keys, spec = self.spec.check_ids(ids, where), self.spec
        flat = np.asarray(rows)
        if flat.shape != keys.shape + spec.shape or flat.dtype != spec.dtype:
            raise ValueError(
                f"rows of shape {keys.shape + spec.shape}, {spec.dtype}, one for each id, are "
                f"written, not shape {flat.shape}, {flat.dtype}"
            )
        flat = flat.reshape(*keys.shape, spec.items)
        adds = isinstance(operator.action, Update)
        return coalesce(keys, flat) if adds else last_of_each(keys, flat)

    def write(
        self, operator: PlanOperator, keys: Array, rows: Array, at: At, *, checks: bool
    ) -> None:
        """Change rows; ``commit`` makes it for good."""
        writer = RowWriter(operator, self.store, checks=checks, settles=False)
        writer.write([((rows.reshape(len(keys), self.spec.items),), keys, at)])


def table_instance(
    plan: Plan, table: PlanTable, instance: int, run_seed: int
) -> TableInstance | PrivateRows:
    """Return an instance of a table for the serial executor, as rows or whole."""
    made = PrivateRows.make if is_row_table(plan, table) else make_instance
    return made(plan, table, instance, run_seed)
