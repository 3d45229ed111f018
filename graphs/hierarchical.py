"""Hierarchical synchronous SGD: gradients are reduced inside each group, then across the groups.

Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017, section 4: first
inside a server, then one value a server between servers. There the groups are machines and the
first sum a plain one; here ``groups=`` of the run says which replicas make a group ("host" by
default), and both means weigh by examples, so that the result is that of one mean over all.
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
    inside = fl.aggregate("mean", fl.gradient(model, w, batch), within="host", name="inside")
    across = fl.aggregate("mean", inside, name="across")
    sinks = [fl.update(w, across, fl.sgd(lr, momentum=momentum))]
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
    return fl.Graph(*sinks, name="hierarchical")
