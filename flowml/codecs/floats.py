"""Each entry in 2 bytes: IEEE halves and bfloat16.

A finite value may be too large for the short format. A codec with feedback then sends the largest
number there is, and the residual keeps the rest. Without feedback the rest would be lost with no
trace, so the value becomes an infinity, as IEEE 754 converts it, and the run ends with a
DivergedError instead of going on with another number. NaN and infinities stay what they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flowml.codecs.checks import spelling
from flowml.codecs.contract import Payload, State
from flowml.codecs.residual import first_residual, next_residual, with_residual
from flowml.types import Array

LARGEST_HALF = 65504.0
SIGN = np.uint16(0x8000)
QUIET = np.uint16(0x0040)
"""The bit of a bfloat16 NaN that keeps it from being an infinity."""
INFINITY = np.uint16(0x7F80)
LARGEST = np.uint16(0x7F7F)
"""The largest finite bfloat16, (2 - 2**-7) * 2**127."""


@dataclass(frozen=True)
class Float16:
    """Each entry as an IEEE half: 2 bytes, 11 significant bits, largest 65504.

    Notes
    -----
    The payload is one float16 array. Entries are rounded to nearest, ties to even; below 2**-14
    fewer bits are left, and from 2**-25 down there is 0. What is larger than 65504 saturates with
    feedback, and is an infinity without.
    """

    feedback: bool = False

    def __str__(self) -> str:
        return spelling("float16", feedback=self.feedback, usual=False)

    def init(self, shape: tuple[int, ...], dtype: npt.DTypeLike, seed: int) -> State:
        """Return the residual, if there is one; the seed is not needed."""
        return first_residual(self, shape, dtype)

    def encode(self, values: Array, state: State) -> tuple[Payload, State]:
        """Return the halves, and the residual."""
        total = with_residual(self, values, state)
        flat = total.reshape(-1)
        with np.errstate(invalid="ignore", over="ignore"):
            half = flat.astype(np.float16)
        if self.feedback:
            over = np.isinf(half) & np.isfinite(flat)
            half[over] = np.copysign(LARGEST_HALF, flat[over])
        return (half,), next_residual(self, total, (half,))

    def decode(self, payload: Payload, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Return the halves in the dtype of the values; no half is lost in that."""
        return payload[0].astype(dtype).reshape(shape)


@dataclass(frozen=True)
class BFloat16:
    """Each entry as the upper half of a float32: 2 bytes, 8 significant bits, float32's range.

    Notes
    -----
    The payload is one uint16 array, the upper halves. They are rounded to nearest, ties to even; a
    float64 is rounded to float32 first, so a tie may be decided by the first rounding. What is
    larger than 3.3895e38 saturates with feedback, and is an infinity without.

    References
    ----------
    Kalamkar et al., "A Study of BFLOAT16 for Deep Learning Training", arXiv 1905.12322, 2019,
    section 3. Numbers below float32's normal range are kept here, not flushed to zero.
    """

    feedback: bool = False

    def __str__(self) -> str:
        return spelling("bfloat16", feedback=self.feedback, usual=False)

    def init(self, shape: tuple[int, ...], dtype: npt.DTypeLike, seed: int) -> State:
        """Return the residual, if there is one; the seed is not needed."""
        return first_residual(self, shape, dtype)

    def encode(self, values: Array, state: State) -> tuple[Payload, State]:
        """Return the upper halves, and the residual."""
        total = with_residual(self, values, state)
        flat = total.reshape(-1)
        with np.errstate(invalid="ignore", over="ignore"):
            upper = upper_halves(flat.astype(np.float32, copy=False))
        if self.feedback:
            over = ((upper & ~SIGN) == INFINITY) & np.isfinite(flat)
            upper[over] = (upper[over] & SIGN) | LARGEST
        return (upper,), next_residual(self, total, (upper,))

    def decode(self, payload: Payload, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Return float32 numbers whose lower halves are zero, in the dtype of the values."""
        bits = payload[0].astype(np.uint32) << 16
        return bits.view(np.float32).astype(dtype).reshape(shape)


def upper_halves(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Return the upper 16 bits of each float32, rounded to nearest, ties to even.

    Examples
    --------
    >>> [hex(bits) for bits in upper_halves(np.array([1.0, -2.0, np.inf], np.float32))]
    ['0x3f80', '0xc000', '0x7f80']
    """
    bits = values.view(np.uint32)
    # Half a unit, less one where the last bit that stays is 0: a tie then rounds down to even.
    # The carry runs from the fraction into the exponent, which is right up to infinity.
    upper = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    nan = np.isnan(values)
    upper[nan] = (bits[nan] >> 16).astype(np.uint16) | QUIET
    return upper


def float16(*, feedback: bool = False) -> Float16:
    """Send each entry as an IEEE half, 2 bytes; see `Float16`."""
    return Float16(feedback)


def bfloat16(*, feedback: bool = False) -> BFloat16:
    """Send the upper half of each float32, 2 bytes; see `BFloat16`."""
    return BFloat16(feedback)
