"""A multilayer perceptron for classification: ReLU layers, then a softmax."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from flowml.errors import GraphError
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

WHERE = "fl.models.mlp"


@dataclass(frozen=True)
class Mlp:
    """See `mlp`; parameters ``{"W0": (sizes[0], sizes[1]), "b0": (sizes[1],), "W1": ...}``."""

    sizes: tuple[int, ...]
    l2: float
    dtype: str

    def init(self, seed: int = 0) -> dict[str, Array]:
        """Return random weights and zero intercepts.

        Weights are normal with variance ``2 / inputs``, drawn in float64, so that they are the same
        numbers in every dtype.

        References
        ----------
        He et al., "Delving Deep into Rectifiers", ICCV 2015, equation 10; for the last layer too.
        """
        rng = np.random.default_rng(seed)
        params: dict[str, Array] = {}
        for i, (inputs, outputs) in enumerate(pairwise(self.sizes)):
            weights = rng.standard_normal((inputs, outputs)) * np.sqrt(2.0 / inputs)
            params[f"W{i}"] = weights.astype(self.dtype)
            params[f"b{i}"] = np.zeros(outputs, self.dtype)
        return params

    def value_and_grad(
        self, params: Params, batch: Batch, out: dict[str, Array] | None = None
    ) -> tuple[float, dict[str, Array]]:
        """Return the loss and its gradient.

        Parameters
        ----------
        params : dict of ndarray
        batch : tuple
            ``(X, y)`` or ``(X, y, weight)``; y holds whole numbers from 0 to ``sizes[-1] - 1``.
        out : dict of ndarray, optional
            C-contiguous arrays shaped like ``params`` that the gradient is written into.
        """
        X, y, weight = split(batch, params["W0"].dtype)
        grads = empty_like(params) if out is None else out
        inputs, logits = self._forward(params, X)
        loss = cross_entropy(logits, y, weight)
        self._backward(params, inputs, logits.T, grads)
        if self.l2:
            for name in self._matrices():
                grads[name] += self.l2 * params[name]
        return loss + self._penalty(params), grads

    def loss(self, params: Params, batch: Batch) -> float:
        """Return the loss alone."""
        X, y, weight = split(batch, params["W0"].dtype)
        _, logits = self._forward(params, X)
        return cross_entropy_loss(logits, y, weight) + self._penalty(params)

    def predict(self, params: Params, X: Any) -> Array:
        """Return the likeliest class of each row, int64."""
        _, logits = self._forward(params, features(X, params["W0"].dtype))
        classes: Array = np.argmax(logits, axis=0)
        return classes

    def score(self, params: Params, X: Any, y: Array) -> float:
        """Return the share of rows whose class is predicted."""
        return float(np.mean(self.predict(params, X) == y))

    def check_batch(self, batch: Batch) -> None:
        """Raise DataError where a batch does not fit this model; meant for the first batch."""
        check_rows(WHERE, batch, self.sizes[0])
        check_classes(WHERE, np.asarray(batch[1]), self.sizes[-1])

    def _forward(self, params: Params, X: Any) -> tuple[list[Any], Array]:
        """Return the input of every layer, and the logits as (n_classes, rows)."""
        inputs, last = [X], len(self.sizes) - 2
        for i in range(last):
            hidden = inputs[-1].dot(params[f"W{i}"])
            hidden += params[f"b{i}"]
            inputs.append(np.maximum(hidden, 0, out=hidden))
        scores = inputs[-1].dot(params[f"W{last}"])
        return inputs, np.add(scores.T, params[f"b{last}"][:, None], order="C")

    def _backward(
        self, params: Params, inputs: list[Any], slope: Array, grads: dict[str, Array]
    ) -> None:
        """Write every gradient; ``slope`` is that of the logits, as (rows, n_classes)."""
        for i in reversed(range(len(inputs))):
            back_through(inputs[i], slope, grads[f"W{i}"])
            np.add.reduce(slope, 0, out=grads[f"b{i}"])
            if i:
                slope = np.dot(slope, params[f"W{i}"].T)
                slope *= inputs[i] > 0

    def _matrices(self) -> list[str]:
        return [f"W{i}" for i in range(len(self.sizes) - 1)]

    def _penalty(self, params: Params) -> float:
        return penalty([params[name] for name in self._matrices()], self.l2)


def mlp(sizes: Sequence[int], l2: float = 0.0, dtype: npt.DTypeLike = "float32") -> Mlp:
    """Return a multilayer perceptron: ReLU between the layers, softmax cross entropy at the end.

    Parameters
    ----------
    sizes : sequence of int
        Features, hidden units of each layer, classes: ``[784, 128, 10]``. Two sizes make softmax
        regression with a random start.
    l2 : float
        Adds ``l2 / 2`` times the sum of squares of all W; the intercepts are free.
    dtype : dtype
        Of the parameters that `Mlp.init` makes.

    Examples
    --------
    >>> {name: leaf.shape for name, leaf in mlp([4, 3, 2]).init(seed=0).items()}
    {'W0': (4, 3), 'b0': (3,), 'W1': (3, 2), 'b1': (2,)}
    """
    if len(sizes) < 2:
        raise GraphError(WHERE, "sizes must be features, hidden units and classes", repr(sizes))
    checked = [count(WHERE, "every size", size) for size in sizes]
    count(WHERE, "the number of classes", checked[-1], low=2)
    return Mlp(tuple(checked), real(WHERE, "l2", l2), float_dtype(WHERE, dtype))
