"""Words that every layer shares: arrays, pytrees, examples and places in the user's file."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
"""A NumPy array of any dtype and shape."""

Pytree: TypeAlias = Any
"""An array, or nested dicts, tuples and lists of arrays (what optree calls a pytree)."""

Function: TypeAlias = Callable[..., Any]

PACKAGE = Path(__file__).resolve().parent
GRAPHS = PACKAGE / "_graphs"
"""The graphs that travel inside the wheel: read by the package, written like a user's file."""

INSTALLED = tuple(
    Path(sysconfig.get_path(name)).resolve()
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
)


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
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        # Code that Python generates, such as the __init__ of a dataclass, has no file of its own.
        module = frame.f_globals.get("__name__", "") if file.startswith("<") else ""
        if not is_flowml(file) and not str(module).startswith("flowml."):
            return Site(file, frame.f_lineno)
        frame = frame.f_back
    return UNKNOWN_SITE


@lru_cache(maxsize=4096)
def is_flowml(file: str) -> bool:
    """Tell whether code of that file is flowml's own; that of a published graph is the user's."""
    if file.startswith("<"):
        return False
    path = Path(file).resolve()
    return path.is_relative_to(PACKAGE) and not path.is_relative_to(GRAPHS)


@lru_cache(maxsize=4096)
def is_users(file: str) -> bool:
    """Tell whether code of that file is the user's: neither flowml's nor an installed package's."""
    if file.startswith(("<frozen", "<__array_function__")):
        return False
    path = Path(file).resolve()
    if path.is_relative_to(PACKAGE):
        return path.is_relative_to(GRAPHS)
    return not any(path.is_relative_to(folder) for folder in INSTALLED)


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
