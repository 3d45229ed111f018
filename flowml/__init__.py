"""Dataflow graphs for distributed machine learning on Dask."""

import typing as _typing
from importlib.metadata import version as _version

from flowml import codecs, data, models, schedules, simulate
from flowml import initial_rows as init
from flowml.clipping import by_leaf, clip_norm
from flowml.collect import closest as _closest
from flowml.compare import compare
from flowml.delay_compensation import delay_compensated
from flowml.differentiate import value_and_grad
from flowml.errors import (
    CheckpointError,
    DataError,
    DivergedError,
    FlowmlError,
    GraphError,
    OperatorError,
    PlanError,
    StaleRunError,
    StalledError,
    WorkerLostError,
)
from flowml.execution import Run
from flowml.keyed_rows import KeyedRows
from flowml.operators import (
    aggregate,
    assign,
    evaluate,
    gradient,
    here,
    load,
    map,
    sparse_table,
    table,
    until,
    update,
)
from flowml.reductions import Reduction, trimmed_mean
from flowml.rules import Rule, adagrad, adam, adamw, add, rmsprop, sgd
from flowml.run import Graph
from flowml.shrinkage import ftrl, proximal
from flowml.types import calling_site as _calling_site

__version__ = _version("flowml")

__all__ = [
    "CheckpointError",
    "DataError",
    "DivergedError",
    "FlowmlError",
    "Graph",
    "GraphError",
    "KeyedRows",
    "OperatorError",
    "PlanError",
    "Reduction",
    "Rule",
    "Run",
    "StaleRunError",
    "StalledError",
    "WorkerLostError",
    "__version__",
    "adagrad",
    "adam",
    "adamw",
    "add",
    "aggregate",
    "assign",
    "by_leaf",
    "clip_norm",
    "codecs",
    "compare",
    "data",
    "delay_compensated",
    "evaluate",
    "ftrl",
    "gradient",
    "here",
    "init",
    "load",
    "map",
    "models",
    "proximal",
    "rmsprop",
    "schedules",
    "sgd",
    "simulate",
    "sparse_table",
    "table",
    "trimmed_mean",
    "until",
    "update",
    "value_and_grad",
]


if not _typing.TYPE_CHECKING:  # a checker knows the names, and would take any other for granted

    def __getattr__(name: str) -> object:
        """Refuse a name that flowml does not have, with the closest one that it has."""
        near = _closest(name, __all__) or f"Known: {', '.join(__all__)}."
        raise AttributeError(f"{_calling_site()}: flowml has no {name!r}. {near.strip()}")
