"""Which windows of steps are on their way, and whether another one is to be submitted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distributed import Future

Pending = tuple[int, int, int, list[Future[Any]]]
"""A window that was submitted: its number, first step, end, and a task a worker."""


def decisive(pending: Sequence[Pending], ahead: int) -> list[Future[Any]]:
    """Return the tasks of which the first to end lets another window be submitted, at own pace."""
    return pending[-ahead][3] if len(pending) >= ahead else []


def wants_window(pending: Sequence[Pending], ahead: int, *, own_pace: bool) -> bool:
    """Tell whether a window more is to be submitted.

    Parameters
    ----------
    pending : sequence of Pending
        Those that some worker has not ended.
    ahead : int
        Windows that a worker has before it.
    own_pace : bool
        Replicas do not wait for each other in every step.

    Notes
    -----
    Replicas at their own pace are not held back by the tasks that run them: it is the worker with
    the fewest windows before it that counts. Each has its windows one after another.
    """
    if len(pending) < ahead or not own_pace:
        return len(pending) < ahead
    return any(task.status != "pending" for task in decisive(pending, ahead))


def longer(steps: int, pending: int, ahead: int) -> int:
    """Return the steps of the next window: the more, the further some worker is ahead of another.

    Notes
    -----
    ``steps`` are a second of the slowest worker, or of none as long as nobody knows its pace.
    """
    return max(1, steps) * max(1, pending + 1 - ahead)
