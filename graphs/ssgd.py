"""Synchronous SGD: every step applies the mean gradient of all replicas once.

Chen, Pan, Monga, Bengio and Jozefowicz, "Revisiting Distributed Synchronous SGD", 2016, algorithms
3 and 4. Here without their backup workers (b = 0), and without a parameter server: each replica
sums and updates its slice of the parameters. The mean weighs replicas by their examples, so that K
replicas with batches of b are one with K * b.
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
    momentum: float = 0.0,
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
    momentum : float
        Polyak's, in [0, 1).
    batch_size : int
        Examples a replica.
    seed : int
        Of the initial parameters.
    """
    w = fl.table("w", model.init(seed=seed))
    batch = fl.load(source, batch_size=batch_size)
    mean = fl.aggregate("mean", fl.gradient(model, w, batch))
    sinks = [fl.update(w, mean, fl.sgd(lr, momentum=momentum))]
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
    return fl.Graph(*sinks, name="ssgd")
