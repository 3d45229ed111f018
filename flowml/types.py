"""Words that every layer shares: arrays, pytrees, examples and places in the user's file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
"""A NumPy array of any dtype and shape."""

Pytree: TypeAlias = Any
"""An array, or nested dicts, tuples and lists of arrays (what optree calls a pytree)."""

Function: TypeAlias = Callable[..., Any]

PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Site:
    """A line of the user's own file, for messages."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{Path(self.file).name}:{self.line}"


UNKNOWN_SITE = Site("<unknown>", 0)


def calling_site() -> Site:
    """Return the nearest line on the stack that is not inside flowml itself."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not Path(file).is_relative_to(PACKAGE):
            return Site(file, frame.f_lineno)
        frame = frame.f_back  # type: ignore[assignment]
    return UNKNOWN_SITE


def aligned_empty(count: int, dtype: npt.DTypeLike) -> Array:
    """Return an uninitialised vector that starts on a cache line (64 bytes).

    Every executor allocates with it, so that no kernel sees another alignment in one executor
    than in another.

    Parameters
    ----------
    count : int
        Number of items.

    Returns
    -------
    ndarray, shape (count,)
    """
    itemsize = np.dtype(dtype).itemsize
    raw = np.empty(count * itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + count * itemsize].view(dtype)
