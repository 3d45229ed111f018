"""Push and pull of a table: flowml beside Dask actors, worker.rpc, Ray, and what memory allows.

    python benchmarks/table.py [--quick] [--cases "31 kB" ...] [--repetitions 5] [--seconds 0.5]
                               [--json FILE]

A step pulls a table and pushes as much; of a table of rows, 1,000 of 100,000 rows of 64 floats.
One replica alone, then two that contend. In each repetition each contender runs once, in turn, so
that a busy spell of the machine falls on all of them. Times are medians over steps, and of those
over repetitions; beside the ratios of medians stand those of each contender's fastest tenth of
steps, which are of a machine that does nothing else. The wall time of flowml's runs by their steps
includes windows and their submission. About three minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from distributed import Client
from sync_step import cluster
from table_case import CASES, Case, Flowml, Limit, Times
from table_peers import Actor, Ray, Rpc, missing_ray

REPLICAS = (1, 2)
LABELS = {
    "limit": "limit: two copies, or fancy index",
    "flowml": "flowml resident",
    "rpc": "worker.rpc to a handler",
    "actor": "Dask actor",
    "ray": "Ray actor",
}
PILOT_STEPS = 20
FEWEST_STEPS, MOST_STEPS = 10, 50_000
QUICK_CASES = ("4 kB", "1,000 rows, hash")
WANTED = {"31 kB": (("actor", 25.0), ("rpc", 8.0))}
"""How many times faster than whom flowml is to be, with one replica."""
LIMITS = {"4 MB": 3.0, "1,000 rows, sparse": 4.0, "1,000 rows, hash": 10.0}
"""How many times the limit flowml may take."""


class Contender(Protocol):
    """Someone who holds a table for others."""

    def seconds(self, case: Case, replicas: int, steps: int) -> Times:
        """Return the seconds of a step."""


@dataclass
class Measured:
    """What one contender took, once a repetition."""

    steps: int
    samples: list[Times] = field(default_factory=list)
    walls: list[float] = field(default_factory=list)
    """Of flowml: wall time of a run by its steps."""

    @property
    def seconds(self) -> float:
        """The median of medians."""
        return median(one.median for one in self.samples)

    @property
    def tenth(self) -> float:
        """The median of fastest tenths. Unit: seconds."""
        return median(one.tenth for one in self.samples)

    def numbers(self) -> dict[str, Any]:
        """Return what goes into a report, in microseconds."""
        found: dict[str, Any] = {
            "median_us": round(1e6 * self.seconds, 2),
            "fastest_tenth_us": round(1e6 * self.tenth, 2),
            "samples_us": [round(1e6 * one.median, 2) for one in self.samples],
            "steps": self.steps,
        }
        if self.walls:
            found["wall_us"] = round(1e6 * median(self.walls), 2)
        return found


def enough_steps(contender: Contender, case: Case, replicas: int, seconds: float) -> int:
    """Return how many steps take about so long, from a short trial."""
    step = contender.seconds(case, replicas, PILOT_STEPS).median
    return min(MOST_STEPS, max(FEWEST_STEPS, int(seconds / max(step, 1e-7))))


def measure(
    running: Mapping[str, Contender], case: Case, replicas: int, repetitions: int, seconds: float
) -> dict[str, Measured]:
    """Run every contender once a repetition, each time beginning with the next one."""
    names = list(running)
    found = {n: Measured(enough_steps(running[n], case, replicas, seconds)) for n in names}
    for repetition in range(repetitions):
        first = repetition % len(names)
        for name in names[first:] + names[:first]:
            contender, measured = running[name], found[name]
            measured.samples.append(contender.seconds(case, replicas, measured.steps))
            if isinstance(contender, Flowml):
                measured.walls.append(contender.wall)
    return found


def ratios(found: Mapping[str, Measured], which: str = "seconds") -> dict[str, float]:
    """Return how many times flowml's time others take, and flowml that of the limit."""
    times = {name: getattr(measured, which) for name, measured in found.items()}
    ours = times.pop("flowml")
    of_limit = ours / times.pop("limit")
    return {"flowml/limit": of_limit, **{f"{n}/flowml": t / ours for n, t in times.items()}}


def line(case: Case, replicas: int, found: Mapping[str, Measured]) -> str:
    """Return a row of the table."""
    times = "".join(
        f"{1e6 * found[name].seconds:10,.1f}" if name in found else f"{'-':>10}" for name in LABELS
    )
    shown, quiet = ratios(found), ratios(found, "tenth")
    each = "".join(
        f"{f'{shown[n]:.1f} ({quiet[n]:.1f})' if n in shown else '-':>16}" for n in RATIOS
    )
    wall = median(found["flowml"].walls)
    return f"{case.name:20}{replicas:>8}{times}{1e6 * wall:10,.1f}{each}"


RATIOS = ("flowml/limit", "rpc/flowml", "actor/flowml", "ray/flowml")
HEADER = (
    f"{'us a step':20}{'replicas':>8}{''.join(f'{name:>10}' for name in LABELS)}{'(wall)':>10}"
    f"{''.join(f'{name:>16}' for name in RATIOS)}"
)


def wanted_lines(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return for each thing that was wanted of one replica whether it is so."""
    lines = []
    for result in (result for result in results if result["replicas"] == 1):
        name = result["case"]
        found, quiet = result["ratios"], result["ratios_of_fastest_tenth"]
        for peer, factor in WANTED.get(name, ()):
            times, best = found[f"{peer}/flowml"], quiet[f"{peer}/flowml"]
            lines.append(
                f"{name}: {times:.1f} times faster than {LABELS[peer]} (of the fastest tenth "
                f"{best:.1f}); {factor:g}: {_yes(times >= factor)} ({_yes(best >= factor)})"
            )
        if name in LIMITS:
            times, best, most = found["flowml/limit"], quiet["flowml/limit"], LIMITS[name]
            lines.append(
                f"{name}: {times:.1f} times the limit (of the fastest tenth {best:.1f}); "
                f"at most {most:g}: {_yes(times <= most)} ({_yes(best <= most)})"
            )
    return lines


def _yes(holds: bool) -> str:
    return "yes" if holds else "NO"


def asked(given: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny settings, to see that it runs")
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES])
    parser.add_argument("--repetitions", type=int)
    parser.add_argument("--seconds", type=float, help="of each contender in each repetition")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    options = parser.parse_args(given)
    quick = options.quick
    options.cases = options.cases or (QUICK_CASES if quick else [case.name for case in CASES])
    options.repetitions = options.repetitions or (1 if quick else 5)
    options.seconds = options.seconds or (0.02 if quick else 0.5)
    return options


def contenders(client: Client, stack: ExitStack) -> tuple[dict[str, Contender], dict[str, str]]:
    """Return those that can run here, and for the others why not."""
    *workers, server = sorted(client.scheduler_info(n_workers=-1)["workers"])
    found: dict[str, Contender] = {
        "limit": Limit(client, workers),
        "flowml": Flowml(client),
        "rpc": Rpc(client, workers, server),
        "actor": Actor(client, workers, server),
    }
    lacking = missing_ray()
    if lacking:
        return found, {"ray": lacking}
    found["ray"] = ray = Ray(len(workers))
    stack.callback(ray.close)
    return found, {}


def main(given: Sequence[str] | None = None) -> int:
    """Measure all tables and print them."""
    options, results = asked(given), []
    before = os.getloadavg()
    print(
        f"{os.cpu_count()} cores, load {before[0]:.1f}; {options.repetitions} repetitions of about "
        f"{options.seconds:g} s",
        flush=True,
    )
    with cluster(max(REPLICAS) + 1) as client, ExitStack() as stack:
        running, skipped = contenders(client, stack)
        for name, why in skipped.items():
            print(f"{LABELS[name]}: not run, {why}", flush=True)
        print(f"\n{HEADER}", flush=True)
        for case in (case for case in CASES if case.name in options.cases):
            for replicas in REPLICAS:
                found = measure(running, case, replicas, options.repetitions, options.seconds)
                print(line(case, replicas, found), flush=True)
                results.append(
                    {
                        "case": case.name,
                        "replicas": replicas,
                        "contenders": {name: m.numbers() for name, m in found.items()},
                        "ratios": ratios(found),
                        "ratios_of_fastest_tenth": ratios(found, "tenth"),
                    }
                )
    print("\n" + "\n".join(wanted_lines(results)))
    print(f"load {os.getloadavg()[0]:.1f} at the end")
    if options.json:
        report = {
            "cores": os.cpu_count(),
            "load": {"before": before, "after": os.getloadavg()},
            "repetitions": options.repetitions,
            "skipped": skipped,
            "results": results,
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
