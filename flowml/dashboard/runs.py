"""The runs that the scheduler knows, and the JSON that is told of them."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from flowml.dashboard.contract import VERSION, State
from flowml.dashboard.runstate import RunState
from flowml.runtime.prometheus import Sample

MOST_RUNS = 20
"""Ended runs are forgotten, the oldest first, when there are more."""


class Runs:
    """Runs by their key, oldest first."""

    def __init__(self) -> None:
        self._runs: dict[str, RunState] = {}
        self._named: dict[str, RunState] = {}
        """By the name that the runtime gives them."""

    def __iter__(self) -> Iterator[RunState]:
        return iter(self._runs.values())

    def add(self, run: RunState) -> None:
        """Add a run; forget old ones that have ended."""
        self._runs[run.key] = run
        for old in [r for r in self if r.is_over][: max(0, len(self._runs) - MOST_RUNS)]:
            del self._runs[old.key]
            self._named.pop(old.name, None)

    def get(self, key: str) -> RunState | None:
        """Return a run by its key, or None."""
        return self._runs.get(key)

    def newest(self) -> RunState | None:
        """Return the run that started last, of those that go on if any does."""
        found = [run for run in self if not run.is_over] or list(self)
        return found[-1] if found else None

    def take(self, key: str, event: dict[str, Any], now: float) -> None:
        """Hand an event to its run, if it is known."""
        run = self.get(key)
        if run is not None:
            run.take(event, now)
            if run.name:
                self._named[run.name] = run

    def report(self, name: str, message: dict[str, Any], now: float) -> None:
        """Hand the report of a worker to its run, if it is known."""
        run = self._named.get(name)
        if run is not None:
            run.report(message, now)

    def state(self, key: str | None, now: float, time: float) -> State:
        """Return the JSON of the list and of one run, the newest if no key is given.

        Parameters
        ----------
        now, time : float
            Seconds of the monotonic clock, and since the Unix epoch.
        """
        run = self.newest() if key is None else self.get(key)
        return State(
            version=VERSION,
            flowml=version("flowml"),
            time=time,
            runs=[r.line() for r in reversed(list(self))],
            run=None if run is None else run.snapshot(now),
        )

    def samples(self) -> Iterator[Sample]:
        """Yield what Prometheus is told: of each graph its newest run."""
        counts = dict.fromkeys(("waiting", "loading", "running"), 0)
        for run in self:
            if run.status in counts:
                counts[run.status] += 1
        for status, count in counts.items():
            yield Sample("flowml_runs", "Runs that go on", "gauge", count, (("status", status),))
        for graph, run in {r.card["graph"]: r for r in self}.items():
            labels = (("graph", graph),)
            yield Sample("flowml_step", "Steps of the newest run", "gauge", run.step, labels)
            if run.loss is not None:
                yield Sample("flowml_loss", "Its loss", "gauge", run.loss, labels)
            rate = run.rate()
            if rate is not None:
                yield Sample("flowml_steps_per_second", "Its pace", "gauge", rate, labels)
