"""The promises of an edge over the steps of a run, as numbers.

An edge may promise one thing for the first steps and another later:
``w.sync(until=500).stale(4)`` is ``((0, 0.0), (500, 4.0))``.
"""

from __future__ import annotations

from typing import TypeAlias

Promises: TypeAlias = tuple[tuple[int, float], ...]
"""(first step that it holds for, staleness) in order of steps: 0 is sync, infinite is async."""

SYNC: Promises = ((0, 0.0),)
NEVER = 1 << 62
"""A step that no run comes to."""


def staleness_at(promises: Promises, step: int) -> float:
    """Return the staleness that is allowed in a step.

    Examples
    --------
    >>> staleness_at(((0, 0.0), (500, 4.0)), 499), staleness_at(((0, 0.0), (500, 4.0)), 500)
    (0.0, 4.0)
    """
    return _piece(promises, step)[1]


def needed_before(promises: Promises, step: int) -> int:
    """Return how many stamps must be complete before a read of ``step`` (semantics.md section 1).

    Notes
    -----
    A later promise starts when all updates of the steps before its start are applied.

    Examples
    --------
    >>> [needed_before(((0, 2.0),), c) for c in range(5)]
    [0, 0, 0, 1, 2]
    >>> needed_before(((0, 0.0), (3, float("inf"))), 9)
    3
    """
    start, staleness = _piece(promises, step)
    if staleness >= step - start:
        return start
    return step - int(staleness)


def loose_from(promises: Promises) -> int:
    """Return the first step that is not sync, or NEVER.

    Examples
    --------
    >>> loose_from(((0, 0.0), (500, 4.0))), loose_from(SYNC) == NEVER
    (500, True)
    """
    return min((start for start, staleness in promises if staleness > 0), default=NEVER)


def loosest(promises: Promises) -> float:
    """Return the largest staleness that a schedule ever allows."""
    return max(s for _, s in promises)


def _piece(promises: Promises, step: int) -> tuple[int, float]:
    for piece in reversed(promises):
        if piece[0] <= step:
            return piece
    raise ValueError(f"a schedule must begin at step 0: {promises} says nothing of step {step}")
