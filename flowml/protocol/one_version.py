"""Copy what others go on writing, all of it of one version, without their lock.

The writer has two places: it writes the next version where the one before the current one was, and
counts it only when all of it is there. So what is read may be written again only after the next
version has been counted, which the reader sees afterwards.

References
----------
Sequence counters of Linux (Documentation/locking/seqlock.rst), "latch": two places, so that no
reader waits for a writer in the middle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def copy_one_version(version: Callable[[], int], copy: Callable[[int], T]) -> T:
    """Return a copy of one version.

    Parameters
    ----------
    version : callable
        Return the number of the current version.
    copy : callable of int
        Copy what lies in the place of a version; may meet a later one half way.
    """
    while True:
        before = version()
        copied = copy(before)
        if version() == before:
            return copied
