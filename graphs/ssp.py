"""Stale synchronous SGD: replicas go ahead of the slowest one, but only by so many steps.

Ho, Cipar, Cui, Lee, Kim, Gibbons, Gibson, Ganger and Xing, "More Effective Distributed ML via a
Stale Synchronous Parallel Parameter Server", NIPS 2013, section 3: a read at clock c sees all
updates of the clocks up to c - staleness - 1, and its own. There, as with ``combine="push"``,
updates are added one by one as they come. With ``combine="mean"`` means are taken of what has come:
a mean is up to ``staleness`` steps ahead of the slowest replica, and a read as far ahead of the
means; at staleness 0 that is synchronous SGD. Here a replica reads the newest values in every step,
where they read from a cache while that is fresh enough.
"""

from __future__ import annotations

from typing import Any, Literal

import flowml as fl


def build(
    model: Any,
    source: Any,
    *,
    test: Any = None,
    lr: float | fl.schedules.Schedule = 0.05,
    batch_size: int = 128,
    staleness: int = 3,
    combine: Literal["push", "mean"] = "push",
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
        Of one gradient where gradients are pushed: the steps of K replicas add up.
    batch_size : int
        Examples a replica.
    staleness : int
        Steps that a read may miss; 0 is synchronous.
    combine : "push" or "mean"
    seed : int
        Of the initial parameters.
    """
    w = fl.table("w", model.init(seed=seed))
    batch = fl.load(source, batch_size=batch_size)
    grads = fl.gradient(model, w.stale(staleness), batch)
    coming = grads if combine == "push" else fl.aggregate("mean", grads)
    sinks = [fl.update(w, coming, fl.sgd(lr))]
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
    return fl.Graph(*sinks, name="ssp")
