"""Sources in the driver's memory: arrays, and partitions given one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dask.base import tokenize
from scipy.sparse import issparse

from flowml.data.rows import Rows, check_schema, rows_of
from flowml.errors import DataError


@dataclass(frozen=True, eq=False)
class MemoryPartition:
    """A partition that is in memory already."""

    held: Rows
    name: str

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.held)

    def read(self) -> Rows:
        """Return the rows."""
        return self.held


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Arrays, dealt to the replicas by one permutation."""

    held: Rows
    name: str
    dealt: bool = True

    def rows(self) -> Rows:
        """Return everything."""
        return self.held

    def partitions(self) -> tuple[MemoryPartition, ...]:
        """Return everything as one partition."""
        return (MemoryPartition(self.held, self.name),)

    def token(self) -> str:
        """Return a hash of the contents, taken anew so that a change in place is seen."""
        return rows_token(self.held)


@dataclass(frozen=True, eq=False)
class PartsSource:
    """Partitions in the driver's memory, given one by one."""

    parts: tuple[MemoryPartition, ...]
    name: str
    dealt: bool = False

    def rows(self) -> Rows:
        """Return everything."""
        return Rows.concat([part.held for part in self.parts])

    def partitions(self) -> tuple[MemoryPartition, ...]:
        """Return the parts."""
        return self.parts

    def token(self) -> str:
        """Return a hash of the contents."""
        return f"parts-{tokenize([rows_token(part.held) for part in self.parts])}"


def arrays(X: Any, y: Any = None, weight: Any = None) -> ArraySource:
    """Give arrays as a source; one seeded permutation deals their rows to the replicas.

    Parameters
    ----------
    X : array-like or scipy sparse, shape (n, ...)
        Not copied. Sparse arrays are taken as CSR.
    y : array-like, shape (n,) or (n, k), optional
        Targets. Without them operators get ``X`` alone instead of ``(X, y)``.
    weight : array-like, shape (n,), optional
        Sample weights, finite and >= 0; operators get them as the last item.

    Raises
    ------
    DataError
        If lengths differ, or an array holds anything but numbers.

    Examples
    --------
    >>> source = arrays([[0.0, 1.0], [2.0, 3.0]], [0, 1])
    >>> source.name, len(source.rows())
    ('arrays(2 x 2)', 2)
    """
    rows = rows_of(X, y, weight)
    shape = " x ".join(str(n) for n in rows.columns[0].shape)
    return ArraySource(rows, f"arrays({shape})")


def parts(items: Sequence[Any]) -> PartsSource:
    """Give partitions one by one; partition p belongs to replica p mod K.

    Parameters
    ----------
    items : sequence of X, (X,), (X, y) or (X, y, weight)
        All with the same columns and dtypes; empty ones are allowed.

    Raises
    ------
    DataError
        If there are none, or if they do not look alike.
    """
    made: list[MemoryPartition] = []
    for number, item in enumerate(items):
        name = f"parts[{number}]"
        columns = item if isinstance(item, tuple) else (item,)
        if not 1 <= len(columns) <= 3:
            raise DataError(
                name, "a part is X, (X, y) or (X, y, weight)", f"a tuple of {len(columns)}"
            )
        rows = rows_of(*columns, where=name)
        if made:
            check_schema(made[0].held, rows, name)
        made.append(MemoryPartition(rows, name))
    if not made:
        raise DataError("parts", "at least one partition is needed", "none")
    return PartsSource(tuple(made), f"parts({len(made)})")


def rows_token(rows: Rows) -> str:
    """Return a hash of the contents of rows."""
    contents = [(a.data, a.indices, a.indptr, a.shape) if issparse(a) else a for a in rows.arrays]
    return f"rows-{tokenize(contents, rows.schema)}"
