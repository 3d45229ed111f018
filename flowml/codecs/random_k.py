"""Entries of an array drawn at random, by the sender and the receiver alike.

The draw is a function of a key and a counter, by Philox. Only its raw 64-bit output is used, which
NumPy guarantees to be the same in all its versions; what it makes of that (``Generator.choice``)
it may change, and then two hosts with different versions would put entries at different places.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flowml.codecs.checks import share, spelling
from flowml.codecs.contract import Payload, State
from flowml.codecs.entries import count_of, spread
from flowml.codecs.residual import first_residual, next_residual, with_residual
from flowml.types import Array


@dataclass(frozen=True)
class RandomK:
    """Entries drawn at random, the same on both ends, so that no index travels.

    Attributes
    ----------
    fraction : float
        Share of the entries that is sent, 0 < fraction <= 1: ``round(fraction * n)`` of n, at
        least 1.
    feedback : bool

    Notes
    -----
    The payload is ``(draw, entries)``: the seed and the number of the draw, uint64, 16 bytes, and
    the entries in the order of their indices. The draw is the last array of the state.

    Each entry is sent as it is, not multiplied by ``n / k``: without feedback, the mean of what
    arrives is the fraction of the value.

    If a value that is not finite is among the entries, drawn or not, all that is sent is NaN.

    References
    ----------
    Stich et al., "Sparsified SGD with Memory", NeurIPS 2018, definition 2.1. The generator: Salmon
    et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011, Philox4x64-10.
    """

    fraction: float
    feedback: bool = True

    def __str__(self) -> str:
        return spelling("random_k", self.fraction, feedback=self.feedback, usual=True)

    def init(self, shape: tuple[int, ...], dtype: npt.DTypeLike, seed: int) -> State:
        """Return the residual, if there is one, and the first draw."""
        return (*first_residual(self, shape, dtype), np.array([seed, 0], np.uint64))

    def encode(self, values: Array, state: State) -> tuple[Payload, State]:
        """Return the entries drawn, and the residual with the next draw."""
        total = with_residual(self, values, state)
        draw = state[-1]
        flat = total.reshape(-1)
        sent = flat[drawn(draw, flat.size, count_of(self.fraction, flat.size))]
        if not np.isfinite(flat).all():
            sent.fill(np.nan)
        payload = (draw.copy(), sent)
        return payload, (*next_residual(self, total, payload), draw + np.array([0, 1], np.uint64))

    def decode(self, payload: Payload, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Return zeros with the entries sent at the places of the same draw."""
        draw, sent = payload
        decoded = np.zeros(shape, dtype)
        if sent.size > decoded.size:
            raise ValueError(f"{sent.size} entries for {decoded.size} places")
        return spread(drawn(draw, decoded.size, sent.size), sent, shape, dtype)


def random_k(fraction: float, *, feedback: bool = True) -> RandomK:
    """Send a ``fraction`` of the entries drawn at random; see `RandomK`."""
    return RandomK(share("random_k", fraction), feedback)


def drawn(draw: Array, size: int, count: int) -> Array:
    """Return ``count`` different indices below ``size``, increasing, each subset equally likely.

    Of more than half, those left out are drawn: so at most half of the indices are ever taken, and
    twice as many draws as indices nearly always hold enough different ones.
    """
    if count == size:
        return np.arange(size)
    if 2 * count > size:
        return np.delete(np.arange(size), drawn(draw, size, size - count))
    draws = 2 * count + 64
    while True:
        found = _raw(draw, draws) % np.uint64(size)
        first = np.sort(np.unique(found, return_index=True)[1])
        if first.size >= count:
            return np.sort(found[first[:count]]).astype(np.intp)
        draws *= 2


def _raw(draw: Array, count: int) -> npt.NDArray[np.uint64]:
    """Return 64-bit numbers: the seed is the key, the number of the draw the counter's top."""
    seed, number = draw
    key = np.array([seed, 0], np.uint64)
    counter = np.array([0, 0, 0, number], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)
