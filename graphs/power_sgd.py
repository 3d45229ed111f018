"""Synchronous SGD of which each replica sends a matrix of low rank.

Vogels, Karimireddy and Jaggi, "PowerSGD: Practical Low-Rank Gradient Compression for Distributed
Optimization", NeurIPS 2019, algorithm 1, one step of power iteration from the last one's result.
There the factors are summed over the replicas, which share them; here each replica's gradient is
compressed on its own edge, with its own memory, and the sum is taken of what is decoded. No
momentum.
"""

from __future__ import annotations

from typing import Any

import flowml as fl


def build(
    model: Any,
    source: Any,
    *,
    test: Any = None,
    lr: float | fl.schedules.Schedule = 0.1,
    rank: int = 2,
    batch_size: int = 128,
    seed: int = 0,
) -> fl.Graph:
    """Return the graph; its table is ``w``.

    Parameters
    ----------
    model, source
        A model as in ``fl.models``, and its training examples.
    test : source, optional
        Evaluated after each epoch: ``loss`` and ``score``.
    lr : float or schedule
    rank : int
        Of the matrices that are sent; vectors go as they are.
    batch_size : int
        Examples a replica.
    seed : int
        Of the initial parameters.
    """
    w = fl.table("w", model.init(seed=seed))
    batch = fl.load(source, batch_size=batch_size)
    grads = fl.gradient(model, w, batch).compress(fl.codecs.low_rank(rank))
    sinks = [fl.update(w, fl.aggregate("mean", grads), fl.sgd(lr))]
    if test is not None:
        sinks.append(
            fl.evaluate(
                lambda params, rows: {
                    "loss": model.loss(params, rows),
                    "score": model.score(params, *rows[:2]),
                },
                w,
                test,
                every="1 epoch",
                name="test",
            )
        )
    return fl.Graph(*sinks, name="power_sgd")
