"""Parts of a block of bytes, handed out one after another in the same order by every process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from flowml.layout import Layout
from flowml.types import Array

ALIGN = 64
GROWTH_BYTES = 1 << 20
"""An array that grows asks for so much more each time, at least."""

Reserve = Callable[[int, int], None]
"""Makes sure of the memory behind (first byte, bytes) of a block; it may raise."""


def _nothing(start: int, nbytes: int) -> None:
    """All of the memory is there."""


@dataclass
class Arena:
    """Hands out parts of a block, or counts how many bytes they need.

    Parameters
    ----------
    block : ndarray of uint8 or None
        None only counts.
    reserve : callable
        For the arrays of `growing`.

    Attributes
    ----------
    nbytes : int
        Handed out so far.
    """

    block: Array | None = None
    reserve: Reserve = field(default=_nothing)
    nbytes: int = 0

    def take(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Return the next part as an array; one of no items where only bytes are counted."""
        kind = np.dtype(dtype)
        whole = (shape,) if isinstance(shape, int) else shape
        start, nbytes = self.nbytes, int(np.prod(whole, dtype=np.int64)) * kind.itemsize
        self.nbytes += -(-nbytes // ALIGN) * ALIGN
        if self.block is None:
            return np.empty(tuple(0 for _ in whole), kind)
        return self.block[start : start + nbytes].view(kind).reshape(whole)

    def buffers(self, layout: Layout) -> tuple[Array, ...]:
        """Return the flat buffers of a layout."""
        return tuple(self.take(s, d) for s, d in zip(layout.sizes, layout.dtypes, strict=True))

    def growing(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> GrowingArray:
        """Return an array whose first rows only need memory, so far."""
        start = self.nbytes
        array = self.take(shape, dtype)
        row = int(np.prod(shape[1:], dtype=np.int64)) * np.dtype(dtype).itemsize
        return GrowingArray(array, start, row, self.reserve)


@dataclass(frozen=True)
class GrowingArray:
    """An array over addresses whose memory is asked for as rows come."""

    array: Any
    start: int
    """First byte in its block."""
    row_bytes: int
    reserve: Reserve

    def make_sure(self, before: int, rows: int) -> int:
        """Ask for the memory of the first ``rows`` rows, of which ``before`` are there.

        Returns
        -------
        int
            Rows that are there now: more than asked for, so that it is not asked for each.
        """
        if rows <= before:
            return before
        wanted = max(rows, before + GROWTH_BYTES // max(1, self.row_bytes))
        upto = min(wanted, len(self.array))
        self.reserve(self.start + before * self.row_bytes, (upto - before) * self.row_bytes)
        return upto
