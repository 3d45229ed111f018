"""Asynchronous SGD whose rate adapts to the delay: a late gradient takes a shorter step.

Zhang, Gupta, Lian and Liu, "Staleness-aware Async-SGD for Distributed Deep Learning", IJCAI 2016:
the rate of a gradient is divided by its staleness, counted in updates between its read and its
application; a fresh one has the full rate. Here staleness is counted in steps, how far the slowest
replica was behind at the read, and the divisor is 1 + staleness, which needs no case of its own.
"""

from __future__ import annotations

from functools import partial
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
        Of a gradient that is not late.
    batch_size : int
        Examples a replica.
    seed : int
        Of the initial parameters.
    """
    w = fl.table("w", model.init(seed=seed))
    batch = fl.load(source, batch_size=batch_size)
    grads = fl.gradient(model, w.async_(), batch)
    plain = fl.sgd(lr)
    careful = fl.Rule(plain.init, partial(_shortened, plain), name="sgd by delay")
    sinks = [fl.update(w, grads, careful)]
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
    return fl.Graph(*sinks, name="adaptive_delay")


def _shortened(rule: fl.Rule, params: Any, update: Any, state: Any, at: Any, out: Any) -> None:
    rule.step(params, update / params.dtype.type(1 + at.staleness), state, at, out)
