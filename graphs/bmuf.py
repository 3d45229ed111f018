"""Blockwise model-update filtering: momentum over the means of blocks of local steps.

Chen and Huo, "Scalable Training of Deep Learning Machines by Incremental Block Training with
Intra-Block Parallel Optimization and Blockwise Model-Update Filtering", ICASSP 2016: the update is
delta = eta * delta + zeta * (mean - global model). Classical block momentum starts the next block
at the model, Nesterov block momentum at the model looked ahead to, which is what the table holds.
Here a block is ``period`` batches of each share; they cut the data in blocks beforehand.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

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
    period: int = 16,
    block_lr: float = 1.0,
    block_momentum: float | None = None,
    variant: Literal["classical", "nesterov"] = "nesterov",
    replicas: int = 1,
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
    momentum : float
        Of the local steps; the velocities stay with the replicas.
    batch_size : int
        Examples a replica.
    period : int
        Local steps of a block.
    block_lr : float
        zeta.
    block_momentum : float, optional
        eta, in [0, 1); ``1 - 1 / replicas`` as in the paper when left out.
    variant : "classical" or "nesterov"
    replicas : int
        Those of the run.
    seed : int
        Of the initial parameters.
    """
    eta = 1.0 - 1.0 / replicas if block_momentum is None else block_momentum
    init = model.init(seed=seed)
    anchor, local = fl.table("anchor", init), fl.table("local", init, scope="replica")
    batch = fl.load(source, batch_size=batch_size)
    moved = fl.update(local, fl.gradient(model, local, batch), fl.sgd(lr, momentum=momentum))
    difference = partial(optree.tree_map, np.subtract)
    drift = fl.map(difference, anchor, moved.every(period), name="drift")
    mean = fl.aggregate("mean", drift, weight="equal")
    filtered = fl.sgd(block_lr, momentum=eta, nesterov=variant == "nesterov" and eta > 0)
    outer = fl.update(anchor, mean, filtered)
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
    return fl.Graph(*sinks, name="bmuf")
