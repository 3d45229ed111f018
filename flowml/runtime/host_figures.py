"""What meeting, waking, copying and locking cost on a host: small experiments among its replicas.

All replicas that will share the host take part at the same time, each in the thread and process in
which it would run, and meet at the barrier that a run uses. Each number is a median: what takes a
replica's core away now and then takes it from its operators too, and is counted there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import median
from time import perf_counter

import numpy as np

from flowml.runtime.figures import Figures
from flowml.runtime.host_lock import HostLock
from flowml.types import Array

BARRIERS = 500
LATE_BARRIERS = 40
LATE_SECONDS = 1e-3
"""How late one replica comes: the others have long gone to sleep."""
COPIES = 40
COPY_ITEMS = 1 << 15
"""float32 items that each replica writes and all read: 128 KiB, a middling gradient."""
LOCKS = 300


def shared_bytes(replicas: int) -> int:
    """Return the bytes of shared memory that the experiments need."""
    return 4 * COPY_ITEMS * replicas


def measure_host(
    meet: Callable[[], object], me: int, replicas: int, block: Array, lock: HostLock
) -> Figures:
    """Return this replica's view of the host; every replica of the host calls it.

    Parameters
    ----------
    meet : callable
        The barrier of all of them.
    me, replicas : int
        Number of this one, and how many there are on the host.
    block : ndarray of uint8
        Memory that all share: ``shared_bytes(replicas)``.
    lock : HostLock
        Of that memory.
    """
    barrier = median(_seconds(meet) for _ in range(BARRIERS))
    late = [_after_a_late_one(meet, me, turn % replicas) for turn in range(LATE_BARRIERS)]
    mine = [seconds for seconds in late if seconds is not None]
    return replace(
        Figures(),
        barrier_seconds=barrier,
        wake_seconds=max(0.0, median(mine) - barrier) if mine else 0.0,
        shared_bytes_per_second=_copy_rate(meet, me, replicas, block),
        lock_seconds=_lock_seconds(meet, me, lock),
    )


def _seconds(act: Callable[[], object]) -> float:
    began = perf_counter()
    act()
    return perf_counter() - began


def _after_a_late_one(meet: Callable[[], object], me: int, late: int) -> float | None:
    """Return what a late replica waits at its next barrier for those whom it kept waiting."""
    meet()
    if me == late:
        until = perf_counter() + LATE_SECONDS
        while perf_counter() < until:
            pass
    meet()
    waited = _seconds(meet)
    return waited if me == late else None


def _copy_rate(meet: Callable[[], object], me: int, replicas: int, block: Array) -> float:
    """Return the bytes a second at which a replica adds up what all have just written."""
    shares = block[: shared_bytes(replicas)].view(np.float32).reshape(replicas, COPY_ITEMS)
    total, found = np.empty(COPY_ITEMS, np.float32), []
    for turn in range(COPIES):
        shares[me] = turn
        meet()
        began = perf_counter()
        np.add(shares[0], shares[-1], total)
        for other in shares[1:-1]:
            np.add(total, other, total)
        found.append(perf_counter() - began)
        meet()
    return float(max(2, replicas) * 4 * COPY_ITEMS / median(found))


def _lock_seconds(meet: Callable[[], object], me: int, lock: HostLock) -> float:
    """Return what the lock costs one replica while the others leave it alone; 0 at the others."""

    def hold() -> None:
        with lock:
            pass

    found = median(_seconds(hold) for _ in range(LOCKS)) if me == 0 else 0.0
    meet()
    return found


def together(found: list[Figures], cores: int) -> Figures:
    """Return the figures of hosts from what their replicas saw.

    Notes
    -----
    Means; the lock was timed by one of them. Without anybody else it is all as by default.
    """
    if not found:
        return Figures(cores=cores)
    mean = {
        name: float(np.mean([getattr(f, name) for f in found]))
        for name in ("barrier_seconds", "wake_seconds", "shared_bytes_per_second")
    }
    return replace(found[0], cores=cores, lock_seconds=max(f.lock_seconds for f in found), **mean)
