"""What explain predicts beside what a run does: the time of a step, and the bytes between replicas.

    python benchmarks/explain_calibration.py [--quick] [--models softmax mlp] [--batch 256]
                                             [--graphs ssgd local_sgd ssp batch_gradient]
                                             [--repetitions 5] [--seconds 1] [--json FILE]

Each repetition runs the graph on two workers between two measurements there (graph.measure), so
that a busy spell of the machine falls on both, and is set against the mean of the two predictions;
then one replica runs on the same examples, as one batch. Ratios are medians over the repetitions.
A measured step is the mean over all steps of a run and both replicas; the wall time beside it
includes the windows and their submission.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from distributed import Client
from sync_case import LEARNING_RATE, REPLICAS, Case, Examples, chosen_examples
from sync_step import cluster

import flowml as fl
from flowml.thinning import strides

ROOT = Path(__file__).parents[1]
GRAPHS = ("ssgd", "local_sgd", "ssp", "batch_gradient")
PILOT_STEPS = 50
FEWEST_STEPS, MOST_STEPS = 16, 100_000
COUNTED_STEPS = 480
"""Steps of the run whose bytes are counted: a multiple of local SGD's period."""


@dataclass
class Found:
    """What one graph was predicted to do, and did; a number for each repetition. Seconds.

    Predictions were made before each repetition, and once more after the last one.
    """

    predicted: list[float] = field(default_factory=list)
    measured: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    predicted_one: list[float] = field(default_factory=list)
    measured_one: list[float] = field(default_factory=list)
    """A step of one replica on the same examples."""
    parts: list[dict[str, float]] = field(default_factory=list)
    """Of the predictions: work, waiting, barriers, bytes, updates, lock."""
    predicted_bytes: dict[str, float] = field(default_factory=dict)
    """A step: written, read."""
    counted_bytes: dict[str, float] = field(default_factory=dict)

    def ratios(self) -> list[float]:
        """Return for each repetition the predictions before and after it over the measured step."""
        return [
            (before + after) / 2 / measured
            for before, after, measured in zip(
                self.predicted, self.predicted[1:], self.measured, strict=False
            )
        ]

    def ratio(self) -> float:
        """Return the median of the ratios."""
        return median(self.ratios())

    def speedups(self) -> tuple[float, float]:
        """Return the predicted and the measured speed-up against one replica."""
        return (
            median(self.predicted_one) / median(self.predicted),
            median(self.measured_one) / median(self.measured),
        )

    def bytes_ratios(self) -> dict[str, float]:
        """Return predicted over counted bytes; of none at all, 1."""
        return {
            kind: self.predicted_bytes[kind] / counted
            if counted
            else float(self.predicted_bytes[kind] == 0)
            for kind, counted in self.counted_bytes.items()
        }


def graph_of(name: str, case: Case, examples: Examples, rows: int) -> fl.Graph:
    """Return a graph of graphs/; the whole-share one on fewer rows, so that its step is short."""
    build = importlib.import_module(f"graphs.{name}").build
    X, y = examples.arrays()
    if name == "batch_gradient":
        return build(case.new_model(), (X[:rows], y[:rows]), lr=LEARNING_RATE)
    return build(case.new_model(), (X, y), batch_size=case.batch, lr=LEARNING_RATE)


def mean_step(history: Any) -> float:
    """Return the mean seconds of a step, those included that are not kept."""
    return float(np.average(history["seconds"], weights=strides(history["step"])))


def steps_in(graph: fl.Graph, seconds: float, **options: Any) -> int:
    """Return how many steps take about so long, from a short trial."""
    pilot = graph.run(steps=PILOT_STEPS, **options)
    steps = int(seconds / max(median(pilot.history["seconds"]), 1e-6))
    return min(max(steps, FEWEST_STEPS), MOST_STEPS)


def predicted(graph: fl.Graph, client: Client, found: Found) -> Any:
    """Measure the parts of a step, and note the prediction; return the explanation."""
    explanation = graph.explain(REPLICAS, measured=graph.measure(REPLICAS, client))
    prediction = explanation.prediction
    found.predicted.append(prediction.seconds)
    found.predicted_one.append(prediction.one_replica_seconds)
    found.parts.append(
        {name: value for name, value in asdict(prediction).items() if "_seconds" in name}
    )
    return explanation


def compare(
    graph: fl.Graph, alone: fl.Graph, client: Client, repetitions: int, seconds: float
) -> Found:
    """Measure, predict and run a graph, and beside it one replica, again and again."""
    one = {"replicas": 1, "cluster": client, "progress": False}
    options = {**one, "replicas": REPLICAS}
    steps, steps_of_one = steps_in(graph, seconds, **options), steps_in(alone, seconds, **one)
    found = Found()
    explanation = predicted(graph, client, found)
    for _ in range(repetitions):
        run = graph.run(steps=steps, **options)
        found.measured.append(mean_step(run.history))
        found.wall.append(run.seconds / run.steps)
        explanation = predicted(graph, client, found)
        found.measured_one.append(mean_step(alone.run(steps=steps_of_one, **one).history))
    moved = graph.run(steps=COUNTED_STEPS, record=True, **options).moved
    edges = explanation.edges
    found.predicted_bytes = {
        "written": sum(edge.written_bytes for edge in edges),
        "read": sum(edge.read_bytes for edge in edges),
    }
    found.counted_bytes = {
        "written": sum(moved.written.values()) / COUNTED_STEPS,
        "read": sum(moved.read.values()) / COUNTED_STEPS,
    }
    return found


def line(name: str, case: Case, found: Found) -> str:
    """Return a row of the table."""
    times = "".join(
        f"{median(of) * 1e6:10,.0f}" for of in (found.predicted, found.measured, found.wall)
    )
    each = found.ratios()
    sizes = "  ".join(
        f"{found.predicted_bytes[kind]:11,.0f} {found.counted_bytes[kind]:11,.0f}"
        for kind in ("written", "read")
    )
    faster = "  ".join(f"{speedup:9.2f}" for speedup in found.speedups())
    return (
        f"{case.model:8} {case.batch:5} {name:15}{times}  {found.ratio():5.2f} "
        f"({min(each):.2f}-{max(each):.2f}){faster}  {sizes}"
    )


HEADER = (
    f"{'model':8} {'batch':>5} {'graph':15}{'predicted':>10}{'measured':>10}{'wall':>10}  "
    "ratio (of each)    speed-up: measured    written B: counted      read B: counted"
)


def asked(given: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny settings, to see that it runs")
    parser.add_argument("--models", nargs="+", choices=("softmax", "mlp"))
    parser.add_argument("--batch", nargs="+", type=int, help="examples a replica and step")
    parser.add_argument("--graphs", nargs="+", choices=GRAPHS, default=GRAPHS)
    parser.add_argument("--repetitions", type=int)
    parser.add_argument("--seconds", type=float, help="of each run")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    options = parser.parse_args(given)
    quick = options.quick
    options.models = options.models or (("softmax",) if quick else ("softmax", "mlp"))
    options.batch = options.batch or ((32,) if quick else (256,))
    options.repetitions = options.repetitions or (1 if quick else 5)
    options.seconds = options.seconds or (0.1 if quick else 1.0)
    options.rows = 4_000 if quick else 20_000
    return options


def main(given: Sequence[str] | None = None) -> int:
    """Compare all graphs and print them."""
    options = asked(given)
    sys.path.append(str(ROOT))
    examples = chosen_examples(options.rows)
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {options.repetitions} repetitions "
        f"of about {options.seconds:g} s; times in us a step\n\n{HEADER}",
        flush=True,
    )
    results = []
    with cluster() as client:
        for model in options.models:
            for batch in options.batch:
                case = Case(model, batch)
                for name in options.graphs:
                    graph, alone = (
                        graph_of(name, one, examples, options.rows // 5)
                        for one in (case, Case(model, REPLICAS * batch))
                    )
                    found = compare(graph, alone, client, options.repetitions, options.seconds)
                    print(line(name, case, found), flush=True)
                    results.append(
                        {
                            "model": model,
                            "batch": batch,
                            "graph": name,
                            "ratio": found.ratio(),
                            "speedups": found.speedups(),
                            "bytes_ratios": found.bytes_ratios(),
                            **asdict(found),
                        }
                    )
    far = [r for r in results if not 1 / 1.3 <= r["ratio"] <= 1.3]
    print(
        f"\n{len(results) - len(far)} of {len(results)} predicted steps within 30 % of the measured"
    )
    print(f"load {os.getloadavg()[0]:.1f} at the end")
    if options.json:
        report = {"cores": os.cpu_count(), "load": os.getloadavg(), "results": results}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
