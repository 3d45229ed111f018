"""Synchronous SGD with backup workers: a step goes on without the last few gradients.

Chen, Pan, Monga, Bengio and Jozefowicz, "Revisiting Distributed Synchronous SGD", 2016, algorithms
3 and 4: of N + b workers, each step takes the first N gradients that were computed from its own
parameters, and drops those that come later. Here the mean weighs gradients by their examples, and
``late="carry"`` lets a late one into the next step instead, with its own weight. A replica that has
missed a step goes on from the newest parameters; the batches of the steps between are not made up
for in that epoch, where theirs are drawn anew each time. Their moving average of the parameters is
left out.
"""

from __future__ import annotations

from typing import Any, Literal

import flowml as fl


def build(
    model: Any,
    source: Any,
    *,
    test: Any = None,
    lr: float | fl.schedules.Schedule = 0.1,
    momentum: float = 0.0,
    batch_size: int = 128,
    replicas: int = 1,
    backups: int = 1,
    late: Literal["drop", "carry"] = "drop",
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
    replicas : int
        N + b, of the run: a step waits for ``replicas - backups`` of them, and for at least one.
    backups : int
        b, replicas that a step does not wait for; 0 is synchronous SGD.
    late : "drop" or "carry"
        What becomes of a gradient that has missed its step.
    seed : int
        Of the initial parameters.

    Raises
    ------
    GraphError
        If there are as many backups as replicas.
    """
    if not 0 <= backups < max(2, replicas):
        raise fl.GraphError(
            "backup_workers",
            "backups must be at least 0 and less than replicas",
            f"{backups} of {replicas}",
            "A step waits for replicas - backups gradients.",
        )
    w = fl.table("w", model.init(seed=seed))
    batch = fl.load(source, batch_size=batch_size)
    first = fl.gradient(model, w, batch).quorum(max(1, replicas - backups), late=late)
    sinks = [fl.update(w, fl.aggregate("mean", first), fl.sgd(lr, momentum=momentum))]
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
    return fl.Graph(*sinks, name="backup_workers")
