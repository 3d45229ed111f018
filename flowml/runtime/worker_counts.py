"""What the ranks of a worker have done since it started, by graph: for Prometheus."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sized
from dataclasses import dataclass, field

from flowml.runtime.gang import Window
from flowml.runtime.outcome import Totals
from flowml.runtime.prometheus import Sample


@dataclass
class WorkerCounts:
    """Counters of one worker.

    Attributes
    ----------
    runs : sized
        The runs that are on this worker now.
    steps, seconds, waits : mapping of graph to number
        Steps of its ranks, their wall time, and the part of it in which they waited.
    """

    runs: Sized
    steps: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    waits: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, graph: str, window: Window) -> None:
        """Count a window that has been run."""
        for _, record in window.records:
            totals = Totals.of(record.history)
            self.steps[graph] += totals.steps
            self.seconds[graph] += totals.seconds
            self.waits[graph] += totals.wait_seconds

    def samples(self) -> Iterator[Sample]:
        """Yield them for Prometheus."""
        yield Sample("flowml_worker_runs", "Runs that have ranks here", "gauge", len(self.runs))
        for name, text, values in (
            ("flowml_worker_steps", "Steps of the ranks here", self.steps),
            ("flowml_worker_step_seconds", "Wall time of these steps", self.seconds),
            ("flowml_worker_wait_seconds", "Part in which they waited for others", self.waits),
        ):
            for graph, value in list(values.items()):
                yield Sample(name, text, "counter", value, (("graph", graph),))
