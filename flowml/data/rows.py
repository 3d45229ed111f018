"""Rows: some examples, column by column; what every source yields and every batch is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from scipy.sparse import csr_array, issparse, vstack

from flowml.errors import DataError
from flowml.types import Array, aligned_empty

Column: TypeAlias = Any
"""A NumPy array of any shape whose first axis is the examples, or a scipy CSR array."""

KINDS = "biufcSUmM"


@dataclass(frozen=True, eq=False)
class Rows:
    """Some examples, column by column.

    Parameters
    ----------
    columns : tuple of ndarray or scipy.sparse.csr_array
        Equal first dimension, the examples.
    weight : ndarray, shape (n,), optional
        Sample weights, >= 0.
    single : bool
        One bare column: operators get ``columns[0]`` itself instead of a tuple of one.

    Raises
    ------
    DataError
        If the columns, or the weights, differ in length.

    Examples
    --------
    >>> rows = Rows((np.arange(6.0).reshape(3, 2), np.array([0, 1, 0])))
    >>> len(rows), rows.examples()
    (3, 3.0)
    >>> rows.take(np.array([2, 0])).value()[1]
    array([0, 0])
    """

    columns: tuple[Column, ...]
    weight: Array | None = None
    single: bool = False

    def __post_init__(self) -> None:
        if not self.columns:
            raise DataError("rows", "at least one column is needed", "none")
        lengths = [column.shape[0] for column in self.arrays]
        if len(set(lengths)) > 1:
            raise DataError(
                "rows",
                "all columns (X, y, weight) must have the same number of rows",
                " and ".join(map(str, lengths)),
                "Check how they were cut.",
            )

    def __len__(self) -> int:
        return int(self.columns[0].shape[0])

    @cached_property
    def arrays(self) -> tuple[Column, ...]:
        """The columns, and the weights as a last column where there are any."""
        return self.columns if self.weight is None else (*self.columns, self.weight)

    @cached_property
    def schema(self) -> tuple[Any, ...]:
        """What must agree between partitions: layout, dtype and shape of a row of each column."""
        kinds = tuple((issparse(a), np.dtype(a.dtype), tuple(a.shape[1:])) for a in self.arrays)
        return (kinds, self.weight is not None, self.single)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(
            a.data.nbytes + a.indices.nbytes + a.indptr.nbytes if issparse(a) else int(a.nbytes)
            for a in self.arrays
        )

    def examples(self) -> float:
        """Return how many examples these rows stand for: the sum of the weights, else the rows."""
        if self.weight is None:
            return float(len(self))
        return float(self.weight.sum(dtype=np.float64))

    def value(self) -> Any:
        """Return what operators get: ``X``, ``(X, y)`` or ``(X, y, weight)``."""
        if self.single and self.weight is None:
            return self.columns[0]
        return self.arrays

    def take(self, index: Array, out: Rows | None = None) -> Rows:
        """Gather rows by number.

        Parameters
        ----------
        index : ndarray of intp, shape (n,)
            Numbers in 0..len - 1; not checked where ``out`` is given.
        out : Rows, optional
            Room for n rows of the same schema; dense columns are gathered into it without an
            allocation. CSR columns are always new.

        Returns
        -------
        Rows
            C-contiguous copies, cache-line aligned.
        """
        if out is None:
            columns = [_gather(a, index) for a in self.arrays]
        else:
            columns = [
                a[index] if issparse(a) else a.take(index, 0, room, "clip")
                for a, room in zip(self.arrays, out.arrays, strict=True)
            ]
        return self._like(columns)

    def slice(self, start: int, stop: int) -> Rows:
        """Return rows ``start`` to ``stop - 1``: read-only views (CSR columns: copies)."""
        return self._like([read_only(a[start:stop]) for a in self.arrays])

    def compact(self) -> Rows:
        """Return the rows with every dense column C-contiguous; themselves if they are.

        Numbers that came over the network may begin at any byte, and NumPy copies the whole of
        such an array each time that it takes some rows of it: they are moved here, once.
        """
        if all(_is_compact(a) for a in self.arrays):
            return self
        return self._like([_compacted(a) for a in self.arrays])

    def aligned(self) -> Rows:
        """Return the rows, read-only, with dense columns that start on a cache line.

        A kernel may sum in another order on another alignment, so that rows which came over the
        network would give other last bits than rows that were dealt in this process.
        """
        return self._like([_aligned(a) for a in self.arrays])

    @staticmethod
    def concat(rows: Sequence[Rows]) -> Rows:
        """Put rows one after another; their schemas must agree.

        Raises
        ------
        DataError
            If there are none, or if columns, dtypes or shapes of a row differ.
        """
        if not rows:
            raise DataError("rows", "at least one block of rows is needed", "none")
        first = rows[0]
        for other in rows[1:]:
            check_schema(first, other, "rows")
        if len(rows) == 1:
            return first
        return first._like([_join(parts) for parts in zip(*(r.arrays for r in rows), strict=True)])

    def _like(self, arrays: Sequence[Column]) -> Rows:
        if self.weight is None:
            return Rows(tuple(arrays), None, self.single)
        return Rows(tuple(arrays[:-1]), arrays[-1], self.single)


def check_schema(first: Rows, other: Rows, name: str) -> None:
    """Refuse rows whose columns are not those of the rows before them.

    Raises
    ------
    DataError
        Naming ``name``, what was there before and what is there now.
    """
    if first.schema != other.schema:
        raise DataError(
            name,
            f"rows must look like the ones before them: {_describe(first)}",
            _describe(other),
            "Give every partition the same columns, dtypes and widths.",
        )


def rows_of(x: Any, y: Any = None, weight: Any = None, *, where: str = "arrays") -> Rows:
    """Make rows from array-likes, checked once here so that no batch has to be.

    Parameters
    ----------
    x : array-like or scipy sparse, shape (n, ...)
    y, weight : array-like, optional
        Targets, shape (n,) or (n, k), and sample weights, shape (n,), finite and >= 0.
    where : str
        What to call the rows in messages.

    Raises
    ------
    DataError
        For object or masked arrays, scalars, unequal lengths and weights that are no weights.
    """
    columns = tuple(
        as_column(c, f"{where}: {name}") for c, name in ((x, "X"), (y, "y")) if c is not None
    )
    if not columns:
        raise DataError(where, "X must be an array", "None")
    lengths = {c.shape[0] for c in columns}
    if len(lengths) > 1:
        raise DataError(
            where,
            "X and y must have the same number of rows",
            " and ".join(str(c.shape[0]) for c in columns),
            "Check how they were cut.",
        )
    weights = None if weight is None else _as_weight(weight, lengths.pop(), where)
    return Rows(columns, weights, single=y is None)


def as_column(values: Any, where: str) -> Column:
    """Return values as a column: any sparse array as CSR, anything else as a native ndarray."""
    if issparse(values):
        return csr_array(values)
    if isinstance(values, np.ma.MaskedArray):
        raise DataError(
            where,
            "values must be plain numbers",
            "a masked array",
            "Fill it first: values.filled(...).",
        )
    array = np.asarray(values)
    if array.ndim == 0:
        raise DataError(
            where, "an array with one row an example is needed", f"a {type(values).__name__}"
        )
    if array.dtype.kind not in KINDS:
        raise DataError(
            where,
            "values must be numbers",
            f"dtype {array.dtype}",
            "Convert first, for example values.astype('float32').",
        )
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def read_only(column: Column) -> Column:
    """Return a view that cannot be written through."""
    if issparse(column):
        parts = (read_only(column.data), read_only(column.indices), read_only(column.indptr))
        return csr_array(parts, shape=column.shape, copy=False)
    view = column.view()
    view.flags.writeable = False
    return view


def freeze(column: Column) -> Column:
    """Make a new CSR array read-only in place; cheaper than a view of it."""
    for part in (column.data, column.indices, column.indptr):
        part.flags.writeable = False
    return column


def room_for(count: int, like: Column) -> Array:
    """Return uninitialised room for ``count`` rows of a dense column, cache-line aligned."""
    shape = (count, *like.shape[1:])
    return aligned_empty(int(np.prod(shape)), like.dtype).reshape(shape)


def join_sparse(parts: Sequence[Column]) -> Column:
    """Stack CSR arrays; a single one is passed through."""
    return parts[0] if len(parts) == 1 else csr_array(vstack(parts, format="csr"))


def _join(parts: Sequence[Column]) -> Column:
    if issparse(parts[0]):
        return join_sparse(parts)
    out = room_for(sum(len(p) for p in parts), parts[0])
    return np.concatenate(parts, axis=0, out=out)


def _gather(column: Column, index: Array) -> Column:
    if issparse(column):
        return column[index]
    return np.take(column, index, axis=0, out=room_for(len(index), column), mode="raise")


def _parts(column: Column) -> tuple[Array, ...]:
    return (column.data, column.indices, column.indptr) if issparse(column) else (column,)


def _is_compact(column: Column) -> bool:
    return all(part.flags.c_contiguous and part.flags.aligned for part in _parts(column))


def _compacted(column: Column) -> Column:
    parts = tuple(np.require(part, requirements=("C", "A")) for part in _parts(column))
    made = csr_array(parts, shape=column.shape, copy=False) if issparse(column) else parts[0]
    return read_only(made)


def _aligned(column: Column) -> Column:
    if issparse(column):
        return read_only(column)
    if column.ctypes.data % 64 or not column.flags.c_contiguous:
        room = room_for(len(column), column)
        room[...] = column
        column = room
    return read_only(column)


def _as_weight(weight: Any, rows: int, where: str) -> Array:
    column = as_column(weight, f"{where}: weight")
    if issparse(column):
        raise DataError(where, "weights must be a dense array", "a sparse one")
    array = np.asarray(column)
    if array.shape != (rows,):
        raise DataError(where, f"weight must have shape ({rows},)", str(array.shape))
    if array.dtype.kind not in "biuf":
        raise DataError(where, "weights must be real numbers", f"dtype {array.dtype}")
    if array.dtype.kind != "f":
        array = array.astype(np.float64)
    good = np.isfinite(array) & (array >= 0)
    if not good.all():
        row = int(np.argmin(good))
        raise DataError(where, "weights must be finite and >= 0", f"{array[row]} at row {row}")
    return array


def _describe(rows: Rows) -> str:
    kinds = rows.schema[0]
    names = ", ".join(
        f"{'CSR ' if sparse else ''}{dtype} ({', '.join(['n', *map(str, shape)])})"
        for sparse, dtype, shape in kinds
    )
    return names + (" with weights" if rows.weight is not None else "")
