"""Hybrid SGD: synchronous inside a group of replicas, asynchronous between the groups.

Kurth et al., "Deep Learning at 15PF: Supervised and Semi-Supervised Classification for Scientific
Data", SC 2017: nodes form compute groups; a group sums its gradients, one of its nodes sends the
sum to parameter servers, which apply it as it comes, and what they return is the group's next
model. There each layer has a server of its own, so that a group's model mixes versions; here a push
is applied whole, and the answer is one version. The mean weighs replicas by their examples. With
one group it is synchronous SGD, with groups of one replica asynchronous SGD; ``groups=`` of the run
says who is together ("host" by default).
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
    momentum: float = 0.0,
    batch_size: int = 128,
    seed: int = 0,
) -> fl.Graph:
    """Return the graph; its tables are ``w``, of all, and ``copy``, one a group.

    Parameters
    ----------
    model, source
        A model as in ``fl.models``, and its training examples.
    test : source, optional
        ``w`` is evaluated about once an epoch: ``loss`` and ``score``.
    lr : float or schedule
        Of the mean of a group: G groups take G such steps where synchronous SGD takes one.
    momentum : float
        Polyak's, in [0, 1), where the means are applied. Groups that push in turn act like
        momentum themselves, so the more there are the less is needed.
    batch_size : int
        Examples a replica.
    seed : int
        Of the initial parameters.
    """
    init = model.init(seed=seed)
    w, copy = fl.table("w", init), fl.table("copy", init, scope="host")
    batch = fl.load(source, batch_size=batch_size)
    inside = fl.aggregate("mean", fl.gradient(model, copy, batch), within="host", name="inside")
    fresh = fl.update(w, inside.async_(), fl.sgd(lr, momentum=momentum))
    sinks = [fresh, fl.assign(copy, fresh)]
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
    return fl.Graph(*sinks, name="hybrid")
