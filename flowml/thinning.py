"""Which steps a history keeps: all of the first thousand, then every tenth, and so on."""

from __future__ import annotations

import numpy as np

from flowml.types import Array

FULL_STEPS = 1000
"""So many steps are kept one by one."""


def strides(steps: Array) -> Array:
    """Return how many steps the row of each stands for, those included that are left out.

    Parameters
    ----------
    steps : ndarray of int
        In any order.

    Examples
    --------
    >>> strides(np.array([0, 999, 1000, 10_100]))
    array([  1,   1,  10, 100])
    """
    found, limit = np.ones(len(steps), np.int64), FULL_STEPS
    while len(steps) and steps.max() >= limit:
        found[steps >= limit] *= 10
        limit *= 10
    return found


def kept_in_history(steps: Array) -> Array:
    """Return which steps the history keeps.

    Examples
    --------
    >>> kept_in_history(np.array([5, 999, 1000, 1003, 1010, 10050, 10100]))
    array([ True,  True,  True, False,  True, False,  True])
    """
    return np.asarray(steps % strides(steps) == 0)
