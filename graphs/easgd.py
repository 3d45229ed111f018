"""Elastic averaging SGD, asynchronous: replicas explore, tied to a center by an elastic force.

Zhang, Choromanska and LeCun, "Deep Learning with Elastic Averaging SGD", NIPS 2015, algorithm 1;
with momentum algorithm 2 (EAMSGD). Every ``period`` steps of its own a replica and the center move
towards each other by the same vector, ``moving_rate * (local - center)``. There that comes before
the gradient step, whose gradient is of the point before; here it comes after the step. With
momentum the table holds the point looked ahead to, which the force sees too.
"""

from __future__ import annotations

from functools import partial
from typing import Any

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
    period: int = 10,
    moving_rate: float | None = None,
    seed: int = 0,
) -> fl.Graph:
    """Return the graph; its tables are ``center`` and ``local``, one a replica.

    Parameters
    ----------
    model, source
        A model as in ``fl.models``, and its training examples.
    test : source, optional
        The center is evaluated about once an epoch: ``loss`` and ``score``.
    lr : float or schedule
        Of the local steps.
    momentum : float
        Of the local steps, Nesterov's; the velocities stay with the replicas.
    batch_size : int
        Examples a replica.
    period : int
        Local steps between two exchanges with the center (tau).
    moving_rate : float, optional
        alpha, in (0, 1); 0.9 divided by the replicas of the run, as in the paper, when left out.
        Much more than one divided by the replicas makes the center swing.
    seed : int
        Of the initial parameters.
    """
    init = model.init(seed=seed)
    center, local = fl.table("center", init), fl.table("local", init, scope="replica")
    batch = fl.load(source, batch_size=batch_size)
    nesterov = fl.sgd(lr, momentum=momentum, nesterov=momentum > 0)
    moved = fl.update(local, fl.gradient(model, local, batch), nesterov)
    force = partial(_force, moving_rate)
    elastic = fl.map(force, moved.every(period), center.async_(), fl.here(), name="elastic")
    back = fl.update(local, elastic, fl.add(-1.0))
    forth = fl.update(center, elastic.async_(), fl.add())
    sinks = [moved, back, forth]
    if test is not None:
        sinks.append(
            fl.evaluate(
                lambda params, rows: {
                    "loss": model.loss(params, rows),
                    "score": model.score(params, *rows[:2]),
                },
                center,
                test,
                every="1 epoch",
                name="test",
            )
        )
    return fl.Graph(*sinks, name="easgd")


def _force(moving_rate: float | None, local: Any, center: Any, here: Any) -> Any:
    """Return ``alpha * (local - center)`` in the dtypes of the parameters."""
    alpha = 0.9 / here.replicas if moving_rate is None else moving_rate
    return optree.tree_map(lambda x, c: (x - c) * x.dtype.type(alpha), local, center)
