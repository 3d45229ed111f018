"""What ``fl.load`` takes for a source."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import issparse

from flowml.data.dask_collections import dask_array, dask_dataframe, is_dask_array, is_dask_frame
from flowml.data.memory import arrays
from flowml.data.source import Source
from flowml.data.streams import refuse_iterator
from flowml.errors import GraphError
from flowml.types import calling_site

ACCEPTED = "a source (fl.data...), a NumPy array, a CSR array, a tuple (X, y) or a Dask collection"


def as_source(source: Any) -> Source:
    """Return a source for what the user gave.

    Parameters
    ----------
    source : Source, ndarray, scipy sparse, Dask array or dataframe, or tuple (X, y[, weight])

    Returns
    -------
    Source

    Raises
    ------
    GraphError
        For anything else; a generator, which cannot be read again, is told apart.

    Examples
    --------
    >>> as_source((np.zeros((3, 2)), np.zeros(3))).name
    'arrays(3 x 2)'
    """
    refuse_iterator(source)
    if isinstance(source, Source):
        return source
    columns = source if isinstance(source, tuple) else (source,)
    if 1 <= len(columns) <= 3 and all(_in_memory(c) for c in columns):
        return arrays(*columns)
    if is_dask_frame(source) and hasattr(source, "columns"):
        return dask_dataframe(source)
    if len(columns) <= 2 and columns and all(map(_is_dask, columns)):
        return dask_array(*columns)
    raise GraphError(
        f"{calling_site()} source",
        f"the data must be {ACCEPTED}",
        _described(source),
        _remedy(source),
    )


def _in_memory(column: object) -> bool:
    return isinstance(column, np.ndarray) or bool(issparse(column))


def _is_dask(column: object) -> bool:
    return is_dask_array(column) or is_dask_frame(column)


def _described(source: object) -> str:
    if isinstance(source, tuple):
        return f"a tuple of ({', '.join(type(item).__name__ for item in source)})"
    return f"a {type(source).__name__}"


def _remedy(source: object) -> str:
    kind = type(source).__name__
    if isinstance(source, str) or hasattr(source, "__fspath__"):
        return "Name the format: fl.data.csv(path, label=...), parquet, npz, libsvm or idx."
    if isinstance(source, list):
        return "Pass fl.data.parts([...]) for partitions, or a tuple (X, y) for one pair."
    if callable(source):
        return "Pass fl.data.iterable(make) if it returns an iterator of chunks."
    if kind in ("DataFrame", "Series"):
        return "Pass fl.data.arrays(frame[features], frame[label])."
    if isinstance(source, tuple) and any(map(_is_dask, source)):
        return "Pass (X, y), both Dask arrays; sample weights need arrays in memory."
    return "Convert it with np.asarray, or pass fl.data.arrays(X, y)."
