"""Batch gradient descent by iterative map-reduce: each step is the gradient of the whole data set.

Chu et al., "Map-Reduce for Machine Learning on Multicore", NIPS 2006, section 2: a sum over the
examples is mapped over shares and reduced once a step. Nesterov, "A method of solving a convex
programming problem with convergence rate O(1/k^2)", 1983, in the form of ``fl.sgd``; here with a
constant momentum, where his grows. Shares stay with their replicas between the steps, as in
Rosen et al., "Iterative MapReduce for Large Scale Machine Learning", 2013.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import optree

import flowml as fl


def build(
    model: Any,
    source: Any,
    *,
    test: Any = None,
    lr: float | fl.schedules.Schedule = 0.5,
    momentum: float = 0.9,
    tol: float = 0.0,
    seed: int = 0,
) -> fl.Graph:
    """Return the graph; its table is ``w``. An epoch is one step.

    Parameters
    ----------
    model, source
        A model as in ``fl.models``, and its training examples.
    test : source, optional
        Evaluated after each step: ``loss`` and ``score``.
    lr : float or schedule
    momentum : float
        Nesterov's, in [0, 1); 0 is plain gradient descent.
    tol : float
        Ends the run when no item of the gradient is larger; at 0, only where all vanish.
    seed : int
        Of the initial parameters.
    """
    w = fl.table("w", model.init(seed=seed))
    share = fl.load(source, batch_size=None)
    mean = fl.aggregate("mean", fl.gradient(model, w, share))
    rule = fl.sgd(lr, momentum=momentum, nesterov=momentum > 0)
    small = fl.until(lambda g: all(np.abs(x).max() <= tol for x in optree.tree_leaves(g)), mean)
    sinks = [fl.update(w, mean, rule), small]
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
    return fl.Graph(*sinks, name="batch_gradient")
