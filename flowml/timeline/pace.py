"""How fast each replica was, and which of them held up the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from flowml.history import History

STRAGGLES_FROM = 1.5
"""A replica whose steps take so many times as long as the median of the others is a straggler."""


@dataclass(frozen=True)
class Pace:
    """How fast one replica was.

    Attributes
    ----------
    replica : int
    worker : str
        Its address; "" where the run was in the driver.
    steps : int
        Rows of the history that this is taken from.
    busy_seconds : float
        Median of its steps, without the time in which it waited for others.
    wait_share : float
        Part of its time in which it waited, from 0 to 1.
    ratio : float
        ``busy_seconds`` by the median of the other replicas; 1 where there is no other.
    """

    replica: int
    worker: str
    steps: int
    busy_seconds: float
    wait_share: float
    ratio: float

    @property
    def straggles(self) -> bool:
        """Whether it is much slower than the others."""
        return self.ratio >= STRAGGLES_FROM

    @property
    def name(self) -> str:
        """Replica and worker, for messages."""
        return f"replica {self.replica}" + (f" on worker {self.worker}" if self.worker else "")


def paces(steps: History, workers: Sequence[str]) -> tuple[Pace, ...]:
    """Return how fast each replica was, the slowest first.

    Parameters
    ----------
    steps : History
        With ``replica``, ``seconds`` and ``wait_seconds``.
    workers : sequence of str
        Address of each replica's worker; empty where the run was in the driver.
    """
    rows = steps.by_replica()
    busy = {
        r: float(np.median(steps["seconds"][mine] - steps["wait_seconds"][mine]))
        for r, mine in rows.items()
    }
    found = [
        Pace(
            replica,
            workers[replica] if workers else "",
            len(mine),
            busy[replica],
            float(steps["wait_seconds"][mine].sum() / max(steps["seconds"][mine].sum(), 1e-12)),
            _ratio(busy, replica),
        )
        for replica, mine in rows.items()
    ]
    return tuple(sorted(found, key=lambda pace: (-pace.busy_seconds, pace.replica)))


def _ratio(busy: Mapping[int, float], replica: int) -> float:
    others = [seconds for other, seconds in busy.items() if other != replica]
    usual = median(others) if others else 0.0
    return busy[replica] / usual if usual else 1.0
