"""How the time to compile grows with replicas and with operators.

    python benchmarks/compile_scale.py [--quick] [--json FILE] [--repetitions N]

Three times are taken for each size: *collect* is ``fl.Graph(...)`` (names, check), *compile* is
check, place, fuse and lower of that graph, *emit* unrolls four steps of the plan into Dask tasks.
They are CPU times of this process, which computes in one thread and waits for nothing: what else
the machine runs changes them less than wall times. The slope is that of a straight line through the
largest sizes on log-log axes: 1 is linear. The exit status is 0 whatever the numbers are.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import flowml as fl
from flowml.compiler.emit import emit
from flowml.compiler.stages import compile_graph
from flowml.graph import LogicalGraph
from flowml.plan import Plan
from flowml.runtime.feeding import loads, local_feed
from flowml.runtime.taskwindow import Course, RankShare, shipment_key, table_tasks

BLOCK = 10
"""Operators of one block: seven maps, an aggregate, and two writes of the table of the block."""
EMITTED_STEPS = 4
STAGES = ("collect", "compile", "emit")
LINEAR = 1.1
"""A slope above this is more than linear."""


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    replicas: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128, 256, 512)
    replicas_from: int = 51
    """The slope over replicas is taken from here on."""
    operators: tuple[int, ...] = (10, 30, 100, 300, 550, 1000, 1700, 3000)
    operators_from: int = 300
    repetitions: int = 5


FULL = Sizes()
QUICK = Sizes((2, 4, 8), 2, (10, 20, 40), 10, 1)


@dataclass(frozen=True)
class Point:
    """Medians for one graph and one number of replicas. Times in seconds."""

    operators: int
    replicas: int
    tasks: int
    """Dask tasks of ``EMITTED_STEPS`` steps."""
    collect: float
    compile: float
    emit: float


def shift(x: Any) -> Any:
    """Stand for a map of one value."""
    return x


def both(x: Any, w: Any) -> Any:
    """Stand for a map of two values."""
    return x


def declare(operators: int) -> list[Any]:
    """Return the sinks of a graph of about so many operators.

    Notes
    -----
    One load, then blocks of ten: a chain of maps over the batch, half of which also read the table
    of their block, an aggregate, an update of that table, and an assign of what a map makes of the
    result. So the graph is wide (a block a table) and deep (a chain a block), and tables,
    aggregates and writes, two of them in order for each table, grow with it.
    """
    rows = np.zeros((4096, 2), "float32")
    batch = fl.load(rows, batch_size=1)
    sinks: list[Any] = []
    left = max(operators - 1, 3)
    while left >= 3:
        size = min(BLOCK, left)
        table = fl.table(f"w{len(sinks)}", np.zeros(2, "float32"))
        value = fl.map(both, batch, table)
        twice = size > 5
        for number in range(size - (5 if twice else 3)):
            value = fl.map(shift, value) if number % 2 else fl.map(both, value, table)
        written = fl.update(table, fl.aggregate("mean", value), fl.sgd(0.1))
        sinks.append(fl.assign(table, fl.map(shift, written)) if twice else written)
        left -= size
    return sinks


def course_of(plan: Plan) -> Course:
    """Return what emit needs beside the plan, with names in the place of data."""
    feeds = {o.name: local_feed(o, plan.replicas, 0)[0] for o in loads(plan)}
    shares = {
        name: tuple(
            RankShare((f"order-{name}", rank), ((f"rows-{name}", rank),), read=False)
            for rank in range(plan.replicas)
        )
        for name in feeds
    }
    return Course(plan, feeds, shares, shipment_key("00000000"), "00000000")


def emitted(course: Course) -> int:
    """Unroll some steps and return how many tasks they are."""
    tasks, carry = table_tasks(course)
    return len(tasks) + len(emit(course, 0, EMITTED_STEPS, carry).tasks)


def seconds_of(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU time of a call, begun with no garbage, and its result."""
    gc.collect()
    began = time.process_time()
    result = function()
    return time.process_time() - began, result


def sample(operators: int, replicas: int) -> Point:
    """Take each time once for one size."""
    sinks = declare(operators)
    collect, built = seconds_of(lambda: fl.Graph(*sinks, name="scale"))
    graph: LogicalGraph = built.logical
    compiling, plan = seconds_of(lambda: compile_graph(graph, replicas))
    course = course_of(plan)
    emitting, tasks = seconds_of(lambda: emitted(course))
    return Point(len(graph.operators), replicas, tasks, collect, compiling, emitting)


def measure(sizes: Sequence[tuple[int, int]], repetitions: int) -> list[Point]:
    """Return the medians for each (operators, replicas).

    Notes
    -----
    All sizes are taken once, then all again, so that a busy spell of the machine does not fall on
    one size alone.
    """
    rounds = [[sample(*size) for size in sizes] for _ in range(repetitions)]
    return [
        replace(found[0], **{s: statistics.median(getattr(p, s) for p in found) for s in STAGES})
        for found in zip(*rounds, strict=True)
    ]


def slope(sizes: Sequence[float], times: Sequence[float]) -> float:
    """Return the slope of the least-squares line on log-log axes.

    Examples
    --------
    >>> slope([1, 10, 100], [2, 20, 200])
    1.0
    """
    x, y = np.log(np.asarray(sizes, float)), np.log(np.asarray(times, float))
    x -= x.mean()
    return round(float((x * (y - y.mean())).sum() / (x * x).sum()), 3)


def slopes(points: Sequence[Point], axis: str, start: int) -> dict[str, float]:
    """Return the slope of each stage over the points whose size is at least ``start``."""
    large = [p for p in points if getattr(p, axis) >= start]
    sizes = [getattr(p, axis) for p in large]
    return {stage: slope(sizes, [getattr(p, stage) for p in large]) for stage in STAGES}


def shown(points: Sequence[Point], axis: str, start: int, found: dict[str, float]) -> str:
    """Return one direction as a table."""
    lines = [f"{axis:>10} {'tasks':>9}" + "".join(f"{s + ' ms':>13}" for s in STAGES)]
    for p in points:
        times = "".join(f"{1000 * getattr(p, s):>13.2f}" for s in STAGES)
        lines.append(f"{getattr(p, axis):>10} {p.tasks:>9}{times}")
    ends = "".join(f"{found[s]:>13.2f}" for s in STAGES)
    lines.append(f"{'slope':>10} {f'>= {start}':>9}{ends}")
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> int:
    """Measure both directions and print them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--repetitions", type=int, help="of each size (default: 5)")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    options = parser.parse_args(given)
    sizes = QUICK if options.quick else FULL
    repetitions = options.repetitions or sizes.repetitions
    sample(10, 2)  # imports and caches
    report: dict[str, Any] = {"emitted_steps": EMITTED_STEPS, "repetitions": repetitions}
    directions = (
        ("replicas", sizes.replicas_from, [(20, count) for count in sizes.replicas]),
        ("operators", sizes.operators_from, [(count, 2) for count in sizes.operators]),
    )
    for axis, start, wanted in directions:
        points = measure(wanted, repetitions)
        found = slopes(points, axis, start)
        fixed = "20 operators" if axis == "replicas" else "2 replicas"
        print(
            f"{axis}, at {fixed}; CPU time, medians of {repetitions}; "
            f"emit of {EMITTED_STEPS} steps\n"
            f"{shown(points, axis, start, found)}\n"
        )
        report[axis] = {"points": [asdict(p) for p in points], "from": start, "slopes": found}
        steep = [f"{stage} {found[stage]:.2f}" for stage in STAGES if found[stage] > LINEAR]
        print(f"more than linear in {axis}: {', '.join(steep) or 'nothing'}\n")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
