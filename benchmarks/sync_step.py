"""One synchronous SGD step on two replicas: flowml beside its floor, its peers and plain NumPy.

    python benchmarks/sync_step.py [--quick] [--models softmax mlp] [--batches 32 256 1024]
                                   [--repetitions 5] [--seconds 2] [--json FILE]

All contenders train the same model on the same shuffled batches of the same 60,000 examples in
memory (random float32, or Fashion-MNIST where FLOWML_DATA/fashion-mnist is there). In each
repetition each contender runs once, in turn, so that a busy spell of the machine falls on all of
them. Times are wall times a step; those of flowml are of its whole step loop, windows and their
submission included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from distributed import Client
from sync_case import REPLICAS, Case, Examples, chosen_examples
from sync_dask import DaskGraph
from sync_flowml import Resident
from sync_mpi import Mpi, missing
from sync_processes import Team, Threaded
from sync_report import (
    CONTENDERS,
    LABELS,
    Measured,
    case_text,
    crossing_text,
    crossings,
    ratio_text,
    ratios,
)

from flowml.runtime.attach import embedded_cluster

CHECK_STEPS = 8
"""Steps after which all contenders must have the same parameters."""
SAME_ARITHMETIC = ("ddp", "dask", "mpi")
PILOT_STEPS = 32
FEWEST_STEPS = 8
MOST_STEPS = 200_000


@dataclass(frozen=True)
class Setting:
    """What the command line asked for."""

    cases: tuple[Case, ...]
    repetitions: int
    seconds: float
    """How long a contender runs in one repetition, about."""
    rows: int
    unrolled: int
    """Steps of one Dask graph."""


class Contender(Protocol):
    """Someone who trains."""

    def seconds(self, case: Case, steps: int) -> float:
        """Return the wall time of a step."""

    def parameters(self, case: Case, steps: int) -> Mapping[str, Any]:
        """Return the parameters after some steps."""


@contextmanager
def cluster(workers: int = REPLICAS) -> Iterator[Client]:
    """Yield a client of what ``graph.run`` starts by itself: workers with one thread each.

    Notes
    -----
    Dask's nanny leaves its settings for workers in the environment of this process; they are taken
    out again, because programs that are started later are no workers.
    """
    before = dict(os.environ)
    with (
        embedded_cluster(workers) as local,
        Client(local) as client,
    ):
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
        yield client


@contextmanager
def contenders(
    setting: Setting, examples: Examples
) -> Iterator[tuple[dict[str, Contender], dict[str, str]]]:
    """Yield those that can run here, and for the others why not; end all of them afterwards.

    Notes
    -----
    Processes are started before the cluster, whose nannies change the environment.
    """
    skipped: dict[str, str] = {}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="flowml-benchmark-"))
        teams = {
            "floor": Team("sync_numpy:Floor", REPLICAS, examples),
            "numpy1": Team("sync_numpy:Alone", 1, examples),
        }
        if find_spec("torch"):
            meeting = str(Path(folder) / "gloo")
            teams["ddp"] = Team("sync_torch:Ddp", REPLICAS, examples, meeting)
        else:
            skipped["ddp"] = "torch is not installed"
        for team in teams.values():
            stack.callback(team.close)
        found: dict[str, Contender] = {**teams, "numpy2": Threaded(teams["numpy1"], 2)}
        client = stack.enter_context(cluster())
        found["flowml"] = Resident(client, examples)
        graph = DaskGraph(client, examples, setting.unrolled)
        stack.callback(graph.close)
        found["dask"] = graph
        lacking = missing()
        if lacking:
            skipped["mpi"] = f"{lacking} is not installed"
        else:
            found["mpi"] = Mpi(examples, folder)
        for team in teams.values():
            team.ready()
        yield {name: found[name] for name in CONTENDERS if name in found}, skipped


def differences(running: Mapping[str, Contender], case: Case) -> dict[str, float]:
    """Return how far each contender's parameters are from flowml's, relative to the largest."""
    ours = running["flowml"].parameters(case, CHECK_STEPS)
    largest = max(float(np.abs(leaf).max()) for leaf in ours.values())
    found = {}
    for name in SAME_ARITHMETIC:
        if name in running:
            theirs = running[name].parameters(case, CHECK_STEPS)
            found[name] = (
                max(float(np.abs(theirs[leaf] - ours[leaf]).max()) for leaf in ours) / largest
            )
    return found


def enough_steps(name: str, contender: Contender, case: Case, setting: Setting) -> int:
    """Return how many steps take about the time that a repetition may take, from a short trial."""
    unit = contender.unrolled if isinstance(contender, DaskGraph) else 1
    trial = unit if unit > 1 else PILOT_STEPS
    tried = []
    for _ in range(2):  # the first one meets threads and memory that are not there yet
        step = contender.seconds(case, trial)
        # A short run of flowml is mostly the start of its windows.
        tried.append(contender.median_step if isinstance(contender, Resident) else step)
    steps = min(MOST_STEPS, max(FEWEST_STEPS, int(setting.seconds / max(min(tried), 1e-7))))
    return max(unit, steps // unit * unit)


def measure(running: Mapping[str, Contender], case: Case, setting: Setting) -> dict[str, Measured]:
    """Run every contender once a repetition, each time beginning with the next one."""
    names = list(running)
    found = {n: Measured(enough_steps(n, running[n], case, setting), [], []) for n in names}
    for repetition in range(setting.repetitions):
        first = repetition % len(names)
        for name in names[first:] + names[:first]:
            contender, measured = running[name], found[name]
            measured.samples.append(contender.seconds(case, measured.steps))
            if isinstance(contender, Resident):
                measured.median_steps.append(contender.median_step)
    return found


def result_of(
    running: Mapping[str, Contender], skipped: Mapping[str, str], case: Case, setting: Setting
) -> dict[str, Any]:
    """Return everything about one setting."""
    same = differences(running, case)
    measured = measure(running, case, setting)
    shown = {
        name: measured[name].summary() if name in measured else {"skipped": skipped[name]}
        for name in CONTENDERS
    }
    return {
        "model": case.model,
        "batch": case.batch,
        "contenders": shown,
        "ratios": ratios(shown),
        "difference_from_flowml": same,
    }


def machine() -> dict[str, Any]:
    """Return where this runs, and how busy it was before."""
    return {
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "load_average": [round(n, 2) for n in os.getloadavg()],
    }


def asked(given: Sequence[str] | None) -> tuple[Setting, Path | None]:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny settings, to see that it runs")
    parser.add_argument("--models", nargs="+", choices=("softmax", "mlp"))
    parser.add_argument("--batches", nargs="+", type=int, help="examples a replica and step")
    parser.add_argument("--repetitions", type=int)
    parser.add_argument("--seconds", type=float, help="of each contender in each repetition")
    parser.add_argument("--rows", type=int, help="examples in memory (default: 60000)")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    options = parser.parse_args(given)
    quick = options.quick
    models = options.models or (("softmax",) if quick else ("softmax", "mlp"))
    batches = options.batches or ((32,) if quick else (32, 256, 1024))
    setting = Setting(
        tuple(Case(model, batch) for model in models for batch in batches),
        options.repetitions or (1 if quick else 5),
        options.seconds or (0.05 if quick else 2.0),
        options.rows or (4_000 if quick else 60_000),
        4 if quick else 32,
    )
    return setting, options.json


def main(given: Sequence[str] | None = None) -> int:
    """Measure all settings and print them."""
    setting, file = asked(given)
    examples = chosen_examples(setting.rows)
    told = machine()
    where = examples.folder or "random"
    print(
        f"{told['cores']} cores, load {told['load_average'][0]}; {setting.rows:,} x 784 "
        f"examples ({where}); {setting.repetitions} repetitions of about {setting.seconds:g} s",
        flush=True,
    )
    results = []
    with contenders(setting, examples) as (running, skipped):
        for name, why in skipped.items():
            print(f"{LABELS[name]}: not run, {why}", flush=True)
        for case in setting.cases:
            results.append(result_of(running, skipped, case, setting))
            print(f"\n{case_text(case, results[-1])}", flush=True)
    found = crossings(results)
    print(f"\n{ratio_text(results)}\n\n{crossing_text(found)}")
    if file:
        report = {
            "machine": told,
            "examples": where,
            "rows": setting.rows,
            "repetitions": setting.repetitions,
            "results": results,
            "crossings": found,
        }
        file.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
