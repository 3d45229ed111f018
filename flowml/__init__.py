"""Dataflow graphs for distributed machine learning on Dask."""

from __future__ import annotations

from flowml import codecs, data, models, schedules
from flowml.clipping import by_leaf, clip_norm
from flowml.differentiate import value_and_grad
from flowml.operators import (
    Handle,
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
