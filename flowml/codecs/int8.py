"""Each entry in 1 byte."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flowml.codecs.checks import spelling
from flowml.codecs.contract import Payload, State
from flowml.codecs.residual import first_residual, next_residual, with_residual
from flowml.types import Array

LEVELS = 127
NOT_FINITE = -128
"""The code that is no multiple of the scale: it stands for NaN."""


@dataclass(frozen=True)
class Int8:
    """Each entry as a multiple, -127 to 127, of one scale for the array: 1 byte.

    Notes
    -----
    The payload is ``(codes, scale)``: int8, and one number in the dtype of the values, the largest
    magnitude divided by 127. An entry is wrong by half the scale at most. Where the scale is too
    small to be held (below about 1e-45 for float32) all codes are 0.

    NaN and infinities take the code -128, which is decoded as NaN, and do not enter the scale.

    References
    ----------
    Dettmers et al., "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", NeurIPS
    2022, section 2, absmax quantization. Alistarh et al., "QSGD", NeurIPS 2017, section 3.1, rounds
    at random so that the mean is right and scales by the 2-norm; here rounding is to nearest, ties
    to even: no draw, and no error beyond half the scale, which the residual keeps.
    """

    feedback: bool = True

    def __str__(self) -> str:
        return spelling("int8", feedback=self.feedback, usual=True)

    def init(self, shape: tuple[int, ...], dtype: npt.DTypeLike, seed: int) -> State:
        """Return the residual, if there is one; the seed is not needed."""
        return first_residual(self, shape, dtype)

    def encode(self, values: Array, state: State) -> tuple[Payload, State]:
        """Return the codes and the scale, and the residual."""
        total = with_residual(self, values, state)
        flat = total.reshape(-1)
        scale = scale_of(flat)
        with np.errstate(invalid="ignore"):
            multiples = np.rint(flat / (scale or flat.dtype.type(1)))
        # a scale that was rounded down gives multiples above 127
        np.clip(multiples, -LEVELS, LEVELS, out=multiples)
        multiples[~np.isfinite(flat)] = NOT_FINITE
        payload = (multiples.astype(np.int8), np.array([scale], flat.dtype))
        return payload, next_residual(self, total, payload)

    def decode(self, payload: Payload, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Return each code times the scale, and NaN for -128."""
        codes, scale = payload
        decoded = codes.astype(dtype)
        decoded[codes == NOT_FINITE] = np.nan  # before: -128 times the scale may overflow
        decoded *= scale[0]
        return decoded.reshape(shape)


def int8(*, feedback: bool = True) -> Int8:
    """Send each entry in 1 byte, with one scale for the array; see `Int8`."""
    return Int8(feedback)


def scale_of(flat: Array) -> np.floating:
    """Return the largest finite magnitude divided by 127; 0 where there is none.

    Examples
    --------
    >>> print(scale_of(np.array([1.0, -254.0, np.inf])))
    2.0
    """
    magnitude = np.abs(flat)
    largest = magnitude.max(initial=0)
    if not np.isfinite(largest):
        largest = magnitude[np.isfinite(magnitude)].max(initial=0)
    scale: np.floating = flat.dtype.type(largest / LEVELS)
    with np.errstate(over="ignore"):
        overflows = np.isinf(scale * flat.dtype.type(LEVELS))
    # rounded up next to the largest number of the dtype, 127 times the scale would be infinite
    return np.nextafter(scale, flat.dtype.type(0)) if overflows else scale
