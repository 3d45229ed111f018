"""The dashboard's part of the Dask scheduler: takes what runs tell and serves it."""

from __future__ import annotations

import logging
from time import monotonic, time
from typing import Any

from distributed.diagnostics.plugin import SchedulerPlugin

from flowml.dashboard.contract import State
from flowml.dashboard.runs import Runs
from flowml.dashboard.runstate import RunState
from flowml.dashboard.serving import serve
from flowml.runtime._dask import add_request, add_stream, remove_names, tell_workers
from flowml.runtime.prometheus import export, withdraw
from flowml.runtime.reports import REPORT, WATCH

logger = logging.getLogger(__name__)

NAME = "flowml-dashboard"
OPEN, EVENT = "flowml_open", "flowml-event"
"""What a driver asks once, and what it tells after."""
WATCH_SECONDS = 5.0
"""For so long workers report after each request."""
ASK_SECONDS = 2.0
"""Time between two requests while somebody looks."""
FRESH_SECONDS = 0.4
"""A state is made anew after so long; a page looks twice a second."""


class FlowDashboard(SchedulerPlugin):
    """Knows the runs of a cluster and shows them.

    Notes
    -----
    Without bokeh, or on a scheduler without dashboard, only the JSON is served. Handlers are O(1)
    in the steps of a run and never wait. Workers are asked for reports only while somebody looks
    at a page or asks for the JSON.
    """

    name = NAME
    idempotent = True

    async def start(self, scheduler: Any) -> None:
        """Start to take and to serve."""
        self.scheduler = scheduler
        self.runs = Runs()
        self._asked: dict[str, float] = {}
        self._seen: dict[str | None, tuple[float, State]] = {}
        add_request(scheduler, OPEN, self.open_run)
        add_stream(scheduler, EVENT, self.take_event)
        add_stream(scheduler, REPORT, self.take_report)
        export(self.runs.samples)
        self.has_page = serve(scheduler, NAME)

    async def close(self) -> None:
        """Take no more."""
        remove_names(self.scheduler, OPEN)
        for message in (EVENT, REPORT):  # one that is on its way ends its sender without a taker
            add_stream(self.scheduler, message, ignored)
        withdraw(self.runs.samples)

    async def open_run(self, key: str, client: str, card: dict[str, Any]) -> dict[str, Any]:
        """Take in a run that is about to start."""
        self.runs.add(RunState(key, card, client, monotonic(), time()))
        self._seen.clear()
        return {"status": "OK", "page": self.has_page}

    def take_event(self, key: str, event: dict[str, Any], client: str = "") -> None:
        """Take in an event of a run. Must not raise: it is a stream handler."""
        self.runs.take(key, event, monotonic())

    def take_report(self, run: str, worker: str, **message: Any) -> None:
        """Take in what a worker tells of a run. Must not raise: it is a stream handler."""
        self.runs.report(run, {"worker": worker, **message}, monotonic())

    def remove_client(self, scheduler: Any, client: str) -> None:
        """End the runs of a client that is gone."""
        for run in self.runs:
            if run.client == client:
                run.lose("its client is gone", monotonic())

    def restart(self, scheduler: Any) -> None:
        """End all runs: their workers are started anew."""
        for run in self.runs:
            run.lose("the cluster was restarted", monotonic())

    def look(self, key: str | None = None) -> State:
        """Return the state as JSON, and let the run that is looked at be reported on.

        Notes
        -----
        Several viewers are shown one state, if it is not half a second old: do not change it.
        """
        now = monotonic()
        self._seen = {k: (at, s) for k, (at, s) in self._seen.items() if now - at < FRESH_SECONDS}
        if key not in self._seen:
            run = self.runs.newest() if key is None else self.runs.get(key)
            if run is not None:
                self._ask(run, now)
            self._seen[key] = now, self.runs.state(key, now, time())
        return self._seen[key][1]

    def _ask(self, run: RunState, now: float) -> None:
        if (
            run.is_over
            or not run.name
            or now - self._asked.get(run.name, -ASK_SECONDS) < ASK_SECONDS
        ):
            return
        self._asked = {name: at for name, at in self._asked.items() if now - at < ASK_SECONDS}
        self._asked[run.name] = now
        message = {"op": WATCH, "run": run.name, "seconds": WATCH_SECONDS}
        there = [w for w in run.workers if w in self.scheduler.workers]
        tell_workers(self.scheduler, {worker: [message] for worker in there})


def ignored(**_: Any) -> None:
    """Take a message for a plugin that has been taken down."""
