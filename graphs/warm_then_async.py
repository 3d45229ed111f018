"""Synchronous SGD for the first steps, asynchronous SGD afterwards: one word on one edge.

Li, Mangoubi, Xu and Guo, "Sync-Switch: Hybrid Parameter Synchronization for Distributed Deep
Learning", ICDCS 2021: training begins synchronously, while parameters move far, and goes on
asynchronously, without stragglers. They find the moment of the switch by trials and by watching
for stragglers, and stop the cluster to switch; here it is a step given beforehand, and the run goes
on. The rate stays as it is per update: after the switch a gradient is applied by itself.
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
    warm: int = 100,
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
        A schedule is given the number of the update, which counts faster after the switch.
    batch_size : int
        Examples a replica.
    warm : int
        Synchronous steps at the beginning.
    seed : int
        Of the initial parameters.
    """
    w = fl.table("w", model.init(seed=seed))
    batch = fl.load(source, batch_size=batch_size)
    grads = fl.gradient(model, w.sync(until=warm).async_(), batch)
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
    return fl.Graph(*sinks, name="warm_then_async")
