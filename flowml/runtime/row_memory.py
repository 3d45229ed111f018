"""Where the rows of shared tables, and contributions of rows, lie in memory that grows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from flowml.actions import Aggregate
from flowml.errors import DataError
from flowml.plan import Plan, PlanOperator, PlanTable
from flowml.runtime.arena import Arena, GrowingArray
from flowml.runtime.domain import Layouts
from flowml.runtime.row_index import DirectIndex, EveryKey, HashIndex, RowIndex, places_for
from flowml.runtime.row_store import WORDS, RowArrays, RowStore
from flowml.runtime.row_tables import RowSpec, fresh_states, initial_rows, rules_of
from flowml.types import Array

RESERVED, NOTES = WORDS, WORDS + 1
"""Words behind those of a row store: rows, and notes, that there is memory for."""
LONGEST_SHARE = 4
"""A contribution may name so many times the rows of the first batch."""
FEWEST_ROWS = 64


@dataclass(frozen=True)
class _Growth:
    """Asks for the memory of a store's arrays as rows come."""

    words: memoryview
    rows: tuple[GrowingArray, ...]
    notes: tuple[GrowingArray, ...]

    def __call__(self, rows: int, notes: int) -> None:
        for word, arrays, wanted in ((RESERVED, self.rows, rows), (NOTES, self.notes, notes)):
            before = self.words[word]
            if wanted > before:
                self.words[word] = min(a.make_sure(before, wanted) for a in arrays)


def row_store(
    fixed: Arena,
    grows: Arena,
    plan: Plan,
    table: PlanTable,
    spec: RowSpec,
    seed: int,
    most_written: int,
) -> RowStore:
    """Return the store of a table over two arenas.

    Parameters
    ----------
    most_written : int
        Rows that one write may name.
    """
    rules = rules_of(plan, table)
    where = f"table {table.name!r} ({table.site})"
    start = initial_rows(table, spec, seed)
    states = fresh_states(rules, where, spec.items, np.zeros((1, spec.items), spec.dtype))
    words = fixed.take(WORDS + 2, np.int64).data
    shape, noted = (spec.capacity, spec.items), (most_written, spec.items)
    keys = grows.growing((spec.capacity,), np.int64)
    rows = grows.growing(shape, spec.dtype)
    kept = {name: grows.growing(shape, state.dtype) for name, state in states.items()}
    slots, old = grows.growing((most_written,), np.int64), grows.growing(noted, spec.dtype)
    before = {name: grows.growing(noted, state.dtype) for name, state in states.items()}
    arrays = RowArrays(
        words,
        keys.array,
        rows.array,
        {name: grown.array for name, grown in kept.items()},
        slots.array,
        old.array,
        {name: grown.array for name, grown in before.items()},
    )
    growth = _Growth(words, (keys, rows, *kept.values()), (slots, old, *before.values()))
    fresh = partial(fresh_states, rules, where, spec.items)
    return RowStore(table.name, arrays, _index(fixed, spec, keys.array), start, fresh, growth)


def _index(fixed: Arena, spec: RowSpec, keys: Array) -> RowIndex:
    if spec.dense:
        return EveryKey()
    if spec.limit is not None:
        return DirectIndex(fixed.take(spec.limit, np.int64))
    return HashIndex(fixed.take(places_for(spec.capacity), np.int64), keys)


@dataclass(frozen=True)
class RowRoom:
    """Room for the rows of one contribution.

    Attributes
    ----------
    header : memoryview of float64
        Its last item: rows that there is memory for.
    keys, rows : GrowingArray
    """

    header: Any
    keys: GrowingArray
    rows: GrowingArray

    def put(self, keys: Array, rows: Array, where: str) -> None:
        """Copy keys and rows in.

        Raises
        ------
        DataError
            If there are more than there is room for.
        """
        n = len(keys)
        if n > len(self.keys.array):
            raise DataError(
                where,
                f"a step may bring {len(self.keys.array):,} rows, {LONGEST_SHARE} times those of "
                "the first batch",
                f"{n:,} rows",
                "Let batches have about as many ids, the first one too.",
            )
        before = int(self.header[-1])
        if n > before:
            self.header[-1] = float(
                min(array.make_sure(before, n) for array in (self.keys, self.rows))
            )
        self.keys.array[:n] = keys
        self.rows.array[:n] = rows

    def get(self, count: int) -> tuple[Array, Array]:
        """Return the first keys and rows, as they lie there."""
        return self.keys.array[:count], self.rows.array[:count]


def row_room(grows: Arena, header: Any, spec: RowSpec, longest: int) -> RowRoom:
    """Return room for ``longest`` rows of a table."""
    keys = grows.growing((longest,), np.int64)
    return RowRoom(header, keys, grows.growing((longest, spec.items), spec.dtype))


def ids_of_gate(gate: PlanOperator) -> tuple[str, int] | None:
    """Return the (operator, output) that names the rows that flow into a gate, if it has rows."""
    if isinstance(gate.action, Aggregate):
        return gate.inputs[0].ids
    if gate.writes and len(gate.inputs) > 1:
        return gate.inputs[1].source, gate.inputs[1].output
    return None


def longest_contribution(layouts: Layouts, ids: tuple[str, int], spec: RowSpec) -> int:
    """Return how many rows one contribution may bring, from the ids of the first batch."""
    found = layouts.get(ids)
    first = 0 if found is None else sum(found.sizes)
    longest = max(FEWEST_ROWS, LONGEST_SHARE * first)
    return longest if spec.limit is None else min(longest, spec.limit)
