"""A step of two replicas in virtual time beside a real one, for graphs without barriers.

    python benchmarks/simulated_step.py [--quick] [--graphs ssp asgd] [--batch 256]
                                        [--repetitions 5] [--seconds 1] [--json FILE]

The simulator is told how long the steps of an async run took, reads and writes included and waits
for others left out, and how long waking up takes (graph.measure); it says what a step takes under
the promises of each graph. Each repetition runs the graph on two workers between two async runs, so
that a busy spell of the machine falls on both. Ratios are simulated over real seconds a step;
medians over the repetitions.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, median

from distributed import Client
from explain_calibration import ROOT, graph_of, mean_step, steps_in
from sync_case import REPLICAS, Case, chosen_examples
from sync_step import cluster

import flowml as fl

GRAPHS = ("ssp", "asgd")
SIMULATED_STEPS = 2000
"""So many that one replica may come as far ahead as its promise allows."""
NEAR = 0.2


@dataclass
class Found:
    """What one graph took in real and in virtual time; a number for each repetition. Seconds."""

    alone: list[float] = field(default_factory=list)
    """Of the async runs, without waits: once more than there are repetitions."""
    simulated: list[float] = field(default_factory=list)
    real: list[float] = field(default_factory=list)

    def ratios(self) -> list[float]:
        """Return simulated over real seconds; a run stands between two measurements."""
        return [
            (before + after) / 2 / real
            for before, after, real in zip(
                self.simulated, self.simulated[1:], self.real, strict=False
            )
        ]

    def ratio(self) -> float:
        """Return the median of the ratios."""
        return median(self.ratios())


def simulate(graph: fl.Graph, timed: fl.simulate.Timed, wake: float, found: Found) -> None:
    """Note what steps took alone, and what a step of the graph takes in virtual time."""
    run = graph.simulate(
        replicas=REPLICAS,
        steps=SIMULATED_STEPS,
        compute=timed,
        network=fl.simulate.Network(0.0, math.inf, wake=wake),
    )
    found.alone.append(mean(float(own.mean()) for own in timed.seconds))
    found.simulated.append(run.seconds / run.steps)


def compare(
    graph: fl.Graph, free: fl.Graph, client: Client, repetitions: int, seconds: float
) -> Found:
    """Simulate and run a graph, again and again, with the steps of one whose replicas are free."""
    options = {"replicas": REPLICAS, "cluster": client, "progress": False}
    steps, found = steps_in(graph, seconds, **options), Found()
    wake = graph.measure(REPLICAS, client).figures.wake_seconds

    def told() -> None:
        timed = fl.simulate.Timed.of(free.run(steps=steps, **options).history)
        simulate(graph, timed, wake, found)

    told()
    for _ in range(repetitions):
        found.real.append(mean_step(graph.run(steps=steps, **options).history))
        told()
    return found


def line(name: str, batch: int, found: Found) -> str:
    """Return a row of the table."""
    times = "".join(
        f"{median(of) * 1e6:11,.0f}" for of in (found.alone, found.simulated, found.real)
    )
    each = found.ratios()
    near = "within" if abs(found.ratio() - 1) <= NEAR else "NOT within"
    return (
        f"{name:8}{batch:7}{times}{found.ratio():8.2f} ({min(each):.2f}-{max(each):.2f})"
        f"  {near} {NEAR:.0%}"
    )


HEADER = f"{'graph':8}{'batch':>7}{'alone':>11}{'simulated':>11}{'real':>11}{'ratio':>8} (of each)"


def asked(given: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny settings, to see that it runs")
    parser.add_argument("--graphs", nargs="+", choices=GRAPHS, default=GRAPHS)
    parser.add_argument("--batch", nargs="+", type=int, help="examples a replica and step")
    parser.add_argument("--repetitions", type=int)
    parser.add_argument("--seconds", type=float, help="of each run")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    options = parser.parse_args(given)
    quick = options.quick
    options.batch = options.batch or ((32,) if quick else (32, 256))
    options.repetitions = options.repetitions or (1 if quick else 5)
    options.seconds = options.seconds or (0.1 if quick else 1.0)
    options.rows = 4_000 if quick else 20_000
    return options


def main(given: Sequence[str] | None = None) -> int:
    """Compare all graphs and print them."""
    options, results = asked(given), []
    sys.path.append(str(ROOT))
    examples = chosen_examples(options.rows)
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; softmax 784-10, {REPLICAS} "
        f"replicas; {options.repetitions} repetitions; times in us a step\n\n{HEADER}",
        flush=True,
    )
    with cluster() as client:
        for batch in options.batch:
            for name in options.graphs:
                case = Case("softmax", batch)
                graph, free = (graph_of(n, case, examples, options.rows) for n in (name, "asgd"))
                found = compare(graph, free, client, options.repetitions, options.seconds)
                print(line(name, batch, found), flush=True)
                shown = {"graph": name, "batch": batch, "ratio": found.ratio()}
                results.append({**shown, "ratios": found.ratios(), **asdict(found)})
    print(f"load {os.getloadavg()[0]:.1f} at the end")
    if options.json:
        report = {"cores": os.cpu_count(), "load": os.getloadavg(), "results": results}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
