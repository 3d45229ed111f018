"""The largest entries of an array."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flowml.codecs.checks import share, spelling
from flowml.codecs.contract import Payload, State
from flowml.codecs.entries import count_of, pick, spread
from flowml.codecs.residual import first_residual, next_residual, with_residual
from flowml.types import Array


@dataclass(frozen=True)
class TopK:
    """The largest entries by magnitude, with their indices.

    Attributes
    ----------
    fraction : float
        Share of the entries that is sent, 0 < fraction <= 1: ``round(fraction * n)`` of n, at
        least 1.
    feedback : bool

    Notes
    -----
    The payload is ``(indices, entries)``: indices into the flattened array in increasing order,
    int32 (int64 from 2**31 entries on). At 1 % of float32 these are 8 bytes for each entry sent,
    2 % of the whole. Of entries equally large, those with the lower index are sent, so that every
    machine sends the same.

    NaN and infinities count as the largest, and are all sent, also where they are more than k.

    References
    ----------
    Stich et al., "Sparsified SGD with Memory", NeurIPS 2018, algorithm 1. There the rate is
    applied before the residual is added; here after the edge, by the rule.
    """

    fraction: float
    feedback: bool = True

    def __str__(self) -> str:
        return spelling("top_k", self.fraction, feedback=self.feedback, usual=True)

    def init(self, shape: tuple[int, ...], dtype: npt.DTypeLike, seed: int) -> State:
        """Return the residual; the seed is not needed."""
        return first_residual(self, shape, dtype)

    def encode(self, values: Array, state: State) -> tuple[Payload, State]:
        """Return the largest entries with their indices, and the residual."""
        total = with_residual(self, values, state)
        flat = total.reshape(-1)
        payload = pick(flat, largest(flat, count_of(self.fraction, flat.size)))
        return payload, next_residual(self, total, payload)

    def decode(self, payload: Payload, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Return zeros with the entries sent at their places."""
        places, sent = payload
        return spread(places, sent, shape, dtype)


def top_k(fraction: float, *, feedback: bool = True) -> TopK:
    """Send the ``fraction`` of the entries that is largest in magnitude; see `TopK`.

    Examples
    --------
    >>> codec = top_k(0.5)
    >>> state = codec.init((4,), "float64", seed=0)
    >>> payload, state = codec.encode(np.array([0.1, -3.0, 2.0, 0.2]), state)
    >>> codec.decode(payload, (4,), "float64"), state[0]
    (array([ 0., -3.,  2.,  0.]), array([0.1, 0. , 0. , 0.2]))
    """
    return TopK(share("top_k", fraction), feedback)


def largest(flat: Array, count: int) -> Array:
    """Return the indices, increasing, of the ``count`` largest magnitudes and of all non-finite.

    Only the value of the smallest magnitude sent is taken from NumPy's selection: which of equal
    entries it puts where depends on the processor.
    """
    magnitude = np.abs(flat)
    unusual = ~np.isfinite(magnitude)
    magnitude[unusual] = np.inf
    count = max(count, int(np.count_nonzero(unusual)))
    if count >= flat.size:
        return np.arange(flat.size)
    least = np.partition(magnitude, flat.size - count)[flat.size - count]
    above = np.flatnonzero(magnitude > least)
    level = np.flatnonzero(magnitude == least)[: count - above.size]
    return np.sort(np.concatenate([above, level]))
