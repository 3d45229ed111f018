"""Some entries of an array: how many, as a payload, and back at their places."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flowml.codecs.contract import Payload
from flowml.types import Array


def count_of(fraction: float, size: int) -> int:
    """Return how many of ``size`` entries a fraction is: rounded, at least 1 if there is one.

    Examples
    --------
    >>> count_of(0.01, 784), count_of(0.01, 10), count_of(0.01, 0)
    (8, 1, 0)
    """
    return min(size, max(1, round(fraction * size)))


def pick(flat: Array, places: Array) -> Payload:
    """Return ``(places, flat[places])``, with places in 4 bytes each where these are enough."""
    narrow = flat.size <= np.iinfo(np.int32).max
    return places.astype(np.int32 if narrow else np.int64), flat[places]


def spread(places: Array, sent: Array, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """Return zeros of a shape with the sent entries at their places of the flattened array."""
    decoded = np.zeros(shape, dtype)
    decoded.reshape(-1)[places] = sent
    return decoded
