"""Linear and logistic regression: one weight vector and, usually, one intercept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from flowml.errors import DataError
from flowml.models.batches import (
    Batch,
    Params,
    back_through,
    check_rows,
    check_signs,
    empty_like,
    features,
    float_dtype,
    mean,
    penalty,
    shares,
    split,
)
from flowml.schedules import count, real
from flowml.types import Array

Losses: TypeAlias = Callable[[Array, Array], tuple[Array, Array]]
"""``(scores, y)`` to the loss of each row and its derivative by the score; may spoil the scores."""


@dataclass(frozen=True)
class Linear:
    """See `linear`; parameters ``{"w": (n_features,), "b": (1,)}``, or ``w`` alone."""

    n_features: int
    l2: float
    dtype: str
    intercept: bool

    def init(self, seed: int = 0) -> dict[str, Array]:
        """Return zeros: the loss is convex, so every start leads to the same optimum."""
        return _zeros(self.n_features, self.dtype, self.intercept)

    def value_and_grad(
        self, params: Params, batch: Batch, out: dict[str, Array] | None = None
    ) -> tuple[float, dict[str, Array]]:
        """Return the loss and its gradient, written into ``out`` where that is given."""
        return _value_and_grad(_squares, self.l2, params, batch, out)

    def loss(self, params: Params, batch: Batch) -> float:
        """Return the loss alone."""
        return _loss(_squares, self.l2, params, batch)

    def predict(self, params: Params, X: Any) -> Array:
        """Return the prediction for each row, in the parameters' dtype."""
        return _scores(params, features(X, params["w"].dtype))

    def score(self, params: Params, X: Any, y: Array) -> float:
        """Return R^2, in float64; for a constant y, 1.0 if it is hit and else 0.0."""
        truth = np.asarray(y, np.float64)
        missed = float(np.sum((truth - self.predict(params, X)) ** 2))
        spread = float(np.sum((truth - truth.mean()) ** 2))
        return 1.0 - missed / spread if spread else float(missed == 0.0)

    def check_batch(self, batch: Batch) -> None:
        """Raise DataError where a batch does not fit this model; meant for the first batch."""
        check_rows("fl.models.linear", batch, self.n_features)
        if not np.isfinite(batch[1]).all():
            bad = int(np.flatnonzero(~np.isfinite(batch[1]))[0])
            raise DataError("fl.models.linear", "y must be finite", f"{batch[1][bad]} in row {bad}")


@dataclass(frozen=True)
class Logistic:
    """See `logistic`; parameters ``{"w": (n_features,), "b": (1,)}``, or ``w`` alone."""

    n_features: int
    l2: float
    dtype: str
    intercept: bool

    def init(self, seed: int = 0) -> dict[str, Array]:
        """Return zeros: the loss is convex, so every start leads to the same optimum."""
        return _zeros(self.n_features, self.dtype, self.intercept)

    def value_and_grad(
        self, params: Params, batch: Batch, out: dict[str, Array] | None = None
    ) -> tuple[float, dict[str, Array]]:
        """Return the loss and its gradient, written into ``out`` where that is given."""
        return _value_and_grad(_margins, self.l2, params, batch, out)

    def loss(self, params: Params, batch: Batch) -> float:
        """Return the loss alone."""
        return _loss(_margins, self.l2, params, batch)

    def predict(self, params: Params, X: Any) -> Array:
        """Return 1 for each row of the positive class and 0 for the others, int64."""
        return (_scores(params, features(X, params["w"].dtype)) > 0).astype(np.int64)

    def score(self, params: Params, X: Any, y: Array) -> float:
        """Return the share of rows whose class, ``y > 0`` or not, is predicted."""
        return float(np.mean(self.predict(params, X) == (np.asarray(y) > 0)))

    def check_batch(self, batch: Batch) -> None:
        """Raise DataError where a batch does not fit this model; meant for the first batch."""
        check_rows("fl.models.logistic", batch, self.n_features)
        check_signs("fl.models.logistic", np.asarray(batch[1]))


def _zeros(n_features: int, dtype: str, intercept: bool) -> dict[str, Array]:
    params = {"w": np.zeros(n_features, dtype)}
    return params | {"b": np.zeros(1, dtype)} if intercept else params


def _scores(params: Params, X: Any) -> Array:
    scores: Array = X.dot(params["w"])
    if "b" in params:
        scores += params["b"]
    return scores


def _value_and_grad(
    losses_of: Losses, l2: float, params: Params, batch: Batch, out: dict[str, Array] | None
) -> tuple[float, dict[str, Array]]:
    w = params["w"]
    X, y, weight = split(batch, w.dtype)
    grads = empty_like(params) if out is None else out
    losses, slope = losses_of(_scores(params, X), y)
    share = shares(weight, len(losses))
    slope *= share
    back_through(X, slope, grads["w"])
    if "b" in params:
        np.add.reduce(slope, 0, out=grads["b"], keepdims=True)
    if l2:
        grads["w"] += l2 * w
    return mean(losses, share) + penalty([w], l2), grads


def _loss(losses_of: Losses, l2: float, params: Params, batch: Batch) -> float:
    X, y, weight = split(batch, params["w"].dtype)
    losses, _ = losses_of(_scores(params, X), y)
    return mean(losses, shares(weight, len(losses))) + penalty([params["w"]], l2)


def _squares(scores: Array, y: Array) -> tuple[Array, Array]:
    """Half the square of the difference."""
    scores -= y.astype(scores.dtype, copy=False)
    return 0.5 * np.square(scores), scores


def _margins(scores: Array, y: Array) -> tuple[Array, Array]:
    """``log(1 + exp(m))`` with ``m = -s * score``, from ``exp(-abs(m))``, which cannot overflow."""
    sign = (y > 0).astype(scores.dtype)
    sign *= -2
    sign += 1
    scores *= sign
    small = np.exp(-np.abs(scores))
    losses = np.maximum(scores, 0)
    losses += np.log1p(small)
    slope = np.exp(np.minimum(scores, 0))
    small += 1
    slope /= small
    slope *= sign
    return losses, slope


def linear(
    n_features: int, l2: float = 0.0, dtype: npt.DTypeLike = "float32", intercept: bool = True
) -> Linear:
    """Return linear regression: the loss of a row is ``(prediction - y) ** 2 / 2``.

    Parameters
    ----------
    n_features : int
    l2 : float
        Adds ``l2 / 2`` times the sum of squares of w; the intercept is free.
    dtype : dtype
        Of the parameters that `Linear.init` makes.
    intercept : bool
        False leaves ``b`` out.

    Examples
    --------
    >>> model = linear(n_features=1)
    >>> model.value_and_grad(model.init(), (np.array([[2.0]], "f4"), np.array([3.0])))[0]
    4.5
    """
    where = "fl.models.linear"
    features_, penalty_ = count(where, "n_features", n_features), real(where, "l2", l2)
    return Linear(features_, penalty_, float_dtype(where, dtype), bool(intercept))


def logistic(
    n_features: int, l2: float = 0.0, dtype: npt.DTypeLike = "float32", intercept: bool = True
) -> Logistic:
    """Return logistic regression for two classes; class 1 is ``y > 0``.

    The loss of a row is ``log(1 + exp(-s * score))``, s = 1 for class 1 and -1 for the other, so
    labels 0 and 1 mean the same as -1 and 1.

    Parameters
    ----------
    n_features : int
    l2 : float
        Adds ``l2 / 2`` times the sum of squares of w; the intercept is free.
    dtype : dtype
        Of the parameters that `Logistic.init` makes.
    intercept : bool
        False leaves ``b`` out.

    Examples
    --------
    >>> model = logistic(n_features=1)
    >>> round(model.loss(model.init(), (np.array([[2.0]], "f4"), np.array([1]))), 4)
    0.6931
    """
    where = "fl.models.logistic"
    features_, penalty_ = count(where, "n_features", n_features), real(where, "l2", l2)
    return Logistic(features_, penalty_, float_dtype(where, dtype), bool(intercept))
