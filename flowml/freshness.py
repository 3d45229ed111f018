"""The promises of an edge over the steps of a run, as numbers.

An edge may promise one thing for the first steps and another later:
``w.sync(until=500).stale(4)`` is ``((0, 0.0), (500, 4.0))``.
"""

from __future__ import annotations

import math
from typing import TypeAlias

Promises: TypeAlias = tuple[tuple[int, float], ...]
"""(first step that it holds for, staleness) in order of steps: 0 is sync, infinite is async."""

SYNC: Promises = ((0, 0.0),)


def staleness_at(promises: Promises, step: int) -> float:
    """Return the staleness that is allowed in a step.

    Examples
    --------
    >>> staleness_at(((0, 0.0), (500, 4.0)), 499), staleness_at(((0, 0.0), (500, 4.0)), 500)
    (0.0, 4.0)
    """
    return next(s for start, s in reversed(promises) if start <= step)


def needed_before(promises: Promises, step: int) -> int:
    """Return how many stamps must be complete before a read of ``step`` (semantics.md section 1).

    Notes
    -----
    A later promise starts when all updates of the steps before its start are applied.

    Examples
    --------
    >>> [needed_before(((0, 2.0),), c) for c in range(5)]
    [0, 0, 0, 1, 2]
    >>> needed_before(((0, 0.0), (3, math.inf)), 9)
    3
    """
    staleness = staleness_at(promises, step)
    start = max(start for start, _ in promises if start <= step)
    return start if math.isinf(staleness) else max(start, step - int(staleness))


def loosest(promises: Promises) -> float:
    """Return the largest staleness that a schedule ever allows."""
    return max(s for _, s in promises)
