"""``flowml run``: train a graph from a file, or a published algorithm by its name."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from flowml import configuration
from flowml.cli.arguments import (
    cluster_option,
    graph_options,
    groups_of,
    groups_option,
    json_option,
    options_of,
)
from flowml.cli.building import Built, build
from flowml.cli.endings import reported
from flowml.cli.results import model_words, outcome, shown
from flowml.execution import Run
from flowml.options import EXECUTORS
from flowml.runtime.cores import usable_cores


@click.command(name="run")
@graph_options
@groups_option
@cluster_option
@click.option("--executor", type=click.Choice(EXECUTORS), help="By default resident.")
@click.option("--max-seconds", type=float, help="End the run after this time.")
@click.option(
    "--failures",
    type=click.Path(file_okay=False),
    metavar="FOLDER",
    help="Where the input of an operator that fails is written.",
)
@click.option("--report", type=click.Path(dir_okay=False), help="An HTML file about the run.")
@click.option("--trace", type=click.Path(dir_okay=False), help="A trace for Perfetto or Chrome.")
@click.option("--progress/--no-progress", default=None, help="By default on a terminal only.")
@json_option
@reported
def run_command(**given: Any) -> None:
    """Train a graph.

    FILE_OR_NAME is a Python file with build(...) or a graph at its top level, or the name of a
    published algorithm such as ssgd, local_sgd or batch_gradient.
    """
    executor = given["executor"] or str(configuration.read("executor"))
    replicas = seats(given["replicas"], executor, given["cluster"])
    built = build(given["target"], options_of(given, replicas))
    if not given["as_json"]:
        click.echo(headline(built, replicas, executor))
    run = built.graph.start(
        steps=built.steps,
        epochs=built.epochs,
        replicas=replicas,
        groups=groups_of(given["groups"]),
        executor=executor,
        cluster=given["cluster"],
        seed=given["seed"],
        max_seconds=given["max_seconds"],
        progress=given["progress"],
        failures=given["failures"],
    )
    finish(run)
    paths = written(run, given["report"], given["trace"])
    found = outcome(built, run) | {"replicas": replicas, "executor": executor}
    click.echo(json.dumps(found) if given["as_json"] else shown(found))
    for path in paths:
        click.echo(f"wrote {path}", err=given["as_json"])


def written(run: Run, report: str | None, trace: str | None) -> list[Path]:
    """Write what was asked for of a run that has ended; return the files."""
    paths = [] if report is None else [run.report(report)]
    return paths if trace is None else [*paths, run.timeline.to_chrome(trace)]


def seats(replicas: int | None, executor: str, cluster: str | None) -> int | None:
    """Return how many replicas a run has, as far as it is known before a cluster was asked."""
    if replicas is not None or cluster is not None:
        return replicas
    return 1 if executor == "serial" else usable_cores()


def finish(run: Run) -> Run:
    """Wait for a run; an interruption carries the run to whoever reports it."""
    try:
        return run.wait()
    except KeyboardInterrupt as interruption:
        interruption.run = run  # type: ignore[attr-defined]
        raise


def headline(built: Built, replicas: int | None, executor: str) -> str:
    """Return what is about to run, in one line."""
    count = (
        "a replica a worker"
        if replicas is None
        else (f"{replicas} replica{'s' if replicas > 1 else ''}")
    )
    parts = (
        f"flowml {version('flowml')}",
        built.graph.name,
        built.dataset.name if built.dataset is not None else "",
        model_words(built.model),
        count,
        executor,
    )
    return " · ".join(part for part in parts if part)
