"""What the seconds of a window went into, for Dask's fine performance metrics.

The waits of a window are known exactly; how the rest divides among operators is taken from the
part of the window that its ranks counted (meter.py): all of it where steps are slow, some steps at
the start where they are fast.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from flowml.plan import Plan
from flowml.runtime._dask import digest
from flowml.runtime.gang import Gang, Window
from flowml.runtime.meter import SCHEDULER, TRANSFER, Bucket
from flowml.runtime.outcome import Totals

Spent = Mapping[int, Mapping[Bucket, float]]
"""Seconds by bucket, of each rank."""


def metered(gang: Gang) -> Spent:
    """Return what the ranks of a gang have counted so far."""
    board = gang.board  # another thread may let go of it meanwhile
    return {} if board is None else {rank: board.meters[rank].seconds() for rank in gang.ranks}


def tell_activities(plan: Plan, window: Window, before: Spent, after: Spent) -> None:
    """Tell Dask, from the task of a window, what its seconds went into."""
    for label, seconds in activities(plan, window, before, after).items():
        digest(label, seconds)


def activities(plan: Plan, window: Window, before: Spent, after: Spent) -> dict[str, float]:
    """Return seconds by what they went into, as a mean over the ranks of a worker.

    Returns
    -------
    dict of str to float
        Operators by name, "wait: source -> reader", "transfer", and "steps" where nothing was
        counted. They come to the steps' part of the window's wall time.
    """
    found: defaultdict[str, float] = defaultdict(float)
    for rank, record in window.records:
        totals = Totals.of(record.history)
        ranks = len(window.records)
        own, waits = _divided(plan, before.get(rank, {}), after.get(rank, {}))
        for shares, total in (
            (own, totals.seconds - totals.wait_seconds),
            (waits, totals.wait_seconds),
        ):
            whole = sum(shares.values())
            for label, share in shares.items():
                found[label] += total * share / whole / ranks
    return {label: seconds for label, seconds in found.items() if seconds > 0}


def _divided(
    plan: Plan, before: Mapping[Bucket, float], after: Mapping[Bucket, float]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return by label what a rank counted as its own work, and as waits."""
    own: dict[str, float] = {}
    waits: dict[str, float] = {}
    for bucket, seconds in after.items():
        grown = seconds - before.get(bucket, 0.0)
        if grown <= 0 or bucket == SCHEDULER:
            continue
        if isinstance(bucket, int):
            own[plan.steps[bucket].name] = grown
        elif bucket == TRANSFER:
            own["transfer"] = grown
        else:
            waits[f"wait: {bucket}"] = grown
    return own or {"steps": 1.0}, waits or {"wait": 1.0}
