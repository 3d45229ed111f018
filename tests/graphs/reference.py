"""Pieces of the plain NumPy loops that the graphs are compared with.

Only the order of the data comes from flowml (which rows, and when); no number is computed by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from flowml.data import BatchOrder, Share, deal_indices, random_seed

Array = np.ndarray[Any, Any]
Params = dict[str, Array]

FEATURES, CLASSES, ROWS = 5, 3, 61
STEPS = (1, 2, 7)
REPLICAS = (1, 2, 3)


def examples(rows: int = ROWS, seed: int = 7) -> tuple[Array, Array]:
    """Return X, float64, and noisy labels of three classes."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, FEATURES))
    scores = X @ rng.normal(size=(FEATURES, CLASSES)) + rng.normal(size=(rows, CLASSES))
    return X, scores.argmax(1)


def dealt(rows: int, replicas: int, seed: int = 0) -> list[Array]:
    """Return the rows of each replica's share of arrays in memory."""
    return deal_indices(rows, replicas, seed=(seed, 0, random_seed("load")))


def in_parts(sizes: Sequence[int]) -> list[Array]:
    """Return rows 0, 1, ... cut in runs of these sizes, one a replica."""
    return [np.arange(a, b) for a, b in pairwise(np.cumsum((0, *sizes)))]


def batches(
    shares: list[Array], batch_size: int | None, steps: int, seed: int = 0
) -> list[list[Array]]:
    """Return, for each step, the rows of each replica; an empty array where it has no batch.

    With 61 rows, two replicas and batches of 10, the last step of an epoch has one row for the
    first replica and none for the second.
    """
    entropy = (seed, 0, random_seed("load"))
    orders = [
        BatchOrder(Share((len(share),), (rank,), rank), batch_size, True, False, entropy)
        for rank, share in enumerate(shares)
    ]
    epoch = max(order.batches() for order in orders)
    nothing = np.zeros(0, np.intp)
    return [
        [
            share[np.concatenate([nothing, *(i for _, i in order.pieces(*divmod(step, epoch)))])]
            for share, order in zip(shares, orders, strict=True)
        ]
        for step in range(steps)
    ]


def zeros() -> Params:
    """Return where softmax regression starts."""
    return {"W": np.zeros((FEATURES, CLASSES)), "b": np.zeros(CLASSES)}


def softmax_loss(params: Params, X: Array, y: Array) -> float:
    """Return the mean cross entropy."""
    scores = X @ params["W"] + params["b"]
    return float(np.mean(np.log(np.exp(scores).sum(1)) - scores[np.arange(len(y)), y]))


def softmax_gradient(params: Params, X: Array, y: Array) -> Params:
    """Return the gradient of the mean cross entropy."""
    odds = np.exp(X @ params["W"] + params["b"])
    slope = (odds / odds.sum(1, keepdims=True) - np.eye(CLASSES)[y]) / len(y)
    return {"W": X.T @ slope, "b": slope.sum(0)}


def mean_gradient(params: Params, X: Array, y: Array, rows: list[Array]) -> Params:
    """Return the gradient over the rows of all replicas, weighed by their numbers."""
    total = sum(map(len, rows))
    parts = [(len(r) / total, softmax_gradient(params, X[r], y[r])) for r in rows if len(r)]
    return {name: sum(share * grads[name] for share, grads in parts) for name in params}


def local_step(params: Params, X: Array, y: Array, rows: Array, lr: float) -> Params:
    """Return the parameters after one step of plain SGD; the same ones without rows."""
    if not len(rows):
        return params
    grads = softmax_gradient(params, X[rows], y[rows])
    return {name: params[name] - lr * grads[name] for name in params}


def assert_close(found: Any, expected: Any, rtol: float = 1e-12) -> None:
    """Require each array to differ by at most ``rtol`` times its largest item."""
    if not isinstance(expected, dict):
        found, expected = {"": found}, {"": expected}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == np.shape(value)
        assert found[name].dtype == np.float64
        worst = np.max(np.abs(found[name] - value))
        assert worst <= rtol * np.max(np.abs(value)), f"{name}: {worst:.1e}"
