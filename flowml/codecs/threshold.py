"""The entries of an array that are large enough."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flowml.codecs.checks import is_number, refusal, spelling
from flowml.codecs.contract import Payload, State
from flowml.codecs.entries import pick, spread
from flowml.codecs.residual import first_residual, next_residual, with_residual
from flowml.types import Array


@dataclass(frozen=True)
class Threshold:
    """Entries whose magnitude exceeds a value.

    Attributes
    ----------
    value : float
        The magnitude, > 0 and finite, in the unit of the entries; rounded to their dtype.
    feedback : bool

    Notes
    -----
    The payload is ``(indices, entries)`` as that of `TopK`; it may be empty, or larger than the
    array. NaN and infinities are sent.

    References
    ----------
    Strom, "Scalable Distributed DNN Training Using Commodity GPU Cloud Computing", Interspeech
    2015. There each sent entry is plus or minus the threshold; here it is the entry itself.
    """

    value: float
    feedback: bool = True

    def __str__(self) -> str:
        return spelling("threshold", self.value, feedback=self.feedback, usual=True)

    def init(self, shape: tuple[int, ...], dtype: npt.DTypeLike, seed: int) -> State:
        """Return the residual; the seed is not needed."""
        return first_residual(self, shape, dtype)

    def encode(self, values: Array, state: State) -> tuple[Payload, State]:
        """Return the entries above the threshold with their indices, and the residual."""
        total = with_residual(self, values, state)
        flat = total.reshape(-1)
        # as a number of the dtype, and never infinite: then infinities would not exceed it
        value = flat.dtype.type(min(self.value, float(np.finfo(flat.dtype).max)))
        # not `> value`: NaN compares false, and must be sent
        payload = pick(flat, np.flatnonzero(~(np.abs(flat) <= value)))
        return payload, next_residual(self, total, payload)

    def decode(self, payload: Payload, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Return zeros with the entries sent at their places."""
        places, sent = payload
        return spread(places, sent, shape, dtype)


def threshold(value: float, *, feedback: bool = True) -> Threshold:
    """Send the entries whose magnitude exceeds ``value``; see `Threshold`."""
    if not is_number(value) or not math.isfinite(value) or value <= 0:
        raise refusal("threshold(value) needs a finite number > 0", value, "0.001")
    return Threshold(value, feedback)
