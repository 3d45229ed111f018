"""Delay-compensated asynchronous SGD: a late gradient is corrected to first order.

Zheng, Meng, Wang, Chen, Yu, Ma and Liu, "Asynchronous Stochastic Gradient Descent with Delay
Compensation", ICML 2017, algorithms 1 and 2: to each gradient g, of parameters that a worker read
some updates ago, the server adds lambda * g * g * (w - what it read), with lambda constant
(DC-ASGD-c) or divided by the root of a moving average of g * g (DC-ASGD-a). Their server notes what
it sends to each worker; here a replica sends along what it has read. The defaults are those of
their experiments on CIFAR-10.
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
    variance: float = 2.0,
    decay: float | None = 0.95,
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
    variance : float
        lambda; 0 is asynchronous SGD. With ``decay=None`` they have 0.04.
    decay : float, optional
        Of the moving average, in [0, 1); None keeps lambda constant.
    batch_size : int
        Examples a replica.
    seed : int
        Of the initial parameters.
    """
    w = fl.table("w", model.init(seed=seed))
    batch = fl.load(source, batch_size=batch_size)
    grads = fl.gradient(model, w.async_(), batch)
    sinks = [fl.update(w, grads, fl.delay_compensated(lr, variance, decay))]
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
    return fl.Graph(*sinks, name="delay_compensated")
