"""How many processor cores there are for this process, and how long who waits may keep one busy."""

from __future__ import annotations

import os

SPIN_SECONDS = 1e-3
SHARED_CORE_SPIN_SECONDS = 100e-6


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def spin_seconds(processes: int) -> float:
    """Return how long one of so many processes looks, before it sleeps, for what others do."""
    return SPIN_SECONDS if processes <= usable_cores() else SHARED_CORE_SPIN_SECONDS
