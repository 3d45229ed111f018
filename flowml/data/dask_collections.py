"""Dask arrays and dataframes, block by block, whatever the sizes of their blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from dask.base import compute, is_dask_collection, tokenize
from distributed import futures_of

from flowml.data.convert import label_dtype_of, number_dtype, to_dtype
from flowml.data.files import close_names
from flowml.data.rows import Rows, rows_of
from flowml.errors import DataError
from flowml.types import Array

RECHUNK = "Rechunk it: X.rechunk({1: -1})."


@dataclass(frozen=True)
class AssembleArrays:
    """Put the blocks of one partition side by side; runs where the blocks are."""

    name: str

    def __call__(self, *blocks: Any) -> Rows:
        """Return rows of ``(X,)`` or ``(X, y)`` blocks."""
        return rows_of(*blocks, where=self.name)


@dataclass(frozen=True)
class AssembleFrame:
    """Cut one pandas partition in features and labels; runs where the partition is."""

    name: str
    wanted: tuple[Hashable, ...]
    label: Hashable
    dtype: np.dtype[Any]
    label_dtype: np.dtype[Any]

    def __call__(self, frame: Any) -> Rows:
        """Return rows of a pandas DataFrame."""
        features = np.empty((len(frame), len(self.wanted)), self.dtype)
        for at, name in enumerate(self.wanted):
            features[:, at] = self._numbers(frame[name], self.dtype)
        if self.label is None:
            return Rows((features,), single=True)
        return Rows((features, self._numbers(frame[self.label], self.label_dtype)))

    def _numbers(self, series: Any, dtype: np.dtype[Any]) -> Array:
        where = f"{self.name}, column {series.name!r}"
        if isinstance(series.dtype, np.dtype):
            values = series.to_numpy()
        else:  # nullable dtypes: a missing value becomes NaN
            values = series.to_numpy(dtype=np.float64, na_value=np.nan)
        number_dtype(values.dtype, where)
        return to_dtype(values, dtype, lambda row: f"{where}, row {row} of a partition")


Assemble = Callable[..., Rows]


@dataclass(frozen=True, eq=False)
class DaskPartition:
    """One row of blocks, computed where it is read.

    Attributes
    ----------
    held : tuple of distributed.Future
        Those of a persisted collection: its blocks are names that only its cluster knows.
    """

    blocks: tuple[Any, ...]
    assemble: Assemble
    name: str
    rows: int | None
    held: tuple[Any, ...] = ()

    def read(self) -> Rows:
        """Compute the blocks: in this thread, or on the cluster that holds them."""
        return self.assemble(*_computed(list(self.blocks), self.held))


@dataclass(frozen=True, eq=False)
class DaskSource:
    """Dask collections whose blocks are the partitions.

    Attributes
    ----------
    collection : tuple
        ``(X,)``, ``(X, y)`` or ``(dataframe,)``.
    assemble : callable
        ``assemble(*blocks) -> Rows``, picklable: for a task on the futures of one item of
        ``delayed_partitions()``.
    """

    collection: tuple[Any, ...]
    assemble: Assemble
    counts: tuple[int | None, ...]
    name: str
    dealt: bool = field(default=False)

    def delayed_partitions(self) -> list[tuple[Any, ...]]:
        """Return the blocks of each partition, as ``dask.delayed`` values.

        Notes
        -----
        Those of a persisted collection hold nothing: keep the source while they are used.
        """
        columns = [list(np.ravel(c.to_delayed())) for c in self.collection]
        return list(zip(*columns, strict=True))

    def partitions(self) -> tuple[DaskPartition, ...]:
        """Return partitions that compute themselves when they are read."""
        held = _futures(self.collection)
        return tuple(
            DaskPartition(blocks, self.assemble, f"{self.name}[{i}]", self.counts[i], held)
            for i, blocks in enumerate(self.delayed_partitions())
        )

    def rows(self) -> Rows:
        """Compute everything, all partitions at once."""
        found = _computed(self.delayed_partitions(), _futures(self.collection))
        return Rows.concat([self.assemble(*partition) for partition in found])

    def token(self) -> str:
        """Return a hash of the collections' own names and of how they are cut."""
        return f"dask-{tokenize(self.collection, self.assemble)}"


def dask_array(X: Any, y: Any = None) -> DaskSource:
    """Give a Dask array, and one of targets, as a source; unknown chunk sizes are fine.

    Parameters
    ----------
    X : dask.array.Array, shape (n, ...)
        Blocks of ndarrays or scipy CSR arrays, chunked along the rows only.
    y : dask.array.Array, shape (n,) or (n, k), optional
        Chunked like X; lengths that are not known yet are compared when a block is read.

    Raises
    ------
    DataError
        If X is chunked along another axis, or y is chunked otherwise than X.
    """
    columns = tuple(_as_array(c, n) for c, n in ((X, "X"), (y, "y")) if c is not None)
    if len(columns) == 2:
        _check_aligned(*columns)
    name = f"dask_array({' x '.join('?' if math.isnan(n) else str(n) for n in columns[0].shape)})"
    counts = tuple(None if math.isnan(n) else int(n) for n in columns[0].chunks[0])
    return DaskSource(columns, AssembleArrays(name), counts, name)


def dask_dataframe(
    ddf: Any,
    label: Hashable = None,
    dtype: npt.DTypeLike = "float32",
    columns: Sequence[Hashable] | None = None,
) -> DaskSource:
    """Give a Dask dataframe as a source; its partitions are the partitions.

    Parameters
    ----------
    ddf : dask.dataframe.DataFrame
        Divisions and lengths need not be known.
    label : hashable, optional
        The label's column; integers and booleans become int64, floats stay as they are.
    dtype : dtype
        Of the features. Missing values become NaN.
    columns : sequence of hashable, optional
        Feature columns; by default all but the label.

    Raises
    ------
    DataError
        If there is no such column, or one holds no numbers.
    """
    there = list(ddf.columns)
    wanted = [c for c in there if c != label] if columns is None else list(columns)
    for column in [*wanted, *([] if label is None else [label])]:
        _check_column(ddf, column, there)
    chosen = (
        np.dtype(np.int64)
        if label is None
        else label_dtype_of(_numpy_dtype(ddf.dtypes[label]), f"dataframe, column {label!r}")
    )
    name = f"dask_dataframe({ddf.npartitions} partitions)"
    made = AssembleFrame(name, tuple(wanted), label, number_dtype(dtype, name), chosen)
    return DaskSource((ddf,), made, (None,) * ddf.npartitions, name)


def is_dask_array(value: object) -> bool:
    """Tell a Dask array from other things, without importing dask.array."""
    return is_dask_collection(value) and hasattr(value, "numblocks")


def is_dask_frame(value: object) -> bool:
    """Tell a Dask dataframe or series from other things, without importing dask.dataframe."""
    return is_dask_collection(value) and hasattr(value, "to_dask_array")


def _futures(collection: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(futures_of(list(collection)))


def _computed(blocks: list[Any], held: tuple[Any, ...]) -> list[Any]:
    """Compute in this thread, or on the cluster where a collection was persisted."""
    scheduler = held[0].client if held else "synchronous"
    (found,) = compute(blocks, scheduler=scheduler)
    return list(found)


def _as_array(column: Any, name: str) -> Any:
    array = column.to_dask_array() if is_dask_frame(column) else column
    if not is_dask_array(array):
        raise DataError(
            f"dask_array: {name}",
            "a Dask array is needed",
            f"a {type(column).__name__}",
            "Or pass fl.data.arrays(X, y).",
        )
    if array.ndim == 0 or any(blocks > 1 for blocks in array.numblocks[1:]):
        raise DataError(
            f"dask_array: {name}",
            "blocks must hold whole rows",
            f"chunks along {array.ndim} axes, {array.numblocks} blocks",
            RECHUNK.replace("X", name),
        )
    return array


def _check_aligned(x: Any, y: Any) -> None:
    pairs = zip(x.chunks[0], y.chunks[0], strict=False)
    differ = any(not math.isnan(a + b) and a != b for a, b in pairs)
    if x.numblocks[0] != y.numblocks[0] or differ:
        raise DataError(
            "dask_array",
            "X and y must be chunked alike along the rows",
            f"{x.numblocks[0]} and {y.numblocks[0]} blocks"
            + (" of other lengths" if x.numblocks[0] == y.numblocks[0] else ""),
            "Rechunk one of them: y.rechunk({0: X.chunks[0]}).",
        )


def _check_column(ddf: Any, column: Hashable, there: list[Hashable]) -> None:
    if column not in there:
        names = [str(name) for name in there]
        near = ", ".join(close_names(str(column), names)) or ", ".join(names[:8])
        raise DataError(
            "dask_dataframe",
            "a column that it has is needed",
            repr(column),
            f"It has {len(there)}, such as: {near}.",
        )
    if _numpy_dtype(ddf.dtypes[column]).kind not in "biuf":
        raise DataError(
            f"dask_dataframe, column {column!r}",
            "a column must hold numbers",
            str(ddf.dtypes[column]),
            "Drop it, or turn it into numbers first.",
        )


def _numpy_dtype(dtype: Any) -> np.dtype[Any]:
    """Return the NumPy dtype of a pandas one; object for those that have no numbers."""
    if isinstance(dtype, np.dtype):
        return dtype
    return np.dtype(getattr(dtype, "numpy_dtype", np.object_))
