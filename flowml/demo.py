"""The graph of ``flowml demo``: softmax regression, synchronous or with local steps."""

from __future__ import annotations

from functools import partial

import numpy as np
import optree

from flowml.data.blocks import evaluation_blocks
from flowml.data.source import Source
from flowml.errors import DataError
from flowml.models.softmax import Softmax, softmax
from flowml.operators import aggregate, assign, gradient, load, map, table, update
from flowml.rules import sgd
from flowml.run import Graph

TOTAL_BATCH = 64
RATE = 0.5


def demo_model(source: Source) -> Softmax:
    """Return softmax regression as wide as the data.

    Raises
    ------
    DataError
        If the labels are no classes.
    """
    blocks = list(evaluation_blocks(source))
    columns = blocks[0].columns
    if len(columns) < 2 or columns[1].dtype.kind not in "iu":
        got = "none" if len(columns) < 2 else str(columns[1].dtype)
        raise DataError(
            source.name,
            "the demo needs labels that are whole numbers",
            got,
            "Try `flowml run ssgd --data ...`.",
        )
    classes = 1 + max(int(rows.columns[1].max()) for rows in blocks)
    return softmax(int(np.prod(columns[0].shape[1:])), max(2, classes))


def demo_graph(model: Softmax, source: Source, replicas: int, *, every: int = 1) -> Graph:
    """Return synchronous SGD, or local SGD (Stich, ICLR 2019, algorithm 1) with a period.

    Parameters
    ----------
    replicas : int
        They share ``TOTAL_BATCH`` examples a step.
    every : int
        Steps from one mean of the replicas to the next, >= 1.
    """
    batch = load(source, batch_size=max(1, TOTAL_BATCH // replicas))
    if every == 1:
        w = table("w", model.init(seed=0))
        mean = aggregate("mean", gradient(model, w, batch))
        return Graph(update(w, mean, sgd(RATE)), name="demo")
    w = table("w", model.init(seed=0))
    local = table("local", model.init(seed=0), scope="replica")
    moved = update(local, gradient(model, local, batch), sgd(RATE))
    difference = partial(optree.tree_map, np.subtract)
    drift = map(difference, w, moved.every(every), name="drift")
    outer = update(w, aggregate("mean", drift, weight="equal"), sgd(1.0))
    return Graph(moved, outer, assign(local, outer), name="demo")
