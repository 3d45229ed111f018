"""Large-batch SGD: the batch grows with the replicas, and the rate with the batch, warmed up.

Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017: the linear scaling
rule (section 2.1), gradual warm-up (section 2.2) and a mean over the total batch (section 3,
remark 3). The rate stands outside the velocity, which is the momentum correction of remark 2. Their
decay at epochs 30, 60 and 80 is left to ``lr``, which may be a schedule. Rows are dealt to the
replicas once and permuted within each share every epoch; they permute all rows every epoch.
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
    momentum: float = 0.9,
    batch_size: int = 128,
    warmup_epochs: int = 5,
    replicas: int = 1,
    steps_per_epoch: int = 100,
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
        What suits a batch of ``batch_size``; the rate is ``replicas`` times that after the warm-up.
    momentum : float
        Polyak's, in [0, 1).
    batch_size : int
        Examples a replica.
    warmup_epochs : int
        Epochs of a straight line from the rate of one replica; 0 for none.
    replicas, steps_per_epoch : int
        Those of the run.
    seed : int
        Of the initial parameters.
    """
    rate: fl.schedules.Schedule = fl.schedules.linear_scaling(
        lr, batch_size=replicas * batch_size, reference=batch_size
    )
    if warmup_epochs:
        ramp = warmup_epochs * steps_per_epoch
        rate = fl.schedules.warmup(rate, steps=ramp, start=rate(0) / replicas)
    w = fl.table("w", model.init(seed=seed))
    batch = fl.load(source, batch_size=batch_size)
    mean = fl.aggregate("mean", fl.gradient(model, w, batch))
    sinks = [fl.update(w, mean, fl.sgd(rate, momentum=momentum))]
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
    return fl.Graph(*sinks, name="large_batch")
