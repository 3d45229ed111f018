"""Synchronous SGD of which each replica sends one bit an entry: the sign, and one size an array.

Karimireddy, Rebjock, Stich and Jaggi, "Error Feedback Fixes SignSGD and other Gradient Compression
Schemes", ICML 2019, algorithm 1 (EF-signSGD), with the mean of the absolute values as the size.
What the signs get wrong is kept and added to the next gradient; without that (``feedback=False``)
it is the scaled signSGD that the paper shows not to converge. There the memory holds gradients
times their rate; here the rate is applied to the mean.
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
    feedback: bool = True,
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
    feedback : bool
        Whether what the signs get wrong is kept.
    batch_size : int
        Examples a replica.
    seed : int
        Of the initial parameters.
    """
    w = fl.table("w", model.init(seed=seed))
    batch = fl.load(source, batch_size=batch_size)
    grads = fl.gradient(model, w, batch).compress(fl.codecs.sign(feedback=feedback))
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
    return fl.Graph(*sinks, name="sign_sgd")
