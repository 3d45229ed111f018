"""Time to a loss on four replicas of which some are slow, under sync and looser promises.

    python benchmarks/straggler.py [--quick] [--worlds even slow random] [--repetitions 3]
                                   [--nap 0.02] [--target 0.12] [--json FILE]

Softmax regression on digits, in real processes on this machine and in virtual time. A step is a nap
of 20 ms and a little work; the work is measured here, and both are what the simulator is told.
Each contender has the rate (1, 2, 4, ...) at which it is soonest in the even world, in virtual
time. The loss is over all examples and is taken in every step of every replica. Repetitions differ
by the seed of the run: of the batches and of the slow steps. About eight minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
from distributed import Client
from straggler_case import (
    CONTENDERS,
    EVEN,
    QUORUM,
    REPLICAS,
    WORLDS,
    World,
    asleep,
    awake,
    graph_of,
    reached,
)
from straggler_report import (
    BASE,
    Reached,
    number,
    pairs,
    ratio,
    tau,
    wanted_lines,
    world_text,
)
from sync_step import cluster

import flowml as fl
from flowml.events import Event, ReplicaDone

RATES = (2.0, 4.0, 8.0, 16.0)
TUNED_STEPS = 200
MOST_STEPS = 2000
MOST_SECONDS = 60.0
"""Real or virtual, after which a run has not reached the target."""
BEYOND = 0.95
"""A run is stopped when the mean loss of a replica's window is below this share of the target."""
WINDOW = "250 ms"
WANTED = (
    ("slow", f"quorum {QUORUM}", 2.0),
    ("slow", "async", 2.0),
    ("random", "stale 4", 1.3),
)
NO_NETWORK = fl.simulate.Network(latency=0.0, bandwidth=math.inf)
"""What replicas of one host send lies in their memory: its time is measured as work."""


@dataclass(frozen=True)
class Setting:
    """What the command line asked for."""

    worlds: tuple[World, ...]
    repetitions: int
    nap: float
    """Seconds."""
    target: float
    rates: tuple[float, ...]


@dataclass(frozen=True)
class Work:
    """What a step does beside its nap, in seconds, and how much a step's time varies."""

    seconds: float
    spread: float

    @classmethod
    def of(cls, run: fl.Run, nap: float) -> Work:
        """Return what the steps of a run in the even world did."""
        busy = run.history["seconds"] - run.history["wait_seconds"]
        middle, low, high = np.quantile(busy, (0.5, 0.16, 0.84))
        return cls(max(0.0, float(middle) - nap), float(np.log(high / low)) / 2)


@dataclass
class Watcher:
    """Stops a run that is past its target."""

    target: float
    run: fl.Run | None = None
    past: bool = field(default=False, init=False)

    def __call__(self, event: Event) -> None:
        """Look at the loss of each window of each replica."""
        if isinstance(event, ReplicaDone) and event.loss is not None:
            self.past = self.past or event.loss <= BEYOND * self.target
        if self.past and self.run is not None:
            self.run.stop()


def real_run(
    name: str, world: World, lr: float, setting: Setting, client: Client, seed: int
) -> fl.Run:
    """Run a contender on four workers until it is past the target."""
    watcher = Watcher(setting.target)
    graph = graph_of(name, lr, partial(asleep, world, setting.nap))
    watcher.run = graph.start(
        steps=MOST_STEPS,
        replicas=REPLICAS,
        cluster=client,
        seed=seed,
        max_seconds=MOST_SECONDS,
        on_event=watcher,
        progress=False,
    )
    return watcher.run.wait()


def virtual_run(
    name: str, world: World, lr: float, setting: Setting, work: Work, seed: int, steps: int
) -> fl.Run:
    """Run a contender in virtual time."""
    return graph_of(name, lr, awake).simulate(
        replicas=REPLICAS,
        steps=steps,
        compute=world.compute(setting.nap, work.seconds, work.spread),
        network=NO_NETWORK,
        seed=seed,
        max_seconds=MOST_SECONDS,
    )


def tuned(name: str, setting: Setting, work: Work) -> tuple[float, int]:
    """Return the rate at which a contender is soonest among equals, and its steps to the target."""
    found = []
    for lr in setting.rates:
        run = virtual_run(name, EVEN, lr, setting, work, 0, TUNED_STEPS)
        seconds, _ = reached(run.history, name, setting.target)
        found.append((seconds, lr))
    seconds, lr = min(found)
    usual = setting.nap + work.seconds
    return lr, TUNED_STEPS if math.isinf(seconds) else int(seconds / usual) + 1


def compare(
    world: World,
    setting: Setting,
    rates: dict[str, tuple[float, int]],
    work: Work,
    client: Client,
) -> tuple[dict[str, Reached], dict[str, Reached]]:
    """Return what all contenders took in one world, in real and in virtual time.

    Notes
    -----
    Contenders take turns, a repetition after the other, so that a busy spell falls on all of them.
    In virtual time a fast replica makes five times the steps of a slow one before that is there.
    """
    real: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTENDERS}
    made: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTENDERS}
    for seed in range(setting.repetitions):
        for name, (lr, steps) in rates.items():
            run = real_run(name, world, lr, setting, client, seed)
            real[name].append(reached(run.history, name, setting.target))
            run = virtual_run(name, world, lr, setting, work, seed, 3 * steps)
            made[name].append(reached(run.history, name, setting.target))
    return {n: _of(found) for n, found in real.items()}, {
        n: _of(found) for n, found in made.items()
    }


def _of(found: Sequence[tuple[float, float]]) -> Reached:
    seconds, examples = zip(*found, strict=True)
    return Reached(seconds, examples)


def result_of(real: dict[str, Reached], made: dict[str, Reached]) -> dict[str, Any]:
    """Return one world for the report."""
    kinds = pairs(real, made)
    return {
        "contenders": {
            name: {
                "real": {**real[name].numbers(), "times_sooner": number(ratio(real, name))},
                "simulated": {**made[name].numbers(), "times_sooner": number(ratio(made, name))},
            }
            for name in real
        },
        "kendall_tau": tau(real, made),
        "pairs": {" / ".join(pair): kind for pair, kind in kinds.items()},
    }


def asked(given: Sequence[str] | None) -> tuple[Setting, Path | None]:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny settings, to see that it runs")
    parser.add_argument("--worlds", nargs="+", choices=[world.name for world in WORLDS])
    parser.add_argument("--repetitions", type=int)
    parser.add_argument("--nap", type=float, help="seconds a replica sleeps in a usual step")
    parser.add_argument("--target", type=float, help="loss to be reached")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    options = parser.parse_args(given)
    quick = options.quick
    names = options.worlds or (("slow",) if quick else [world.name for world in WORLDS])
    setting = Setting(
        tuple(world for world in WORLDS if world.name in names),
        options.repetitions or (1 if quick else 3),
        options.nap or (0.005 if quick else 0.02),
        options.target or (1.0 if quick else 0.12),
        (4.0,) if quick else RATES,
    )
    return setting, options.json


def main(given: Sequence[str] | None = None) -> int:
    """Run all contenders in all worlds and print them."""
    setting, file = asked(given)
    found, results = {}, {}
    with cluster(REPLICAS) as client, dask.config.set({"flowml.window": WINDOW}):
        pilots = [real_run(BASE, EVEN, 4.0, setting, client, seed) for seed in range(2)]
        work = Work.of(pilots[1], setting.nap)
        share = work.seconds / (setting.nap + work.seconds)
        print(
            f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {REPLICAS} replicas; naps of "
            f"{1000 * setting.nap:g} ms and {1000 * work.seconds:.2f} ms of work ({share:.0%} of a "
            f"step), spread {work.spread:.1%}; {setting.repetitions} repetitions",
            flush=True,
        )
        rates = {name: tuned(name, setting, work) for name in CONTENDERS}
        print("rates: " + ", ".join(f"{n} {lr:g}" for n, (lr, _) in rates.items()), flush=True)
        for world in setting.worlds:
            real, made = compare(world, setting, rates, work, client)
            found[world.name], results[world.name] = real, result_of(real, made)
            print(f"\n{world_text(world.says, real, made, setting.target)}", flush=True)
    wanted = [one for one in WANTED if one[0] in found]
    print(f"\n{wanted_lines(found, wanted)}\nload {os.getloadavg()[0]:.1f} at the end")
    if file:
        report = {
            "cores": os.cpu_count(),
            "load": os.getloadavg(),
            "nap_seconds": setting.nap,
            "work_seconds": work.seconds,
            "target": setting.target,
            "repetitions": setting.repetitions,
            "rates": {name: lr for name, (lr, _) in rates.items()},
            "worlds": results,
        }
        file.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
