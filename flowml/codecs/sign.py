"""Each entry in 1 bit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flowml.codecs.checks import spelling
from flowml.codecs.contract import Payload, State
from flowml.codecs.residual import first_residual, next_residual, with_residual
from flowml.types import Array


@dataclass(frozen=True)
class Sign:
    """The sign of each entry and the mean magnitude of the array: 1 bit.

    Notes
    -----
    The payload is ``(bits, scale)``: uint8 with 8 signs each, and one number in the dtype of the
    values. 0 has no bit of its own: it is sent as plus the scale, and the residual takes it back.

    A bit has no room for NaN: an array with an entry that is not finite has the scale NaN, and is
    decoded as NaN everywhere.

    References
    ----------
    Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient Compression Schemes",
    ICML 2019, algorithm 1. There the rate is applied before the residual is added; here after the
    edge, by the rule.
    """

    feedback: bool = True

    def __str__(self) -> str:
        return spelling("sign", feedback=self.feedback, usual=True)

    def init(self, shape: tuple[int, ...], dtype: npt.DTypeLike, seed: int) -> State:
        """Return the residual, if there is one; the seed is not needed."""
        return first_residual(self, shape, dtype)

    def encode(self, values: Array, state: State) -> tuple[Payload, State]:
        """Return the packed signs and the mean magnitude, and the residual."""
        total = with_residual(self, values, state)
        flat = total.reshape(-1)
        scale = np.array([mean_magnitude(flat)], flat.dtype)
        payload = (np.packbits(flat >= 0), scale)
        return payload, next_residual(self, total, payload)

    def decode(self, payload: Payload, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Return plus or minus the mean magnitude."""
        bits, scale = payload
        size = int(np.prod(shape, dtype=np.int64))
        either = np.array([-scale[0], scale[0]], dtype)
        return either[np.unpackbits(bits, count=size)].reshape(shape)


def sign(*, feedback: bool = True) -> Sign:
    """Send the sign of each entry, 1 bit, and the mean magnitude; see `Sign`."""
    return Sign(feedback)


def mean_magnitude(flat: Array) -> float:
    """Return the mean magnitude, NaN if an entry is not finite, 0 if there is none.

    The largest is taken out first, so that the sum of finite numbers is finite.

    Examples
    --------
    >>> mean_magnitude(np.array([1.0, -3.0])), mean_magnitude(np.array([1.0, -np.inf]))
    (2.0, nan)
    """
    magnitude = np.abs(flat)
    largest = magnitude.max(initial=0)
    if not np.isfinite(largest):
        return float("nan")
    if largest == 0:
        return 0.0
    magnitude /= largest
    return float(largest) * float(magnitude.mean(dtype=np.float64))
