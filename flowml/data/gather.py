"""Room for one batch, used again and again."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import issparse

from flowml.data.rows import Column, Rows, check_schema, freeze, join_sparse, read_only, room_for
from flowml.types import Array


class BatchRoom:
    """Arrays that a batch is gathered into, and read-only views of them for operators.

    Dense columns are gathered without an allocation; CSR columns are new each time. The first
    rows that come fix dtypes and widths.

    Parameters
    ----------
    capacity : int
        Rows of a full batch.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._like: Rows | None = None
        self._room: list[Array | None] = []
        self._sparse: list[list[Column]] = []
        self._full: Rows | None = None
        self._count = 0

    def shape_for(self, rows: Rows) -> None:
        """Allocate for rows like these; the first call counts."""
        self._like = rows.take(np.empty(0, np.intp))  # a view would keep the partition alive
        self._room = [None if issparse(a) else room_for(self._capacity, a) for a in rows.arrays]
        self._sparse = [[] for _ in rows.arrays]
        if all(room is not None for room in self._room):
            self._full = self._shown(self._capacity)

    def whole(self, rows: Rows, index: Array) -> tuple[Any, float]:
        """Gather one full batch of dense rows: the path that most steps take.

        Notes
        -----
        ``rows`` must be those that ``shape_for`` saw. With NumPy's ``mode="clip"`` the rows are
        copied straight into ``out``; with "raise" they would go through a temporary.
        """
        if self._full is None or len(index) != self._capacity:
            self.add(rows, index)
            return self.finish()
        for column, room in zip(rows.arrays, self._room, strict=True):
            column.take(index, 0, room, "clip")
        return self._full.value(), self._full.examples()

    def add(self, rows: Rows, index: Array, name: str = "rows") -> None:
        """Gather a part of the batch behind the parts before.

        Raises
        ------
        DataError
            If the rows do not look like the first that came.
        """
        if self._like is None:
            self.shape_for(rows)
        assert self._like is not None
        check_schema(self._like, rows, name)
        start, self._count = self._count, self._count + len(index)
        for column, room, parts in zip(rows.arrays, self._room, self._sparse, strict=True):
            if room is None:
                parts.append(column[index])
            else:
                column.take(index, 0, room[start : self._count], "clip")

    def finish(self) -> tuple[Any, float]:
        """Return what was added, as operators get it, with its number of examples."""
        rows = self._shown(self._count)
        self._count = 0
        for parts in self._sparse:
            parts.clear()
        return rows.value(), rows.examples()

    def _shown(self, count: int) -> Rows:
        assert self._like is not None
        arrays = [
            freeze(join_sparse(parts)) if room is None else read_only(room[:count])
            for room, parts in zip(self._room, self._sparse, strict=True)
        ]
        if self._like.weight is None:
            return Rows(tuple(arrays), None, self._like.single)
        return Rows(tuple(arrays[:-1]), arrays[-1], self._like.single)
