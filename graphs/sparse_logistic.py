"""Logistic regression on hashed categories: weights in a table of rows, pushed by key.

McMahan et al., "Ad Click Prediction: a View from the Trenches", KDD 2013, section 3: the
weights of features that occur, each with a rate of its own, and none of those that L1 keeps at
zero. Features are hashed as in Weinberger, Dasgupta, Langford, Smola and Attenberg, "Feature
Hashing for Large Scale Multitask Learning", ICML 2009, section 2, with a sign that makes collisions
cancel in the mean. The first update example by example; here each replica pushes the gradient of a
batch, summed over its examples, for the keys in it, as in Li et al., "Scaling Distributed Machine
Learning with the Parameter Server", OSDI 2014, algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import expit

import flowml as fl

Array = npt.NDArray[Any]

MIXING = ((33, 0xFF51AFD7ED558CCD), (33, 0xC4CEB9FE1A85EC53))
"""The finaliser of MurmurHash3, 64 bits (Appleby, 2011): shift, multiply, twice; then shift."""
EXACT = 2.0**53
"""Whole floats below it are told apart."""
COLUMN, PAIR = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)


@dataclass(frozen=True)
class Hashing:
    """From categories to keys of a table, and the predictions of its rows.

    Attributes
    ----------
    bits : int
        Keys of features are below ``2**bits``; the intercept has the key ``2**bits``.
    degree : int
        1: each column is a feature. 2: each pair of columns too.
    signed : bool
        Half of the features, by their hash, count as -1.
    """

    bits: int = 18
    degree: int = 1
    signed: bool = True

    def features(self, X: Array) -> tuple[Array, Array]:
        """Return keys and signs.

        Parameters
        ----------
        X : ndarray of numbers, shape (n, columns)
            Each number is a category, NaN too, and a different one in each column.

        Returns
        -------
        keys : ndarray of int64, shape (n, features)
        signs : ndarray of int8, shape (n, features)

        Raises
        ------
        TypeError
            If X does not hold numbers.
        """
        columns = np.arange(1, X.shape[1] + 1, dtype=np.uint64) * COLUMN
        hashes = _mixed(_categories(X) + columns)
        if self.degree > 1:
            first, second = np.triu_indices(X.shape[1], 1)
            pairs = _mixed(hashes[:, first] + PAIR * hashes[:, second])
            hashes = np.concatenate([hashes, pairs], 1)
        one = np.ones((len(X), 1), np.int64)
        keys = (hashes >> np.uint64(64 - self.bits)).astype(np.int64)
        signs = np.where(hashes & np.uint64(1), 1, -1) if self.signed else np.ones_like(keys)
        return np.hstack([keys, one << self.bits]), np.hstack([signs, one]).astype(np.int8)

    def predict(self, w: fl.KeyedRows, X: Array) -> Array:
        """Return the probability of class 1, shape (n,), from the rows that a run left."""
        return np.asarray(expit(self.scores(w, X)))

    def scores(self, w: fl.KeyedRows, X: Array) -> Array:
        """Return the log odds of class 1, shape (n,)."""
        keys, signs = self.features(X)
        return _scores(w.at(keys)[..., 0], signs)


def build(
    source: Any,
    *,
    test: Any = None,
    lr: float = 0.1,
    rule: Literal["ftrl", "adagrad"] = "ftrl",
    beta: float = 1.0,
    l1: float = 0.0,
    l2: float = 0.0,
    promise: Literal["async", "sync"] = "async",
    batch_size: int = 256,
    bits: int = 18,
    degree: int = 1,
    signed: bool = True,
    dtype: str = "float32",
) -> fl.Graph:
    """Return the graph; its table is ``w``, rows of one weight by key, as `Hashing` makes keys.

    Parameters
    ----------
    source : source
        ``(X, y)``: X of shape (n, columns), a category a number; class 1 is y > 0.
    test : source, optional
        Evaluated about once an epoch: ``loss``, the mean logarithmic loss, and ``score``, the
        accuracy.
    lr : float
        Alpha of FTRL, or the rate of Adagrad.
    rule : "ftrl" or "adagrad"
    beta, l1, l2 : float
        Of ``fl.ftrl``. Gradients are sums over examples, so their size does not depend on the
        batch: an undecided example has one of 1/2, so ``l1=1`` is the weight of two.
    promise : "async" or "sync"
        Each replica's gradient is applied as it comes, or their sum in each step.
    batch_size : int
        Examples a replica.
    bits, degree, signed
        As `Hashing` has them.
    dtype : str
        Of the weights.
    """
    hashing = Hashing(bits, degree, signed)
    w = fl.sparse_table("w", 1, dtype=dtype, rows=(1 << bits) + 1)
    batch = fl.load(source, batch_size=batch_size)
    keys, terms = fl.map(partial(_terms, hashing), batch, outputs=2, name="terms")
    step = fl.ftrl(lr, beta, l1, l2) if rule == "ftrl" else fl.adagrad(lr)
    loss = fl.value_and_grad(_loss_and_gradient)
    if promise == "sync":
        grads = fl.gradient(loss, w.at(keys), terms)
        written = fl.update(w, fl.aggregate("sum", grads.at(keys)), step)
    else:
        grads = fl.gradient(loss, w.async_().at(keys), terms)
        written = fl.update(w.at(keys), grads, step)
    sinks = [written]
    if test is not None:
        evaluated = partial(_evaluated, hashing)
        sinks.append(fl.evaluate(evaluated, w, test, every="1 epoch", name="test"))
    return fl.Graph(*sinks, name="sparse_logistic")


def _categories(X: Array) -> Array:
    """Return numbers as unsigned 64-bit integers: whole ones as they are, others by their bits."""
    if X.dtype.kind in "biu":
        return X.astype(np.int64).view(np.uint64)
    if X.dtype.kind != "f":
        raise TypeError(
            f"sparse_logistic: categories must be numbers, got {X.dtype}. Number them, as "
            "np.unique(column, return_inverse=True)[1] does."
        )
    X = X.astype(np.float64)
    whole = (np.abs(X) < EXACT) & (np.trunc(X) == X)
    integers = np.where(whole, X, 0).astype(np.int64)
    return np.asarray(np.where(whole, integers, X.view(np.int64)).view(np.uint64))


def _mixed(x: Array) -> Array:
    """Return a hash of unsigned 64-bit integers; it wraps around."""
    for shift, factor in MIXING:
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray(x ^ (x >> np.uint64(33)))


def _scores(weights: Array, signs: Array) -> Array:
    return np.asarray((weights * signs).sum(1))


def _terms(hashing: Hashing, batch: Any) -> tuple[Array, dict[str, Array]]:
    """Return the keys of a batch, each once, and which of them stands where."""
    keys, signs = hashing.features(batch[0])
    unique, place = np.unique(keys, return_inverse=True)
    return unique, {"place": place.reshape(keys.shape), "signs": signs, "positive": batch[1] > 0}


def _loss_and_gradient(rows: Array, terms: dict[str, Array]) -> tuple[float, Array]:
    """Return the mean loss of a batch, and the sum of its examples' gradients for each row."""
    place, signs, positive = terms["place"], terms["signs"], terms["positive"]
    scores = _scores(rows[:, 0][place], signs).astype(np.float64)
    slopes = expit(scores) - positive
    sums = np.bincount(place.ravel(), (slopes[:, None] * signs).ravel(), len(rows))
    return _loss(scores, positive), sums[:, None].astype(rows.dtype)


def _loss(scores: Array, positive: Array) -> float:
    return float(np.mean(np.logaddexp(0, np.where(positive, -scores, scores))))


def _evaluated(hashing: Hashing, w: fl.KeyedRows, batch: Any) -> dict[str, float]:
    scores, positive = hashing.scores(w, batch[0]), batch[1] > 0
    hits = float(np.mean((scores > 0) == positive))
    return {"loss": _loss(scores, positive), "score": hits}
