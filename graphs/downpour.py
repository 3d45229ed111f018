"""Downpour SGD: replicas with copies of their own push sums of gradients and fetch, at any time.

Dean et al., "Large Scale Distributed Deep Networks", NIPS 2012, section 4.1 and algorithm 7.1 of
its appendix, with Adagrad at the parameter server. The copy takes plain steps between two fetches.
There the first gradient is pushed by itself; here each push sums ``n_push`` of them from the start.
Their server is cut in shards that a replica reads at different times; here a fetch is of one
instant.
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
    local_lr: float | fl.schedules.Schedule = 0.05,
    batch_size: int = 128,
    n_fetch: int = 4,
    n_push: int = 4,
    seed: int = 0,
) -> fl.Graph:
    """Return the graph; its tables are ``w``, the server's, and ``local``, one a replica.

    Parameters
    ----------
    model, source
        A model as in ``fl.models``, and its training examples.
    test : source, optional
        ``w`` is evaluated about once an epoch: ``loss`` and ``score``.
    lr : float or schedule
        Adagrad's, at the server.
    local_lr : float or schedule
        Of the steps of a replica's copy.
    batch_size : int
        Examples a replica.
    n_fetch, n_push : int
        Steps between two fetches, and between two pushes.
    seed : int
        Of the initial parameters.
    """
    init = model.init(seed=seed)
    w, local = fl.table("w", init), fl.table("local", init, scope="replica")
    batch = fl.load(source, batch_size=batch_size)
    fetched = w.async_().every(n_fetch)
    start = fl.map(partial(_start, n_fetch), fetched, local, fl.here(), name="start")
    fresh = fl.assign(local, start)
    grads = fl.gradient(model, fresh, batch)
    moved = fl.update(local, grads, fl.sgd(local_lr))
    pushed = fl.update(w, grads.async_().every(n_push, keep="sum"), fl.adagrad(lr))
    sinks = [fresh, moved, pushed]
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
    return fl.Graph(*sinks, name="downpour")


def _start(n_fetch: int, fetched: Any, local: Any, here: Any) -> Any:
    """Return where a step starts: at what was fetched just now, or where the copy is."""
    return fetched if here.clock % n_fetch == 0 else local
