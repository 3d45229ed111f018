"""Asynchronous SGD: each replica's gradient is applied when it comes, and nobody waits for anybody.

Agarwal and Duchi, "Distributed Delayed Stochastic Optimization", NIPS 2011: gradients of old
parameters, applied one by one by a master. Recht, Re, Wright and Niu, "Hogwild!: A Lock-Free
Approach to Parallelizing Stochastic Gradient Descent", NIPS 2011, algorithm 1, is the same loop
without a lock, each component by itself. Here an update is whole, and so is what a replica reads;
the delays are those that the replicas' own pace makes, where Agarwal and Duchi take turns.
"""

from __future__ import annotations

from typing import Any

import flowml as fl


def build(
    model: Any,
    source: Any,
    *,
    test: Any = None,
    lr: float | fl.schedules.Schedule = 0.05,
    batch_size: int = 128,
    seed: int = 0,
) -> fl.Graph:
    """Return the graph; its table is ``w``.

    Parameters
    ----------
    model, source
        A model as in ``fl.models``, and its training examples.
    test : source, optional
        Evaluated about once an epoch: ``loss`` and ``score``.
    lr : float or schedule
        Of one gradient: K replicas take K such steps where synchronous SGD takes one.
    batch_size : int
        Examples a replica.
    seed : int
        Of the initial parameters.
    """
    w = fl.table("w", model.init(seed=seed))
    batch = fl.load(source, batch_size=batch_size)
    grads = fl.gradient(model, w.async_(), batch)
    sinks = [fl.update(w, grads, fl.sgd(lr))]
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
    return fl.Graph(*sinks, name="asgd")
