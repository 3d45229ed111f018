"""What is known of one replica: its windows, where it is, and what its time goes into."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, TypeAlias, cast

from flowml.dashboard.contract import Part, Replica, Window

SHOWN_SECONDS = 60.0
"""How far back the timeline goes."""
MOST_WINDOWS = 1200
"""Of all replicas of a run together."""
RECENT_WINDOWS = 8
"""From so many a replica's pace is taken."""
RECENT_REPORTS = 6
"""Over so many reports, three seconds, shares of time are taken."""

Spent: TypeAlias = dict[tuple[str, str], float]
"""Seconds by (part, operator or edge)."""


def windows_of_each(replicas: int) -> int:
    """Return how many windows are kept of each replica."""
    return max(RECENT_WINDOWS, min(120, MOST_WINDOWS // max(1, replicas)))


@dataclass
class ReplicaState:
    """One replica.

    Attributes
    ----------
    number : int
    worker : str
    windows : deque of Window
    step : int
        Steps that it has finished.
    behind : int
        Steps that the first replica is ahead.
    part, within : str
        Where it was reported last, and for an operator or a wait its name.
    since : float or None
        For so many seconds.
    """

    number: int
    worker: str
    windows: deque[Window]
    step: int = 0
    behind: int = 0
    part: str = ""
    within: str = ""
    since: float | None = None
    _reports: deque[tuple[float, float, Spent]] = field(
        default_factory=lambda: deque(maxlen=RECENT_REPORTS)
    )
    """(seconds of the run, seconds between hosts so far, seconds spent so far)."""

    def done(self, event: Mapping[str, Any], at: float) -> None:
        """Take in a window that ended at ``at`` seconds of the run."""
        self.worker, self.step = event["worker"], int(event["step"]) + 1
        seconds = float(event["seconds"])
        before = self.windows[-1]["start"] + self.windows[-1]["seconds"] if self.windows else 0.0
        start = max(before, at - seconds)  # the news of two windows may come at once
        self.windows.append(
            Window(
                start=start,
                seconds=min(seconds, max(0.0, at - start)) or seconds,
                wait_seconds=float(event["wait_seconds"]),
                steps=int(event["steps"]),
            )
        )

    def report(self, rank: Mapping[str, Any], between_hosts: float, at: float) -> None:
        """Take in a report of its worker."""
        self.step = max(self.step, int(rank["step"]))
        (self.part, self.within), self.since = rank["within"], float(rank["since"])
        spent: Spent = {(part, name): float(s) for part, name, s in rank["spent"]}
        if self._reports and at - self._reports[-1][0] > SHOWN_SECONDS:
            self._reports.clear()  # nobody has looked for long: what was then says nothing of now
        self._reports.append((at, between_hosts, spent))

    def shares(self) -> Spent:
        """Return the parts of its time over the last reports; they come to 1, or there are none."""
        if len(self._reports) < 2:
            return {}
        (first_at, first_swap, first), (at, swap, last) = self._reports[0], self._reports[-1]
        grown = {key: max(0.0, s - first.get(key, 0.0)) for key, s in last.items()}
        total = sum(grown.values())
        if not total:
            return {}
        shares = {key: seconds / total for key, seconds in grown.items()}
        moved = (swap - first_swap) / (at - first_at) if at > first_at else 0.0
        return _with_moved(shares, moved)

    def busy(self) -> float | None:
        """Return its seconds a step without waits, over the last windows."""
        recent = list(self.windows)[-RECENT_WINDOWS:]
        steps = sum(w["steps"] for w in recent)
        worked = sum(max(0.0, w["seconds"] - w["wait_seconds"]) for w in recent)
        return worked / steps if steps else None

    def wait_share(self) -> float | None:
        """Return the part of its last windows in which it waited."""
        recent = list(self.windows)[-RECENT_WINDOWS:]
        seconds = sum(w["seconds"] for w in recent)
        waited = sum(w["wait_seconds"] for w in recent)
        return min(1.0, waited / seconds) if seconds else None


def _with_moved(shares: Spent, moved: float) -> Spent:
    """Return shares of which a part of the waits was in truth an exchange with other hosts."""
    waited = sum(share for (part, _), share in shares.items() if part == "wait")
    moved = min(moved, waited)
    if moved <= 0:
        return shares
    kept = 1 - moved / waited
    found = {key: s * kept if key[0] == "wait" else s for key, s in shares.items()}
    found["transfer", ""] = found.get(("transfer", ""), 0.0) + moved
    return found


def ranked(replicas: Iterable[ReplicaState], now: float, *, over: bool) -> list[Replica]:
    """Return the replicas, slowest first: by their seconds a step without waits, in tenths.

    Parameters
    ----------
    now : float
        Seconds of the run; older windows than ``SHOWN_SECONDS`` are left out.
    over : bool
        The run has ended: no replica is anywhere.
    """
    found = list(replicas)
    known = [busy for r in found if (busy := r.busy()) is not None]
    usual = median(known) if known else 0.0
    rows = [_row(r, usual, now, over) for r in found]
    return sorted(rows, key=lambda row: (-round(row["slowness"] or 0.0, 1), row["replica"]))


def _row(state: ReplicaState, usual: float, now: float, over: bool) -> Replica:
    busy = state.busy()
    shown = [w for w in state.windows if w["start"] + w["seconds"] > now - SHOWN_SECONDS]
    return Replica(
        replica=state.number,
        worker=state.worker,
        step=state.step,
        part=cast(Part, state.part) if state.part and not over else None,
        within="" if over else state.within,
        since=None if over else state.since,
        busy=busy,
        slowness=busy / usual if busy is not None and usual else None,
        wait_share=state.wait_share(),
        behind=0 if over else state.behind,
        windows=shown,
    )
