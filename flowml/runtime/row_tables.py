"""Which tables are kept as rows, and what their rows are like."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from flowml.actions import Aggregate, SparseRows, Update
from flowml.data.share import random_seed
from flowml.errors import DataError, GraphError, PlanError
from flowml.initial_rows import InitialRows
from flowml.keyed_rows import Initial, KeyedRows
from flowml.layout import Layout
from flowml.plan import Plan, PlanOperator, PlanTable
from flowml.rules import Rule
from flowml.runtime.row_store import RowStore
from flowml.runtime.tablestate import initial
from flowml.types import Array

NO_KEY = 1 << 63
"""Keys are below it: they are int64, from 0."""


@dataclass(frozen=True)
class RowSpec:
    """What the rows of a table are like.

    Attributes
    ----------
    table : str
    shape : tuple of int
        Of one row.
    dtype : dtype
    limit : int or None
        Keys are below it.
    capacity : int
        Rows that the table has room for.
    dense : bool
        It was declared as an array, all of whose rows are there from the start.
    """

    table: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    limit: int | None
    capacity: int
    dense: bool

    @cached_property
    def items(self) -> int:
        """Items of one row."""
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.items * self.dtype.itemsize

    def check_ids(self, ids: Any, where: str) -> Array:
        """Return row ids as an array of int64, of their own shape.

        Raises
        ------
        DataError
            If they are no integers, or no keys of the table.
        """
        found = np.asarray(ids)
        if found.dtype.kind not in "iu":
            raise DataError(
                where,
                f"rows of table {self.table!r} are named by integers",
                f"dtype {found.dtype}",
                "Cast them in the operator that makes them.",
            )
        keys = found
        if found.dtype != np.int64 or not found.flags.c_contiguous:
            keys = np.ascontiguousarray(found, np.int64).reshape(found.shape)
        # Without a sign, what is below zero is above all limits: one pass finds both.
        if keys.size and int(np.maximum.reduce(keys.view(np.uint64), axis=None)) >= (
            self.limit or NO_KEY
        ):
            least, most = int(found.min()), int(found.max())
            end = "any key >= 0" if self.limit is None else f"keys from 0 to {self.limit - 1}"
            raise DataError(
                where,
                f"table {self.table!r} has {end}",
                f"key {least if least < 0 else most}",
                "Map the ids in an operator, or declare more rows.",
            )
        return keys


def is_row_table(plan: Plan, table: PlanTable) -> bool:
    """Tell whether a table is kept as rows: it is sparse, or some write names its rows."""
    if isinstance(table.init, SparseRows):
        return True
    return any(writes_rows(plan, plan.operator(name)) for name in table.writes)


def writes_rows(plan: Plan, writer: PlanOperator) -> bool:
    """Tell whether a write changes the rows that its values come with, and no others."""
    if len(writer.inputs) > 1:
        return True
    port = writer.inputs[0]
    if port.table:
        return False
    source = plan.operator(port.source)
    return isinstance(source.action, Aggregate) and source.inputs[0].ids is not None


def row_spec(table: PlanTable, layout: Layout | None) -> RowSpec:
    """Return what the rows of a row table are like.

    Parameters
    ----------
    layout : Layout
        Of the table, where it was declared as an array.
    """
    if isinstance(table.init, SparseRows):
        rows = table.init
        capacity = rows.capacity if rows.rows is None else min(rows.rows, rows.capacity)
        return RowSpec(
            table.name, (rows.dim,), np.dtype(rows.dtype), rows.rows, capacity, dense=False
        )
    assert layout is not None
    (leaf, *more) = layout.leaves
    if more or leaf.path or not leaf.shape:
        raise PlanError(
            f"table {table.name!r} ({table.site})",
            "rows can be named in a table that is one array with at least one axis",
            f"{len(layout.leaves)} leaves" if more else f"shape {leaf.shape}",
            "Make a table of each array.",
        )
    return RowSpec(table.name, leaf.shape[1:], leaf.dtype, leaf.shape[0], leaf.shape[0], dense=True)


def initial_rows(table: PlanTable, spec: RowSpec, run_seed: int) -> Initial:
    """Return what makes the rows of a table at first touch, a function of keys."""
    if not isinstance(table.init, SparseRows):
        return partial(_zeros, spec.items, spec.dtype.str)
    how = 0.0 if table.init.init is None else table.init.init
    if isinstance(how, KeyedRows):
        return how.at
    seed = random_seed(f"{table.name} {run_seed}")
    return InitialRows(how, spec.items, spec.dtype.name).seeded(seed)


def _zeros(items: int, dtype: str, keys: Array) -> Array:
    return np.zeros((len(keys), items), dtype)


def fresh_states(
    rules: Mapping[str, Rule], where: str, items: int, rows: Array
) -> dict[str, Array]:
    """Return the states of fresh rows, by "operator/name".

    Raises
    ------
    GraphError
        If a rule's state is no array like its parameters.
    """
    found = {}
    for operator, rule in rules.items():
        for name, state in rule.init(rows.reshape(-1)).items():
            array = np.asarray(state)
            if array.size != rows.size:
                raise GraphError(
                    where,
                    f"rule {rule.name} must keep arrays like its parameters to change rows",
                    f"{name} of shape {array.shape}",
                    "Use another rule for a table that is written by rows.",
                )
            found[f"{operator}/{name}"] = array.reshape(len(rows), items)
    return found


def rules_of(plan: Plan, table: PlanTable) -> dict[str, Rule]:
    """Return the rules that change a table, by operator."""
    found = {}
    for name in table.writes:
        action = plan.operator(name).action
        if isinstance(action, Update):
            found[name] = action.rule
    return found


def begin_rows(store: RowStore, plan: Plan, table: PlanTable, instance: int, run_seed: int) -> None:
    """Give a store the rows that its table begins with: all of an array, or those of a run."""
    if not isinstance(table.init, SparseRows):
        rows = np.asarray(initial(plan, table, instance, run_seed))
        store.fill(np.arange(len(rows)), rows.reshape(len(rows), math.prod(rows.shape[1:])))
    elif isinstance(table.init.init, KeyedRows):
        before = table.init.init
        store.fill(before.keys, before.rows.reshape(len(before), table.init.dim))
