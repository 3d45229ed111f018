"""Softmax regression: one weight vector and one intercept a class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flowml.models.batches import (
    Batch,
    Params,
    back_through,
    check_classes,
    check_rows,
    empty_like,
    features,
    float_dtype,
    penalty,
    split,
)
from flowml.models.crossentropy import cross_entropy, cross_entropy_loss
from flowml.schedules import count, real
from flowml.types import Array

WHERE = "fl.models.softmax"


@dataclass(frozen=True)
class Softmax:
    """See `softmax`; parameters ``{"W": (n_features, n_classes), "b": (n_classes,)}``."""

    n_features: int
    n_classes: int
    l2: float
    dtype: str

    def init(self, seed: int = 0) -> dict[str, Array]:
        """Return zeros: the loss is convex, so every start leads to the same optimum."""
        shape = (self.n_features, self.n_classes)
        return {"W": np.zeros(shape, self.dtype), "b": np.zeros(self.n_classes, self.dtype)}

    def value_and_grad(
        self, params: Params, batch: Batch, out: dict[str, Array] | None = None
    ) -> tuple[float, dict[str, Array]]:
        """Return the loss and its gradient.

        Parameters
        ----------
        params : dict of ndarray
        batch : tuple
            ``(X, y)`` or ``(X, y, weight)``; y holds whole numbers from 0 to ``n_classes - 1``.
        out : dict of ndarray, optional
            C-contiguous arrays shaped like ``params`` that the gradient is written into.
        """
        W = params["W"]
        X, y, weight = split(batch, W.dtype)
        grads = empty_like(params) if out is None else out
        slope = _logits(params, X)
        loss = cross_entropy(slope, y, weight)
        back_through(X, slope.T, grads["W"])
        np.add.reduce(slope, 1, out=grads["b"])
        if self.l2:
            grads["W"] += self.l2 * W
            loss += penalty([W], self.l2)
        return loss, grads

    def loss(self, params: Params, batch: Batch) -> float:
        """Return the loss alone."""
        X, y, weight = split(batch, params["W"].dtype)
        data = cross_entropy_loss(_logits(params, X), y, weight)
        return data + penalty([params["W"]], self.l2)

    def predict(self, params: Params, X: Any) -> Array:
        """Return the likeliest class of each row, int64."""
        classes: Array = np.argmax(_logits(params, features(X, params["W"].dtype)), axis=0)
        return classes

    def score(self, params: Params, X: Any, y: Array) -> float:
        """Return the share of rows whose class is predicted."""
        return float(np.mean(self.predict(params, X) == y))

    def check_batch(self, batch: Batch) -> None:
        """Raise DataError where a batch does not fit this model; meant for the first batch."""
        check_rows(WHERE, batch, self.n_features)
        check_classes(WHERE, np.asarray(batch[1]), self.n_classes)


def _logits(params: Params, X: Any) -> Array:
    # One pass adds the intercepts and turns (rows, classes) over into (classes, rows).
    turned: Array = np.add(X.dot(params["W"]).T, params["b"][:, None], order="C")
    return turned


def softmax(
    n_features: int, n_classes: int, l2: float = 0.0, dtype: npt.DTypeLike = "float32"
) -> Softmax:
    """Return softmax regression (multinomial logistic regression).

    Parameters
    ----------
    n_features, n_classes : int
    l2 : float
        Adds ``l2 / 2`` times the sum of squares of W; the intercepts are free.
    dtype : dtype
        Of the parameters that `Softmax.init` makes.

    Examples
    --------
    >>> model = softmax(n_features=2, n_classes=3)
    >>> params = model.init()
    >>> loss, grads = model.value_and_grad(params, (np.ones((1, 2), "f4"), np.array([2])))
    >>> round(loss, 4), grads["b"].round(2)
    (1.0986, array([ 0.33,  0.33, -0.67], dtype=float32))
    """
    classes = count(WHERE, "n_classes", n_classes, low=2)
    return Softmax(
        count(WHERE, "n_features", n_features),
        classes,
        real(WHERE, "l2", l2),
        float_dtype(WHERE, dtype),
    )
