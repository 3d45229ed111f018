"""Where the replicas of one group meet between two phases of a loose step.

Groups go at their own pace, so there is no barrier of all. Each replica counts on a line of its
own, in memory that they share, how often it has come; it goes on when all of its group have come as
often. The counts are written and, once they are there, passed under the host's lock: what a replica
wrote before it came is seen by those who go on.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flowml.protocol.promise_specs import Missing
from flowml.runtime.host_lock import HostLock
from flowml.types import Array

_LINE = 8
NO_TEAM = -1
"""In `Missing`: the members are replicas."""


class GroupMeeting:
    """One replica's end.

    Parameters
    ----------
    counts : ndarray of int64, shape (GroupMeeting.size(replicas),)
        Zeroed at the start.
    me : int
    ranks : tuple of int
        Of its group, itself included.
    lock : HostLock
    """

    def __init__(self, counts: Array, me: int, ranks: tuple[int, ...], lock: HostLock) -> None:
        self._raw: memoryview = counts.data
        self._me = me
        self._others = tuple(rank for rank in ranks if rank != me)
        self._lock = lock
        self._times = 0

    @staticmethod
    def size(replicas: int) -> int:
        """Return how many words all replicas need."""
        return _LINE * replicas

    def meet(self, step: int, wait: Callable[[Callable[[], Missing | None]], float]) -> None:
        """Wait for the others of the group.

        Parameters
        ----------
        wait : callable
            Waits until a look finds nothing missing; it may raise.
        """
        self._times += 1
        with self._lock:
            self._raw[_LINE * self._me] = self._times
        wait(lambda: self._missing(step))
        with self._lock:
            pass

    def _missing(self, step: int) -> Missing | None:
        late = tuple(r for r in self._others if self._raw[_LINE * r] < self._times)
        return Missing("the group's meeting", late, step, NO_TEAM) if late else None


def counts_over(block: Array, replicas: int) -> Array:
    """Return the counts of all replicas at the start of a block of bytes."""
    return block[: 8 * GroupMeeting.size(replicas)].view(np.int64)
