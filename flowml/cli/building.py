"""From a file or the name of a published algorithm, and options, to a graph."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import cloudpickle
import numpy as np

from flowml.cli.datasets import Dataset, find_dataset, steps_of_epoch, train_rows, width_of
from flowml.data.files import close_names
from flowml.errors import GraphError, PlanError
from flowml.models import linear, logistic, mlp, softmax
from flowml.run import Graph
from flowml.schedules import Schedule, constant, cosine, step, warmup
from flowml.types import PACKAGE

GRAPH_FOLDERS = (PACKAGE.parent / "graphs", PACKAGE / "_graphs")
"""In a checkout beside the package, in a wheel inside it."""

MODELS = ("softmax", "mlp", "logistic", "linear")
SCHEDULES = ("constant", "cosine", "step", "warmup")
DEFAULT_EPOCHS = 10
DEFAULT_RATE = 0.1


@dataclass(frozen=True)
class Options:
    """What the command line says of the graph to build; None where it says nothing."""

    data_name: str
    test: str | None
    label: str
    model: str | None
    hidden: str
    classes: int | None
    l2: float
    dtype: str
    intercept: bool
    lr: float | None
    schedule: str | None
    momentum: float | None
    batch: int | None
    total_batch: int | None
    settings: tuple[str, ...]
    epochs: int | None
    steps: int | None
    replicas: int | None
    seed: int


@dataclass(frozen=True)
class Built:
    """A graph, and what it was built from; ``dataset`` is None for a file's own ``graph``."""

    graph: Graph
    dataset: Dataset | None
    model: Any
    epochs: int | None
    steps: int | None


def build(target: str, options: Options, dataset: Dataset | None = None) -> Built:
    """Return the graph of a file or of a published algorithm.

    Parameters
    ----------
    target : str
        A Python file with ``build(...)`` or with a ``graph`` at its top level, or a name.
    dataset : Dataset, optional
        The data, where they were found before.

    Raises
    ------
    click.UsageError
        If there is no such file or name, or an option does not fit it.
    FlowmlError
        If the graph or the data is wrong.
    """
    module = load_module(find_file(target))
    function = getattr(module, "build", None)
    epochs = options.epochs if options.epochs or options.steps else DEFAULT_EPOCHS
    if function is None:
        return Built(_graph_of(module), None, None, epochs, options.steps)
    named = inspect.signature(function).parameters
    _check_taken(target, options, named)
    if dataset is None:
        dataset = find_dataset(options.data_name, options.test, options.label, options.dtype)
    model = make_model(options, dataset) if "model" in named else None
    batch = _batch(options)
    if batch is None and "batch_size" in named:
        default = named["batch_size"].default
        batch = default if isinstance(default, int) else None
    known = _known(options, dataset, model, batch, named, epochs)
    chosen = {name: value for name, value in known.items() if name in named and value is not None}
    graph = function(**chosen, **_settings(target, options.settings, named))
    if not isinstance(graph, Graph):
        raise GraphError(f"build in {target}", "must return a fl.Graph", type(graph).__name__)
    return Built(graph, dataset, model, epochs, options.steps)


def parameters_of(target: str) -> tuple[str, ...]:
    """Return what the build function of a file or a published algorithm takes."""
    function = getattr(load_module(find_file(target)), "build", None)
    return () if function is None else tuple(inspect.signature(function).parameters)


def graph_names() -> list[str]:
    """Return the names of the published algorithms."""
    files = (p for folder in GRAPH_FOLDERS if folder.is_dir() for p in folder.glob("[!_]*.py"))
    return sorted({p.stem for p in files})


def find_file(target: str) -> Path:
    """Return the file of a graph: as given, or a published algorithm by its name."""
    path = Path(target)
    if path.suffix == ".py" or os.sep in target:
        if not path.is_file():
            raise click.UsageError(f"no such file: {target}")
        return path
    for folder in GRAPH_FOLDERS:
        if (folder / f"{target}.py").is_file():
            return folder / f"{target}.py"
    names = graph_names()
    near = close_names(target, names)
    hint = f"Did you mean {near[0]!r}?" if near else f"There is {', '.join(names)}."
    raise click.UsageError(f"no graph {target!r}. {hint} Or give the path of a Python file.")


def load_module(path: Path) -> ModuleType:
    """Import a file; its functions travel to workers by value, which do not have the file."""
    name = f"flowml_graph_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise click.UsageError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    cloudpickle.register_pickle_by_value(module)
    return module


def _graph_of(module: ModuleType) -> Graph:
    found = getattr(module, "graph", None)
    if not isinstance(found, Graph):
        got = "neither" if found is None else f"graph is a {type(found).__name__}"
        raise GraphError(
            str(module.__file__),
            "a file needs build(...) or a fl.Graph called graph",
            got,
            "See `flowml new my_graph.py`.",
        )
    return found


def _known(
    options: Options,
    dataset: Dataset,
    model: Any,
    batch: int | None,
    named: Mapping[str, inspect.Parameter],
    epochs: int | None,
) -> dict[str, Any]:
    """Return all that a build function may ask for by name."""
    replicas = options.replicas or 1
    of_epoch = steps_of_epoch(dataset.train, replicas, batch)
    total = min(n for n in (options.steps, epochs * of_epoch if epochs else None) if n)
    # an algorithm whose step is a pass over the data would be tested after each step
    test = dataset.test if batch is not None or options.test is not None else None
    return {
        "model": model,
        "source": dataset.train,
        "test": test,
        "lr": _rate(options, named, total),
        "momentum": options.momentum,
        "batch_size": batch,
        "replicas": options.replicas,
        "epochs": epochs,
        "steps": options.steps or total,
        "steps_per_epoch": of_epoch,
        "seed": options.seed,
    }


def _check_taken(target: str, options: Options, named: Mapping[str, inspect.Parameter]) -> None:
    """Refuse an option that was given and that the build function has no use for."""
    given = {
        "model": options.model,
        "lr": options.lr or options.schedule,
        "momentum": options.momentum,
        "batch_size": options.batch or options.total_batch,
    }
    for name, value in given.items():
        if value is not None and name not in named:
            raise click.UsageError(f"{target} takes no {name}. It takes {', '.join(named)}.")


def _batch(options: Options) -> int | None:
    if options.batch is not None and options.total_batch is not None:
        raise click.UsageError("give --batch (of a replica) or --total-batch, not both")
    if options.total_batch is None:
        return options.batch
    if options.replicas is None:
        raise click.UsageError("--total-batch needs --replicas, to be cut among them")
    batch, rest = divmod(options.total_batch, options.replicas)
    if rest:
        raise click.UsageError(
            f"--total-batch {options.total_batch} cannot be cut evenly among "
            f"{options.replicas} replicas"
        )
    return batch


def _rate(
    options: Options, named: Mapping[str, inspect.Parameter], total: int
) -> float | Schedule | None:
    if options.schedule is None:
        return options.lr
    if options.replicas is None:
        raise click.UsageError("--schedule needs --replicas, to know how many steps there are")
    default = named["lr"].default
    rate = options.lr or (float(default) if isinstance(default, int | float) else DEFAULT_RATE)
    makers: dict[str, Callable[[], Schedule]] = {
        "constant": lambda: constant(rate),
        "cosine": lambda: cosine(rate, steps=total),
        "step": lambda: step(rate, every=max(1, total // 3), factor=0.1),
        "warmup": lambda: warmup(cosine(rate, steps=total), steps=max(1, total // 20)),
    }
    return makers[options.schedule]()


def _settings(
    target: str, settings: tuple[str, ...], named: Mapping[str, inspect.Parameter]
) -> dict[str, Any]:
    """Return what ``--set key=value`` says, as Python literals where they are some."""
    found: dict[str, Any] = {}
    for setting in settings:
        key, sign, text = setting.partition("=")
        if not sign:
            raise click.UsageError(f"--set needs key=value, got {setting!r}")
        if key not in named:
            raise click.UsageError(f"{target} takes no {key!r}. It takes {', '.join(named)}.")
        try:
            found[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[key] = text
    return found


def make_model(options: Options, dataset: Dataset) -> Any:
    """Return the model that was asked for, as wide as the data; else one that fits the labels.

    Raises
    ------
    PlanError
        If the data have no labels.
    """
    first = next(train_rows(dataset.train))
    if len(first.columns) < 2:
        raise PlanError(
            f"data {dataset.name}",
            "a model needs labels",
            "none",
            "Name their column with --label.",
        )
    name = options.model or _fitting(np.asarray(first.columns[1]))
    features = width_of(dataset.train)
    if name == "linear":
        return linear(features, options.l2, options.dtype, intercept=options.intercept)
    if name == "logistic":
        return logistic(features, options.l2, options.dtype, intercept=options.intercept)
    classes = options.classes or 1 + max(
        int(np.max(rows.columns[1], initial=0)) for rows in train_rows(dataset.train)
    )
    if not options.intercept:
        raise click.UsageError(f"the model {name} always has intercepts")
    if name == "softmax":
        return softmax(features, classes, options.l2, options.dtype)
    sizes = [int(size) for size in options.hidden.split(",")]
    return mlp([features, *sizes, classes], options.l2, options.dtype)


def _fitting(labels: Any) -> str:
    """Return the kind of model that labels ask for."""
    kinds = np.unique(labels[:10_000])
    if len(kinds) == 2 and set(kinds.tolist()) <= {-1, 0, 1}:
        return "logistic"
    return "softmax" if labels.dtype.kind in "iu" else "linear"
