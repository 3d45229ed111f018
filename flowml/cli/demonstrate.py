"""``flowml demo``: the first minute."""

from __future__ import annotations

from importlib.metadata import version

import click

from flowml.appraisal import score_name, score_over
from flowml.cli.datasets import DIGITS, find_dataset
from flowml.cli.endings import reported
from flowml.cli.start import finish
from flowml.demo import demo_graph, demo_model
from flowml.options import EXECUTORS


@click.command(name="demo")
@click.option(
    "--every",
    default=1,
    type=click.IntRange(1),
    metavar="H",
    help="Replicas take H local steps between two means.",
)
@click.option("--replicas", default=2, type=click.IntRange(1), show_default=True)
@click.option("--epochs", default=50, type=click.IntRange(1), show_default=True)
@click.option(
    "--data",
    "data_name",
    default=DIGITS,
    show_default=True,
    metavar="FILE",
    help="A file of classes, or a name under FLOWML_DATA.",
)
@click.option("--seed", default=0, type=click.IntRange(0), show_default=True)
@click.option("--executor", type=click.Choice(EXECUTORS), default="resident", show_default=True)
@reported
def demo_command(
    every: int, replicas: int, epochs: int, data_name: str, seed: int, executor: str
) -> None:
    """Train softmax regression on scikit-learn's digits, in processes on this machine."""
    data = find_dataset(data_name)
    model = demo_model(data.train)
    where = "this process" if executor == "serial" else f"embedded cluster: {replicas} processes"
    click.echo(f"flowml {version('flowml')} · {where}")
    kind = "sync" if every == 1 else f"every({every})"
    click.echo(
        f"{data.name}  softmax {model.n_features} -> {model.n_classes}  ·  {kind}  ·  "
        f"{replicas} replicas  ·  {executor}"
    )
    graph = demo_graph(model, data.train, replicas, every=every)
    run = finish(graph.start(epochs=epochs, replicas=replicas, seed=seed, executor=executor))
    click.echo(
        f"{run.steps} steps in {run.seconds:.2f} s  ·  "
        f"{run.steps / max(run.seconds, 1e-9):,.0f} step/s"
    )
    where_tested = "test" if data.test is not None else "training"
    params = run.tables["w"]
    score = score_over(model, params, data.test or data.train)
    click.echo(
        f"{where_tested} {score_name(model)} {score:.3f}   ·   "
        "next: flowml compare ssgd asgd, flowml show ssgd, flowml new my_graph.py"
    )
