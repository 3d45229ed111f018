"""What a worker tells the scheduler of its runs, twice a second and only while somebody looks.

The scheduler's dashboard asks for some seconds of reports at a time and asks again as long as it
has a viewer, so nothing has to be called off: a viewer, a page or a scheduler that is gone is asked
no more. All numbers of a report are totals since the rank joined: one that is lost is made good by
the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import Any

from tornado.ioloop import PeriodicCallback

from flowml.plan import Plan
from flowml.runtime._dask import tell_from_worker
from flowml.runtime.gang import Gang
from flowml.runtime.meter import SCHEDULER, TRANSFER, WAITING, Bucket
from flowml.runtime.pace import clocks, lags, sent

WATCH, REPORT = "flowml-watch", "flowml-report"
"""The messages from the scheduler and to it."""
REPORT_SECONDS = 0.5
METERED_ENTRIES = 2000
"""Entries that a rank counts from one report to the next: 0.3 % of the time of a fast step loop."""
COMPUTES = frozenset({"load", "here", "map", "gradient"})
"""Kinds of operators that compute; the others bring values together and apply them."""


class Reporter:
    """Reports the runs of one worker that somebody looks at.

    Parameters
    ----------
    dask_worker : distributed.Worker
    gangs : mapping of run to Gang
        The worker's own, as it changes.
    """

    def __init__(self, dask_worker: Any, gangs: Mapping[str, Gang]) -> None:
        self._worker = dask_worker
        self._gangs = gangs
        self._until: dict[str, float] = {}
        self._ticks = PeriodicCallback(self.tell, REPORT_SECONDS * 1000)

    def watch(self, run: str, seconds: float) -> None:
        """Report a run for so many seconds from now. Must not raise: it is a stream handler."""
        if run not in self._gangs:
            return
        self._until[run] = monotonic() + seconds
        if not self._ticks.is_running():
            self._ticks.start()
            self.tell()

    def tell(self) -> None:
        """Send a report of each run that is looked at; stop when none is left."""
        now = monotonic()
        self._until = {
            run: until for run, until in self._until.items() if until > now and run in self._gangs
        }
        for run in self._until:
            found = report(self._gangs[run])
            if found is not None:
                tell_from_worker(self._worker, {"op": REPORT, "run": run, **found})
        if not self._until:
            self._ticks.stop()

    def close(self) -> None:
        """Report no more."""
        self._ticks.stop()
        self._until.clear()


def report(gang: Gang) -> dict[str, Any] | None:
    """Return what a gang is at, in types that msgpack knows, and let its ranks count on.

    Returns
    -------
    dict or None
        ``ranks``: for each rank of this worker ``rank``, ``step``, ``within`` (part, name),
        ``since`` (seconds) and ``spent``, a list of (part, name, seconds);
        ``clocks`` of all replicas at one moment, if each has its own; ``lags``: (edge, replica,
        steps, bound); ``sent``: (edge, raw bytes, sent bytes); ``between_hosts``: seconds.
        None before its ranks have joined, and after they have left.
    """
    board = gang.board  # another thread may let go of it meanwhile
    if board is None:
        return None
    plan, ranks = gang.spec.plan, []
    for rank in gang.ranks:
        said, meter = board.read(rank), board.meters[rank]
        bucket = said.operator_index if said.operator_index != WAITING else meter.bucket
        ranks.append(
            {
                "rank": rank,
                "step": said.step,
                "within": part_of(bucket, plan),
                "since": said.since_seconds,
                "spent": [(*part_of(b, plan), s) for b, s in meter.seconds().items()],
            }
        )
        meter.allow(METERED_ENTRIES)
    return {
        "worker": gang.worker,
        "ranks": ranks,
        "clocks": clocks(gang),
        "lags": [tuple(lag) for lag in lags(gang, board)],
        "sent": [tuple(one) for one in sent(gang)],
        "between_hosts": gang.swap_seconds,
    }


def part_of(bucket: Bucket, plan: Plan) -> tuple[str, str]:
    """Return the part of a step that a bucket is, and its operator or edge.

    Returns
    -------
    (str, str)
        The part is "compute", "apply", "wait", "transfer" or "scheduler".
    """
    if isinstance(bucket, int):
        operator = plan.steps[bucket]
        return ("compute" if operator.kind in COMPUTES else "apply"), operator.name
    return (bucket, "") if bucket in (TRANSFER, SCHEDULER) else ("wait", bucket)
