"""Where the row of a key lies: for tables that have all rows, small keys, and any keys.

Slots are given out in the order of first touch, so a table needs memory for the rows that it has,
not for those it might have. All searches are over arrays of keys at once.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from flowml.protocol.failures import ProtocolError
from flowml.types import Array

FIBONACCI = np.uint64(0x9E3779B97F4A7C15)
"""2**64 over the golden ratio: multiplying by it spreads neighbouring keys (Knuth, TAOCP 6.4)."""


class RowIndex(Protocol):
    """From keys to slots."""

    @property
    def has_all(self) -> bool:
        """Whether every key has a slot."""

    def find(self, keys: Array) -> Array:
        """Return the slots of keys, -1 for those that have none; int64, the shape of ``keys``."""

    def insert(self, keys: Array, slots: Array) -> None:
        """Let keys that have none, each given once, have those slots."""


class EveryKey:
    """Keys that are slots themselves: of a table all of whose rows are there from the start."""

    has_all = True

    def find(self, keys: Array) -> Array:
        """Return the keys, the same array."""
        return keys

    def insert(self, keys: Array, slots: Array) -> None:
        """Make sure that the rows of an array get the slots of their numbers."""
        if not np.array_equal(keys, slots):
            raise ProtocolError(
                "row index", "each key must be its own slot", "others", "This is a fault in flowml."
            )


class DirectIndex:
    """One place for each key from 0 to ``len(places) - 1``.

    Parameters
    ----------
    places : ndarray of int64, shape (rows,)
        Zeroed at the start: slot + 1.
    """

    has_all = False

    def __init__(self, places: Array) -> None:
        self._places = places

    def find(self, keys: Array) -> Array:
        """Return the slots of keys, -1 for those that have none."""
        found: Array = self._places.take(keys)
        found -= 1
        return found

    def insert(self, keys: Array, slots: Array) -> None:
        """Let keys have slots."""
        self._places[keys] = slots + 1


class HashIndex:
    """Open addressing with linear probing, at most half full.

    Parameters
    ----------
    places : ndarray of int64, shape (a power of two,)
        Zeroed at the start: slot + 1.
    keys : ndarray of int64, shape (capacity,)
        The key of each slot; written before the slot is inserted.
    """

    has_all = False

    def __init__(self, places: Array, keys: Array) -> None:
        self._places = places
        self._keys = keys
        self._mask = len(places) - 1
        self._shift = np.uint64(64 - (len(places).bit_length() - 1))

    def find(self, keys: Array) -> Array:
        """Return the slots of keys, -1 for those that have none."""
        at = self._first(keys)
        found = self._places.take(at) - 1
        pending = np.flatnonzero((found >= 0) & (self._keys.take(found) != keys))
        while len(pending):
            at[pending] = (at[pending] + 1) & self._mask
            slots = self._places.take(at[pending]) - 1
            found[pending] = slots
            wrong = (slots >= 0) & (self._keys.take(slots) != keys[pending])
            pending = pending[wrong]
        return found

    def insert(self, keys: Array, slots: Array) -> None:
        """Let keys have slots: those that meet at one place go on, but the first."""
        at = self._first(keys)
        while len(slots):
            free = np.flatnonzero(self._places.take(at) == 0)
            _, first = np.unique(at[free], return_index=True)
            won = free[first]
            self._places[at[won]] = slots[won] + 1
            lost = np.ones(len(slots), bool)
            lost[won] = False
            at, slots = (at[lost] + 1) & self._mask, slots[lost]

    def _first(self, keys: Array) -> Array:
        with np.errstate(over="ignore"):
            return ((keys.astype(np.uint64) * FIBONACCI) >> self._shift).astype(np.int64)


def places_for(capacity: int) -> int:
    """Return how many places a hash index of so many rows has.

    Examples
    --------
    >>> places_for(1000), places_for(1024)
    (2048, 2048)
    """
    return 2 << max(0, capacity - 1).bit_length()
