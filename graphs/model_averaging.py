"""Model averaging: replicas train on their shares, and the mean of their models replaces them all.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS
2017, algorithm 1 (FederatedAveraging) with every client in every round (C = 1); E local epochs are
a period of E times the steps of an epoch. Zinkevich, Weimer, Smola and Li, "Parallelized Stochastic
Gradient Descent", NIPS 2010, algorithm 3, is one mean at the end: a period as long as the run. As
in FederatedAveraging, a model weighs as much as the examples that it was trained on in the round.
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
    period: int = 100,
    seed: int = 0,
) -> fl.Graph:
    """Return the graph; its tables are ``w``, the mean, and ``local``, one a replica.

    Parameters
    ----------
    model, source
        A model as in ``fl.models``, and its training examples.
    test : source, optional
        The mean is evaluated after each epoch: ``loss`` and ``score``.
    lr : float or schedule
        Of the local steps.
    momentum : float
        Of the local steps; the velocities stay with the replicas.
    batch_size : int
        Examples a replica.
    period : int
        Local steps between two means.
    seed : int
        Of the initial parameters.
    """
    init = model.init(seed=seed)
    w, local = fl.table("w", init), fl.table("local", init, scope="replica")
    batch = fl.load(source, batch_size=batch_size)
    moved = fl.update(local, fl.gradient(model, local, batch), fl.sgd(lr, momentum=momentum))
    trained = fl.map(_examples, batch).every(period, keep="sum")
    mean = fl.assign(w, fl.aggregate("mean", moved.every(period), weight=trained))
    sinks = [moved, mean, fl.assign(local, mean)]
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
    return fl.Graph(*sinks, name="model_averaging")


def _examples(batch: Any) -> float:
    """Return how many examples a batch stands for: the sum of its weights, or its rows."""
    return float(batch[2].sum()) if len(batch) > 2 else float(batch[1].shape[0])
