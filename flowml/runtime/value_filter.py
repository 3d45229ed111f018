"""A filter by size: what an edge keeps travels when it is large enough to matter.

References
----------
Hsieh et al., "Gaia: Geo-Distributed Machine Learning Approaching LAN Speeds", NSDI 2017, section
4.2: updates add up until they change a parameter by more than a share of it. There each parameter
is looked at by itself; here the whole value is, by its Euclidean norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import optree

from flowml.runtime.values import EMPTY, Kept, Value
from flowml.types import Array, Pytree


class SizeFilter:
    """The sender's end of an edge with a threshold.

    Parameters
    ----------
    threshold : float
        Of the norm of what is kept, relative to the norm of the parameter.
    keep : {"sum", "mean", "last"}
        What several values become.
    """

    def __init__(self, threshold: float, keep: str) -> None:
        self._threshold = threshold
        self._kept = Kept(keep)

    def send(self, value: Value, parameter: Sequence[Array]) -> Value:
        """Return what has been kept, this value included, or nothing if it is too small.

        Parameters
        ----------
        parameter : sequence of ndarray
            Flat, as the sender has read it last.
        """
        if not value.empty:
            self._kept.put(value)
        found = self._kept.peek()
        if found.empty or norm(leaves(found.content)) <= self._threshold * norm(parameter):
            return EMPTY
        return self._kept.take()

    @property
    def holds(self) -> bool:
        """Whether anything is kept."""
        return self._kept.content is not None


def leaves(content: Pytree) -> list[Array]:
    """Return the arrays of a value, flat."""
    return [np.asarray(leaf).reshape(-1) for leaf in optree.tree_leaves(content)]


def norm(flats: Sequence[Array]) -> float:
    """Return the Euclidean norm of some flat arrays together."""
    return math.sqrt(sum(float(flat.dot(flat)) for flat in flats))
