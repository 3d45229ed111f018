"""Options that several commands share: which graph to build, on how many replicas."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar, cast

import click

from flowml.cli.building import MODELS, SCHEDULES, Options
from flowml.cli.datasets import DIGITS
from flowml.compiler.place import Groups

Command = TypeVar("Command", bound=Callable[..., Any])

Option: TypeAlias = Callable[[Any], Any]

TARGET = click.argument("target", metavar="FILE_OR_NAME")
TARGETS = click.argument("targets", metavar="FILE_OR_NAME...", nargs=-1, required=True)
REPLICAS = click.option("--replicas", type=click.IntRange(1), help="Copies of the graph.")
COUNTS = click.option(
    "--replicas", default="1,2", show_default=True, help="Numbers of copies, such as 1,2,4."
)
BUILD_OPTIONS: tuple[Option, ...] = (
    click.option(
        "--data",
        "data_name",
        default=DIGITS,
        show_default=True,
        metavar="PATH",
        help="Training data: a file, a folder, a name under FLOWML_DATA, or digits.",
    ),
    click.option("--test", metavar="PATH", help="Test data; by default what stands beside."),
    click.option("--label", default="y", show_default=True, help="Column of the labels."),
    click.option("--model", type=click.Choice(MODELS), help="By default one that fits the labels."),
    click.option("--hidden", default="128", show_default=True, help="Layers of an mlp: 256,128."),
    click.option("--classes", type=click.IntRange(2), help="By default 1 + the largest label."),
    click.option("--l2", type=float, default=0.0, help="Penalty of the model."),
    click.option(
        "--dtype",
        default="float32",
        show_default=True,
        type=click.Choice(("float32", "float64")),
        help="Of the parameters.",
    ),
    click.option(
        "--no-intercept",
        "intercept",
        is_flag=True,
        default=True,
        flag_value=False,
        help="Leave the model's intercepts out.",
    ),
    click.option("--lr", type=float, help="Learning rate."),
    click.option("--schedule", type=click.Choice(SCHEDULES), help="How the rate changes."),
    click.option("--momentum", type=float),
    click.option("--batch", type=click.IntRange(1), help="Examples a replica and step."),
    click.option("--total-batch", type=click.IntRange(1), help="Examples of all replicas a step."),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="Any other argument of build().",
    ),
    click.option("--epochs", type=click.IntRange(1), help="Passes over the data (10)."),
    click.option("--steps", type=click.IntRange(1), help="Steps; whichever comes first."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
)


def graph_options(command: Command) -> Command:
    """Add the options that say which graph to build."""
    return _with((TARGET, *BUILD_OPTIONS, REPLICAS), command)


groups_option = click.option(
    "--groups", metavar="host|N|[[0,1],[2,3]]", help="What a named group of the graph means."
)
cluster_option = click.option(
    "--cluster", metavar="ADDRESS", help="A Dask scheduler, or its file; else processes here."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def several_graph_options(command: Command) -> Command:
    """Add the options that say which graphs to build, each on several numbers of replicas."""
    return _with((TARGETS, *BUILD_OPTIONS, COUNTS), command)


def _with(options: Sequence[Option], command: Command) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def counts_of(text: str) -> tuple[int, ...]:
    """Return the numbers in ``1,2,4``.

    Raises
    ------
    click.UsageError
        If they are none.
    """
    try:
        found = tuple(int(word) for word in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise click.UsageError(f"--replicas needs numbers such as 1,2,4, got {text!r}")
    return found


def options_of(given: dict[str, Any], replicas: int | None) -> Options:
    """Return the options of a graph out of all that a command was given."""
    chosen = {name: given[name] for name in Options.__dataclass_fields__ if name in given}
    return Options(**(chosen | {"replicas": replicas}))


def groups_of(text: str | None) -> Groups:
    """Return what ``--groups`` means.

    Raises
    ------
    click.UsageError
        If it is neither a word, a number nor lists of ranks.
    """
    if text is None or text == "host":
        return text
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    lists = isinstance(found, list) and all(isinstance(g, list) for g in found)
    if not lists and not isinstance(found, int):
        raise click.UsageError(f"--groups needs host, a number or lists of ranks, got {text!r}")
    return cast(Groups, found)
