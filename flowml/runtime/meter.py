"""Where a rank spends its time, counted at the entries that it makes on the board anyway.

A sampler on the worker's event loop would see a rank only when that rank lets go of the
interpreter, which is at barriers and in BLAS: it would find a fast step waiting nearly always. So
the rank counts itself, and only for so many entries at a time: some at the start of each window,
and some twice a second while somebody looks at the dashboard. In between, the price is one look at
an empty list an entry.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from time import monotonic_ns
from typing import TypeAlias

WAITING = 65535
"""Index on the board of a rank that stands at a barrier, or between windows."""
SCHEDULER = "scheduler"
"""Between two windows: the next one has not come from Dask yet."""
TRANSFER = "transfer"
"""Moving values, and waiting for the lock under which they move."""

Bucket: TypeAlias = int | str
"""Index of an operator; SCHEDULER, TRANSFER, or the edge that is waited for."""
_OFF = ""


def _nameless(left: Bucket) -> str:
    return "barrier"


class Meter:
    """Counts one rank's nanoseconds by what it is in.

    Attributes
    ----------
    counting : list
        Not empty while it counts: the pen looks at it before it calls ``count``.
    wait_of : callable
        Given the bucket that is left, names the edge that a wait is for; called by the rank at
        the start of each wait that is counted.

    Notes
    -----
    ``count`` and ``stand`` are called by the rank alone, or by its window's task when the rank is
    out; ``allow`` and ``seconds`` by any thread. A rank that stops counting while it is allowed
    more counts again at the next ``allow``.
    """

    def __init__(self) -> None:
        self.counting: list[bool] = []
        self.wait_of: Callable[[Bucket], str] = _nameless
        self._spent: defaultdict[Bucket, int] = defaultdict(int)
        self._bucket: Bucket = _OFF
        self._since = 0
        self._entries = 0

    def allow(self, entries: int) -> None:
        """Let it count so many further entries, at least."""
        self._entries = max(self._entries, entries)
        self.counting[:] = (True,)

    def count(self, operator_index: int) -> None:
        """End what the rank was in and begin what it enters."""
        left = self._bucket
        self._entries -= 1
        if self._entries < 0:
            self.counting.clear()
            self._begin(_OFF)
        elif operator_index == WAITING:
            self._begin(self.wait_of(left))
        else:
            self._begin(operator_index)

    def stand(self, bucket: str) -> None:
        """Count what follows, up to the next entry, for a bucket of that name."""
        if self._bucket != _OFF:
            self._begin(bucket)

    def _begin(self, bucket: Bucket) -> None:
        now = monotonic_ns()
        if self._bucket != _OFF:
            self._spent[self._bucket] += now - self._since
        self._bucket, self._since = bucket, now

    def close(self) -> None:
        """Count no more, and let go of what names the waits: it may hold shared memory."""
        self.counting.clear()
        self.wait_of = _nameless

    @property
    def bucket(self) -> Bucket:
        """What the rank is in now; "" while it does not count."""
        return self._bucket

    def seconds(self) -> dict[Bucket, float]:
        """Return the seconds by bucket so far, what goes on now included.

        Notes
        -----
        A rank that moves on meanwhile may make this too large by that moment; it never shrinks by
        more than that.
        """
        found = dict(self._spent)
        bucket, since = self._bucket, self._since
        if bucket != _OFF:
            found[bucket] = found.get(bucket, 0) + monotonic_ns() - since
        return {name: nanoseconds / 1e9 for name, nanoseconds in found.items()}
