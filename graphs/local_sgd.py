"""Local SGD: each replica takes SGD steps of its own, and every so often all take their mean.

Stich, "Local SGD Converges Fast and Communicates Little", ICLR 2019, algorithm 1, with the same
period for all. With an outer rate other than 1, or outer momentum, it is SlowMo: Wang et al.,
"SlowMo: Improving Communication-Efficient Distributed SGD with Slow Momentum", ICLR 2020,
algorithm 1, which also divides by the inner rate. At period 1 and outer rate 1 it is synchronous
SGD, where all replicas have batches of one size.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import optree

import flowml as fl


def build(
    model: Any,
    source: Any,
    *,
    test: Any = None,
    lr: float | fl.schedules.Schedule = 0.1,
    momentum: float = 0.0,
    batch_size: int = 128,
    period: int = 8,
    outer_lr: float = 1.0,
    outer_momentum: float = 0.0,
    seed: int = 0,
) -> fl.Graph:
    """Return the graph; its tables are ``anchor``, the mean, and ``local``, one a replica.

    Parameters
    ----------
    model, source
        A model as in ``fl.models``, and its training examples.
    test : source, optional
        The anchor is evaluated after each epoch: ``loss`` and ``score``.
    lr : float or schedule
        Of the local steps.
    momentum : float
        Of the local steps; the velocities stay with the replicas.
    batch_size : int
        Examples a replica.
    period : int
        Local steps between two means.
    outer_lr, outer_momentum : float
        How the anchor follows the mean: at 1 and 0 it is the mean.
    seed : int
        Of the initial parameters.
    """
    init = model.init(seed=seed)
    anchor, local = fl.table("anchor", init), fl.table("local", init, scope="replica")
    batch = fl.load(source, batch_size=batch_size)
    moved = fl.update(local, fl.gradient(model, local, batch), fl.sgd(lr, momentum=momentum))
    difference = partial(optree.tree_map, np.subtract)
    drift = fl.map(difference, anchor, moved.every(period), name="drift")
    mean = fl.aggregate("mean", drift, weight="equal")
    outer = fl.update(anchor, mean, fl.sgd(outer_lr, momentum=outer_momentum))
    sinks = [moved, outer, fl.assign(local, outer)]
    if test is not None:
        sinks.append(
            fl.evaluate(
                lambda params, rows: {
                    "loss": model.loss(params, rows),
                    "score": model.score(params, *rows[:2]),
                },
                anchor,
                test,
                every="1 epoch",
                name="test",
            )
        )
    return fl.Graph(*sinks, name="local_sgd")
