"""``flowml compare``: several graphs on the same data, each on several numbers of replicas."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from flowml.cli.arguments import (
    cluster_option,
    counts_of,
    json_option,
    options_of,
    several_graph_options,
)
from flowml.cli.building import Options, build, parameters_of
from flowml.cli.datasets import Dataset
from flowml.cli.endings import reported
from flowml.cli.results import model_words
from flowml.compare import Comparison, compare
from flowml.compare.comparison import WIDTH
from flowml.options import EXECUTORS
from flowml.run import Graph


@click.command(name="compare")
@several_graph_options
@click.option("--target-loss", type=float, help="By default the lowest that all come to.")
@click.option("--repetitions", type=click.IntRange(1), default=1, help="Times are medians.")
@click.option("--report", type=click.Path(dir_okay=False), help="An HTML file with the plots.")
@click.option("--max-seconds", type=float, help="End each run after this time.")
@click.option("--executor", type=click.Choice(EXECUTORS), help="By default resident.")
@cluster_option
@json_option
@reported
def compare_command(
    targets: tuple[str, ...], replicas: str, as_json: bool, report: str | None, **given: Any
) -> None:
    """Compare graphs: time, examples and bytes to a training loss, speed-up, and the test score.

    FILE_OR_NAME is as for run. A plain NumPy loop of the first graph's model and rule runs beside
    them. --set KEY=VALUE goes to the graphs that take the key, --set NAME.KEY=VALUE to one.
    """
    counts = counts_of(replicas)
    options = settings_by_target(targets, options_of(given, None))
    first = build(targets[0], replace(options[targets[0]], replicas=max(counts)))
    data = first.dataset
    if not as_json:
        name = "" if data is None else data.name
        parts = (", ".join(targets), name, model_words(first.model), f"{replicas} replicas")
        click.echo(" · ".join(part for part in parts if part))
    found = compare(
        {_name(target, targets): _builder(target, options[target], data) for target in targets},
        replicas=counts,
        target_loss=given["target_loss"],
        steps=first.steps,
        epochs=first.epochs,
        test=None if data is None else data.test,
        cluster=given["cluster"],
        executor=given["executor"],
        seed=given["seed"],
        max_seconds=given["max_seconds"],
        repetitions=given["repetitions"],
    )
    show(found, as_json=as_json)
    if report is not None:
        found.report(report)
        click.echo(f"wrote {report}", err=as_json)


def show(found: Comparison, *, as_json: bool) -> None:
    """Print a comparison."""
    if as_json:
        click.echo(json.dumps(found.to_dict()))
    else:
        Console(width=max(Console().width, WIDTH)).print(found)


def settings_by_target(targets: tuple[str, ...], options: Options) -> Mapping[str, Options]:
    """Return the options of each graph, with the settings that are meant for it.

    Raises
    ------
    click.UsageError
        If no graph takes a setting.
    """
    taken = {target: parameters_of(target) for target in targets}
    found: dict[str, list[str]] = {target: [] for target in targets}
    for setting in options.settings:
        key = setting.partition("=")[0]
        name, dot, own = key.rpartition(".")
        places = [t for t in targets if (t == name if dot else key in taken[t])]
        if not places:
            known = sorted({parameter for names in taken.values() for parameter in names})
            raise click.UsageError(f"no graph takes {key!r}. They take {', '.join(known)}.")
        for target in places:
            found[target].append(f"{own}={setting.partition('=')[2]}" if dot else setting)
    return {target: replace(options, settings=tuple(found[target])) for target in targets}


def _name(target: str, targets: tuple[str, ...]) -> str:
    """Return the name of a graph, without its folder where that leaves it the only one."""
    stem = Path(target).stem
    return stem if [Path(t).stem for t in targets].count(stem) == 1 else target


def _builder(target: str, options: Options, dataset: Dataset | None) -> Callable[[int], Graph]:
    """Return what makes a graph for a number of replicas, without evaluations of its own."""
    alone = None if dataset is None else replace(dataset, test=None)
    return lambda count: build(target, replace(options, replicas=count, test=None), alone).graph
