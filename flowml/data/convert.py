"""From what a file or a frame holds to the dtype that was asked for, losing nothing silently."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from flowml.errors import DataError
from flowml.types import Array


def number_dtype(dtype: npt.DTypeLike, where: str) -> np.dtype[Any]:
    """Return a dtype of real numbers.

    Raises
    ------
    DataError
        For text, objects, dates and complex numbers.
    """
    made = np.dtype(dtype)
    if made.kind not in "biuf":
        raise DataError(
            where,
            "dtype must be of real numbers",
            str(made),
            "Turn text into numbers first and pass fl.data.arrays or parts.",
        )
    return made


def label_dtype_of(dtype: np.dtype[Any], where: str) -> np.dtype[Any]:
    """Return the dtype for labels that are stored as ``dtype``.

    Integers and booleans become int64: class numbers in a small unsigned type would wrap in an
    operator's arithmetic. Floating-point labels stay as they are.
    """
    return np.dtype(np.int64) if number_dtype(dtype, where).kind in "biu" else dtype


def to_dtype(values: Array, dtype: np.dtype[Any], place: Callable[[int], str]) -> Array:
    """Convert numbers; refuse what an integer dtype cannot hold.

    Parameters
    ----------
    values : ndarray, shape (n,)
        Real numbers; NaN is a missing value.
    dtype : dtype
    place : callable
        Names a row, for the message.

    Raises
    ------
    DataError
        At the first missing value, fraction or overflow where ``dtype`` is an integer.
    """
    if dtype.kind == "f" or values.dtype == dtype:
        return values.astype(dtype, copy=False)
    with np.errstate(invalid="ignore"):
        made = values.astype(dtype)
    good = made == values
    if not good.all():
        row = int(np.argmin(good))
        raise DataError(
            place(row),
            f"a value must fit {dtype}",
            str(values[row]),
            "Ask for a floating-point dtype (dtype= for features, label_dtype= for labels).",
        )
    return made
