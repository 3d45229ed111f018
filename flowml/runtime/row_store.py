"""The rows of one table, written in place, a few at a time.

A dense table has two versions and a write makes all of the next one; here it touches the rows that
it names. What it overwrites is noted before, so that a writer who dies, or fails, in the middle
leaves a table that can be put right: whoever holds the lock next puts the noted rows back before it
reads or writes (``mend``); a copy, which needs no lock, takes them for those that replaced them.
New rows that the index has in part are let in: they are what a read makes of their keys.

Rows get their slots in the order of first touch (row_index.py); memory for them is asked for in
pieces, as they come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from flowml.errors import DataError
from flowml.keyed_rows import Initial, KeyedRows
from flowml.runtime.row_index import RowIndex
from flowml.types import Array

COUNT, NOTED, WRITES, ADDED = 0, 1, 2, 3
WORDS = 8


@dataclass(frozen=True)
class RowArrays:
    """Arrays over slots, and what is noted of a write; rows are flat here, shape (n, items).

    Attributes
    ----------
    words : memoryview of int64
        Rows that there are; rows noted; writes so far; rows that there will be when those which are
        being let in have places in the index.
    keys : ndarray of int64, shape (capacity,)
    rows : ndarray, shape (capacity, items)
    states : dict of str to ndarray like ``rows``
        The arrays of the rules' states.
    noted_slots : ndarray of int64, shape (longest,)
    noted_rows, noted_states
        Like ``rows`` and ``states``, for ``longest`` rows.
    """

    words: memoryview
    keys: Array
    rows: Array
    states: Mapping[str, Array]
    noted_slots: Array
    noted_rows: Array
    noted_states: Mapping[str, Array]


class RowStore:
    """Rows by key.

    Parameters
    ----------
    name : str
        The table, for messages.
    arrays : RowArrays
    index : RowIndex
    initial : callable of keys
        Makes rows at first touch.
    fresh_states : callable of rows
        Makes the states of fresh rows.
    reserve : callable of (int, int)
        Told before more rows than ever, or more notes than ever, are written; it may raise.
    """

    def __init__(
        self,
        name: str,
        arrays: RowArrays,
        index: RowIndex,
        initial: Initial,
        fresh_states: Callable[[Array], Mapping[str, Array]],
        reserve: Callable[[int, int], None] = lambda rows, notes: None,
    ) -> None:
        self.name = name
        self._arrays = arrays
        self._rows = _whole_rows(arrays.rows)
        self._states = {name: _whole_rows(state) for name, state in arrays.states.items()}
        self._index = index
        self._initial = initial
        self._fresh_states = fresh_states
        self._reserve = reserve

    @property
    def count(self) -> int:
        """Rows that have been touched by a write."""
        return self._arrays.words[COUNT]

    def read(self, keys: Array, out: Array | None = None) -> Array:
        """Return a copy of the rows of some keys, shape (n, items): ``out``, where it is given.

        Notes
        -----
        A read touches nothing: a row that nobody has written is made from its key each time.
        """
        slots = self._index.find(keys)
        found: Array = self._arrays.rows.take(slots, 0, out, "clip")
        if not self._index.has_all:
            absent = slots < 0
            if absent.any():
                found[absent] = self._initial(keys[absent])
        return found

    @property
    def writes(self) -> int:
        """The number of writes so far."""
        return self._arrays.words[WRITES]

    def open(self, keys: Array) -> tuple[Array, Array, dict[str, Array]]:
        """Return slots, rows and states of keys for a write, and note what they are.

        Several writes may be made before they are settled: a row is noted as it was before the
        first of them. The rows may be the note itself: they are only read. The states are copies.

        Parameters
        ----------
        keys : ndarray of int64, shape (n,)
            Each once.

        Raises
        ------
        DataError
            If the table has no room for so many rows.
        """
        arrays, words = self._arrays, self._arrays.words
        slots = self._index.find(keys)
        if not self._index.has_all:
            absent = slots < 0
            if absent.any():
                slots[absent] = self._insert(keys[absent])
        states = {name: state.take(slots, 0) for name, state in arrays.states.items()}
        noted = words[NOTED]
        if noted:
            rows: Array = arrays.rows.take(slots, 0)
            fresh = ~np.isin(slots, arrays.noted_slots[:noted])
            self._reserve(words[COUNT], noted + int(fresh.sum()))
            kept = {name: state[fresh] for name, state in states.items()}
            self._note(noted, slots[fresh], rows[fresh], kept)
        else:
            self._reserve(words[COUNT], len(slots))
            # "clip" lets NumPy write into the note at once; all slots are there.
            rows = arrays.rows.take(slots, 0, arrays.noted_rows[: len(slots)], "clip")
            self._note(0, slots, None, states)
        return slots, rows, states

    def _note(
        self, start: int, slots: Array, rows: Array | None, states: Mapping[str, Array]
    ) -> None:
        """Note rows and states behind those that are noted; no rows: they lie there already."""
        arrays, end = self._arrays, start + len(slots)
        arrays.noted_slots[start:end] = slots
        if rows is not None:
            arrays.noted_rows[start:end] = rows
        for name, state in states.items():
            arrays.noted_states[name][start:end] = state
        arrays.words[NOTED] = end

    def close(self, slots: Array, rows: Array, states: Mapping[str, Array]) -> None:
        """Write rows and states; ``settle`` forgets what was noted."""
        self._rows[slots] = _whole_rows(rows)
        for name, state in states.items():
            self._states[name][slots] = _whole_rows(state)
        self._arrays.words[WRITES] += 1

    def settle(self) -> None:
        """Let what was written since the last time be so for good."""
        self._arrays.words[NOTED] = 0

    def give_up(self) -> None:
        """Put back what writes have noted, whoever began them; harmless when nothing is."""
        arrays, n = self._arrays, self._arrays.words[NOTED]
        if n:
            slots = arrays.noted_slots[:n]
            arrays.rows[slots] = arrays.noted_rows[:n]
            for name, state in arrays.noted_states.items():
                arrays.states[name][slots] = state[:n]
            arrays.words[NOTED] = 0

    def mend(self) -> None:
        """Put right what a writer left who died; by the holder of the lock, before it goes on."""
        words = self._arrays.words
        if words[NOTED] or words[ADDED] > words[COUNT]:
            self._put_right()

    def _put_right(self) -> None:
        arrays, words = self._arrays, self._arrays.words
        if words[ADDED] > words[COUNT]:
            slots = np.arange(words[COUNT], words[ADDED])
            without = slots[self._index.find(arrays.keys[slots]) < 0]
            self._index.insert(arrays.keys[without], without)
            words[COUNT] = words[ADDED]
        self.give_up()

    def copy(self) -> KeyedRows:
        """Return a copy of all rows, as they were before a write that has not ended."""
        arrays, n, noted = self._arrays, self.count, self._arrays.words[NOTED]
        rows = arrays.rows[:n].copy()
        known = np.flatnonzero(arrays.noted_slots[:noted] < n)  # others may come meanwhile
        rows[arrays.noted_slots[known]] = arrays.noted_rows[known]
        order = np.argsort(arrays.keys[:n], kind="stable")
        return KeyedRows(arrays.keys[:n][order], rows[order], self._initial)

    def fill(self, keys: Array, rows: Array) -> None:
        """Let keys, each given once, have rows at the start."""
        slots = self._insert(keys)
        self._arrays.rows[slots] = rows

    def _insert(self, keys: Array) -> Array:
        arrays, count = self._arrays, self._arrays.words[COUNT]
        total = count + len(keys)
        if total > len(arrays.keys):
            raise DataError(
                f"table {self.name!r}",
                f"has room for {len(arrays.keys):,} rows",
                f"{total:,} keys so far",
                "Declare more: fl.sparse_table(..., capacity=).",
            )
        self._reserve(total, 0)
        slots = np.arange(count, total)
        rows = self._initial(keys)
        arrays.keys[count:total] = keys
        arrays.rows[count:total] = rows
        for name, state in self._fresh_states(rows).items():
            arrays.states[name][count:total] = state
        arrays.words[ADDED] = total
        self._index.insert(keys, slots)
        arrays.words[COUNT] = total
        return slots


def _whole_rows(rows: Array) -> Array:
    """Return rows as one item each, shape (n,): NumPy writes them faster so than item by item."""
    count, items = rows.shape
    if not items:
        return np.empty(count, "V0")
    return np.ascontiguousarray(rows).view(f"V{items * rows.itemsize}").reshape(count)
