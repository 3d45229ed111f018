"""What the dashboard costs: CPU seconds a step of the scheduler and the workers, in pairs.

    python benchmarks/dashboard.py [--quick] [--graphs sync] [--repetitions 20] [--seconds 2]
                                   [--json FILE]

Three kinds of pairs, on one cluster of processes:

- *open / idle*: one run during which a page is opened and closed again and again, by a viewer that
  is a process of its own with Bokeh's client; a pair is two stretches beside each other;
- *idle / without*: runs with and without the plugin on the scheduler, nobody looking, in a new
  order each time;
- *without / without*: the same for runs that differ in nothing. No ratio is better known than this.

Beside the median of the ratios stands that of the quietest fifth of each side: on a machine that
others use too, most stretches are of a busy spell.

CPU seconds are those of the scheduler's and the workers' processes together, user and system. What
a run costs before its first steps, and a page before it is there, is not counted. About five
minutes a graph.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import dask
import numpy as np
from dashboard_report import LIMITS, compared, text
from distributed import Client, SubprocessCluster
from sync_case import CLASSES, PIXELS, REPLICAS

import flowml as fl
from flowml.dashboard.plugin import NAME
from flowml.events import Event, WindowDone

BATCH = 32
PILOT_STEPS = 2000
WINDOW_SECONDS = 0.25
"""Of a run: clocks are read at the ends of windows."""
SETTLING_WINDOWS = 3
"""Not counted after a run began, or a page was opened or closed."""
LOOK_WINDOWS = 4
MOST_STEPS = 1_000_000_000
SETTINGS = {
    # The page of a viewer that is gone must not be kept up while nobody is to look.
    "distributed.scheduler.dashboard.bokeh-application": {
        "allow_websocket_origin": ["*"],
        "keep_alive_milliseconds": 500,
        "check_unused_sessions_milliseconds": 100,
        "unused_session_lifetime_milliseconds": 1,
    }
}
VIEWER = """
import sys
from bokeh.client import pull_session
for url in map(str.strip, sys.stdin):
    session = pull_session(url=url)
    for word in map(str.strip, sys.stdin):
        session.force_roundtrip()
        print("seen", flush=True)
        if word == "close":
            break
    session.close()
"""


def graph_of(name: str, examples: Any) -> fl.Graph:
    """Return softmax regression, synchronous or with bounded-stale reads."""
    model = fl.models.softmax(PIXELS, CLASSES)
    w = fl.table("w", model.init(seed=0))
    batch = fl.load(examples, batch_size=BATCH)
    if name == "ssp":
        return fl.Graph(
            fl.update(w, fl.gradient(model, w.stale(4), batch), fl.sgd(0.001)), name=name
        )
    mean = fl.aggregate("mean", fl.gradient(model, w, batch))
    return fl.Graph(fl.update(w, mean, fl.sgd(0.001)), name=name)


def cpu_seconds(process: int) -> float:
    """Return the CPU seconds that another process has used, all its threads together.

    Notes
    -----
    Linux has a clock for each process, with nanoseconds; its number is made of the process id
    (clock_getcpuclockid(3)). /proc only counts hundredths of seconds.
    """
    return time.clock_gettime(~process << 3 | 2)


class Mark(NamedTuple):
    """The end of a window: steps done, CPU seconds of all processes and of the scheduler."""

    steps: int
    cpu: float
    scheduler: float
    wall: float


@dataclass
class Clocks:
    """Listens to a run and reads the CPU clocks at the end of each window."""

    processes: Sequence[int]
    """The scheduler first."""
    marks: list[Mark] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, WindowDone):
            used = [cpu_seconds(process) for process in self.processes]
            self.marks.append(Mark(event.step + 1, sum(used), used[0], time.monotonic()))

    def stretch(self, begin: int) -> tuple[float, float]:
        """Return CPU seconds a step, and of the scheduler a second, since a mark."""
        first, last = self.marks[begin + SETTLING_WINDOWS - 1], self.marks[-1]
        return (
            (last.cpu - first.cpu) / (last.steps - first.steps),
            (last.scheduler - first.scheduler) / (last.wall - first.wall),
        )

    def await_windows(self, count: int, run: fl.Run) -> None:
        """Wait until so many windows more have ended."""
        wanted = len(self.marks) + count
        while len(self.marks) < wanted:
            if run.status != "running":
                raise RuntimeError(f"the run is {run.status}") from run.error
            time.sleep(0.01)


class Viewer:
    """A process that opens and closes a page."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", VIEWER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def say(self, *words: str) -> None:
        """Tell the viewer an address, "look" or "close"; wait for its answer to the last two."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(*words, sep="\n", file=self._process.stdin, flush=True)
        found = self._process.stdout.readline().strip()
        if found != "seen":
            raise RuntimeError(f"the viewer answered {found!r} to {words!r}")

    def end(self) -> None:
        """End the process."""
        self._process.communicate()


@dataclass(frozen=True)
class Bench:
    """The cluster, its processes, and a viewer."""

    client: Client
    processes: tuple[int, ...]
    viewer: Viewer
    windows: int
    """Of a stretch, those not counted left out."""

    def start(self, graph: fl.Graph, *, plugin: bool) -> tuple[fl.Run, Clocks]:
        """Start a run that goes on until it is stopped, with or without the dashboard's plugin."""
        clocks = Clocks(self.processes)
        if not plugin and self.client.run_on_scheduler(_has_plugin):
            self.client.unregister_scheduler_plugin(NAME)
        settings = {"flowml.dashboard": plugin, "flowml.window": f"{WINDOW_SECONDS} s"}
        with dask.config.set(settings):
            run = graph.start(
                steps=MOST_STEPS,
                replicas=REPLICAS,
                cluster=self.client,
                progress=False,
                on_event=clocks,
            )
            clocks.await_windows(SETTLING_WINDOWS, run)
        if self.client.run_on_scheduler(_has_plugin) != plugin:
            raise RuntimeError("the scheduler is not as the run wants it")
        return run, clocks

    def unwatched(self, graph: fl.Graph, *, plugin: bool) -> tuple[float, float]:
        """Return CPU seconds a step, and of the scheduler a second, of a run of its own."""
        run, clocks = self.start(graph, plugin=plugin)
        begin = len(clocks.marks)
        clocks.await_windows(SETTLING_WINDOWS + self.windows, run)
        _end(run)
        return clocks.stretch(begin)

    def watched(self, graph: fl.Graph, pairs: int) -> list[tuple[tuple[float, float], ...]]:
        """Return pairs (open, idle) of the same from stretches of one run."""
        run, clocks = self.start(graph, plugin=True)
        found = []
        for number in range(pairs):
            sides = [self._stretch(run, clocks, looks=n != number % 2) for n in (0, 1)]
            found.append((sides[1 - number % 2], sides[number % 2]))
            _said(graph.name, "open / idle", number, pairs, found[-1])
        _end(run)
        return [(a, b) for a, b in found]

    def _stretch(self, run: fl.Run, clocks: Clocks, *, looks: bool) -> tuple[float, float]:
        if looks:
            self.viewer.say(run.dashboard, "look")
        begin = len(clocks.marks)
        for number in range(SETTLING_WINDOWS + self.windows):
            clocks.await_windows(1, run)
            if looks and number % LOOK_WINDOWS == 0:
                self.viewer.say("look")  # it reads what has come; a browser asks for nothing
        found = clocks.stretch(begin)
        if looks:
            self.viewer.say("close")
        return found


def _has_plugin(dask_scheduler: Any) -> bool:
    return NAME in dask_scheduler.plugins


def _end(run: fl.Run) -> None:
    run.stop()
    run.wait(60)


def _said(graph: str, kind: str, number: int, of: int, pair: Sequence[tuple[float, float]]) -> None:
    times = " and ".join(f"{1e6 * cpu:.1f} us" for cpu, _ in pair)
    print(f"{graph}, {kind} {number + 1}/{of}: {times} of CPU a step", flush=True)


@contextmanager
def bench(seconds: float) -> Iterator[Bench]:
    """Yield a cluster whose scheduler and workers are processes of their own."""
    with dask.config.set(SETTINGS):
        cluster = SubprocessCluster(
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            n_workers=REPLICAS,
            threads_per_worker=1,
        )
    with cluster, Client(cluster) as client:
        client.wait_for_workers(REPLICAS)
        scheduler, workers = client.run_on_scheduler(os.getpid), client.run(os.getpid).values()
        viewer = Viewer()
        try:
            yield Bench(client, (scheduler, *workers), viewer, round(seconds / WINDOW_SECONDS))
        finally:
            viewer.end()


def pairs_of(
    on: Bench, graph: fl.Graph, repetitions: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Return the pairs of each kind."""
    found: dict[str, list[Any]] = {kind: [] for kind in LIMITS}
    found["open / idle"] = on.watched(graph, repetitions)
    for number in range(repetitions):
        runs: dict[str, tuple[float, float]] = {}
        for name in rng.permutation(("idle", "without", "again")):
            runs[name] = on.unwatched(graph, plugin=name == "idle")
        found["idle / without"].append((runs["idle"], runs["without"]))
        found["without / without"].append((runs["again"], runs["without"]))
        _said(graph.name, "idle / without", number, repetitions, found["idle / without"][-1])
    return found


def main() -> None:
    """Measure what the command line asks for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two short repetitions, as a test")
    parser.add_argument("--graphs", nargs="+", default=["sync"], choices=["sync", "ssp"])
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one stretch, about")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if asked.quick:
        asked.repetitions, asked.seconds, asked.graphs = 2, 0.5, ["sync"]
    rng = np.random.default_rng(0)
    X = rng.random((20_000, PIXELS), np.float32)
    examples = fl.data.arrays(X, rng.integers(0, CLASSES, len(X)))
    results: dict[str, Any] = {}
    with bench(asked.seconds) as on:
        for name in asked.graphs:
            pairs = pairs_of(on, graph_of(name, examples), asked.repetitions, rng)
            results[name] = {k: compared(v, LIMITS[k], rng) for k, v in pairs.items()}
    for name, result in results.items():
        print(
            f"{name}: softmax {PIXELS}-{CLASSES}, {BATCH} examples a replica, {REPLICAS} replicas"
        )
        print(text(result))
    if asked.json:
        asked.json.write_text(json.dumps({"repetitions": asked.repetitions, "results": results}))


if __name__ == "__main__":
    main()
