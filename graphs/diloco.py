"""DiLoCo: many local AdamW steps, then one outer Nesterov step along the mean drift.

Douillard et al., "DiLoCo: Distributed Low-Communication Training of Language Models", 2023,
algorithm 1, with its outer rate 0.7 and momentum 0.9. The paper takes 500 local steps a round; here
the default is 50, for smaller models. The states of AdamW stay with their replicas, as there.
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
    lr: float | fl.schedules.Schedule = 0.001,
    weight_decay: float = 0.01,
    batch_size: int = 128,
    period: int = 50,
    outer_lr: float = 0.7,
    outer_momentum: float = 0.9,
    seed: int = 0,
) -> fl.Graph:
    """Return the graph; its tables are ``anchor``, the global model, and ``local``, one a replica.

    Parameters
    ----------
    model, source
        A model as in ``fl.models``, and its training examples.
    test : source, optional
        The anchor is evaluated after each epoch: ``loss`` and ``score``.
    lr : float or schedule
        Of the local steps.
    weight_decay : float
        Of the local steps, decoupled.
    batch_size : int
        Examples a replica.
    period : int
        Local steps of a round.
    outer_lr, outer_momentum : float
        Of the outer step; the momentum is Nesterov's, in [0, 1).
    seed : int
        Of the initial parameters.
    """
    init = model.init(seed=seed)
    anchor, local = fl.table("anchor", init), fl.table("local", init, scope="replica")
    batch = fl.load(source, batch_size=batch_size)
    inner = fl.adamw(lr, weight_decay=weight_decay)
    moved = fl.update(local, fl.gradient(model, local, batch), inner)
    difference = partial(optree.tree_map, np.subtract)
    drift = fl.map(difference, anchor, moved.every(period), name="drift")
    mean = fl.aggregate("mean", drift, weight="equal")
    nesterov = fl.sgd(outer_lr, momentum=outer_momentum, nesterov=outer_momentum > 0)
    outer = fl.update(anchor, mean, nesterov)
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
    return fl.Graph(*sinks, name="diloco")
