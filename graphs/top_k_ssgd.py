"""Synchronous SGD of which each replica sends the largest entries of its gradient only.

Stich, Cordonnier and Jaggi, "Sparsified SGD with Memory", NeurIPS 2018, algorithm 2: what is not
sent is kept and added to the next gradient. There the memory holds gradients times their rate; here
the rate is applied to the mean, so that a change of rate acts on what was kept too. The largest
entries are taken of each array of the parameters by itself.
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
    fraction: float = 0.01,
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
    fraction : float
        Share of the entries that is sent, in (0, 1].
    batch_size : int
        Examples a replica.
    seed : int
        Of the initial parameters.
    """
    w = fl.table("w", model.init(seed=seed))
    batch = fl.load(source, batch_size=batch_size)
    grads = fl.gradient(model, w, batch).compress(fl.codecs.top_k(fraction))
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
    return fl.Graph(*sinks, name="top_k_ssgd")
