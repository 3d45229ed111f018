"""Skip-gram with negative sampling: word vectors from two tables of rows, pushed at any time.

Mikolov, Sutskever, Chen, Corrado and Dean, "Distributed Representations of Words and Phrases and
their Compositionality", NIPS 2013: the objective of section 2.2, equation 4, with the unigram
distribution to the power 3/4; subsampling of frequent words, section 2.3, equation 5; a window of a
random size for each centre.

How we differ: a source is rows of consecutive words, and a window does not look past its row. The
negatives are drawn for a row, not for a pair, and each stands for several (as Ji, Satish, Li and
Dubey, "Parallelizing Word2Vec in Shared and Distributed Memory", 2016, share them within a window),
so a row is a few small matrix products; a negative that is a context of its centre counts too. They
update pair by pair, without locks; here the gradients of a batch are summed for each word and
pushed as one, where Adagrad gives each item a rate of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

import flowml as fl

Array = npt.NDArray[Any]

LARGEST = 30.0
"""Scores beyond it are cut: their odds are 0 and 1 in float32."""


def build(
    source: Any,
    *,
    test: Any = None,
    lr: float | fl.schedules.Schedule = 0.1,
    batch_size: int = 128,
    dimensions: int = 100,
    window: int = 5,
    negatives: int = 5,
    drawn: int = 16,
    subsample: float = 1e-4,
    dtype: str = "float32",
    seed: int = 0,
) -> fl.Graph:
    """Return the graph; its tables are ``inner``, the vectors of words, and ``outer``, of contexts.

    Parameters
    ----------
    source : source
        X of integers, shape (n, length): consecutive words by number, below 0 where there is none.
        It is read once to count the words. Labels and weights are left out.
    test : source, optional
        ``(X, y)``: pairs of words, shape (n, 2), and how similar they are, at most one block of
        them. After each epoch: ``spearman``, the rank correlation with the cosines of ``inner``.
    lr : float or schedule
        Adagrad's.
    batch_size : int
        Rows of the source a replica.
    dimensions : int
        Length of a vector.
    window : int
        Contexts are at most so far from their centre, before or behind, in words that are kept.
    negatives : int
        Negatives a pair, k in equation 4.
    drawn : int
        Negatives drawn for a row of the source, each of them ``negatives / drawn`` for a pair.
    subsample : float
        t in equation 5; 0 keeps all words.
    dtype : str
        Of the vectors.
    seed : int
        Of the initial vectors, the kept words, the windows and the negatives.
    """
    chances = _chances(_counts(fl.data.as_source(source)), subsample)
    words = len(chances.kept)
    start = fl.init.uniform(-0.5 / dimensions, 0.5 / dimensions, seed=seed)
    inner = fl.sparse_table("inner", dimensions, start, dtype, rows=words)
    outer = fl.sparse_table("outer", dimensions, dtype=dtype, rows=words)
    batch = fl.load(source, batch_size=batch_size)
    drawing = partial(_drawn, chances, window, drawn)
    centre, other, pairs = fl.map(drawing, batch, fl.here(seed), outputs=3, name="pairs")
    loss = fl.value_and_grad(partial(_loss_and_gradients, negatives))
    vectors = inner.async_().at(centre), outer.async_().at(other)
    to_inner, to_outer = fl.gradient(loss, vectors, pairs)
    rule = fl.adagrad(lr)
    sinks = [
        fl.update(inner.at(centre), to_inner, rule),
        fl.update(outer.at(other), to_outer, rule),
    ]
    if test is not None:
        sinks.append(fl.evaluate(_similarity, inner, test, every="1 epoch", name="test"))
    return fl.Graph(*sinks, name="skip_gram")


@dataclass(frozen=True)
class _Chances:
    """Of the words of a vocabulary, each shape (words,), float64."""

    kept: Array
    """The probability that an occurrence is kept."""
    noise: Array
    """Cumulative probabilities of being drawn as a negative."""


def _counts(source: fl.data.Source) -> Array:
    """Return how often each word occurs, shape (words,)."""
    total = np.zeros(0, np.int64)
    for partition in source.partitions():
        words = _words(partition.read().columns[0])
        counts = np.bincount(words[words >= 0])
        longer = np.zeros(max(len(total), len(counts)), np.int64)
        longer[: len(total)] += total
        longer[: len(counts)] += counts
        total = longer
    if not total.any():
        raise ValueError("skip_gram: the source must hold words, got none >= 0.")
    return total


def _words(X: Any) -> Array:
    if not isinstance(X, np.ndarray) or X.dtype.kind not in "iu" or X.ndim != 2:
        got = f"{X.dtype}, shape {X.shape}"
        raise TypeError(
            f"skip_gram: words must be integers of shape (n, length), got {got}. Number the words "
            "and cut the text in rows."
        )
    return X


def _chances(counts: Array, subsample: float) -> _Chances:
    frequency = np.maximum(counts, 1) / counts.sum()
    kept = np.sqrt(subsample / frequency) if subsample else np.ones(len(counts))
    noise = np.cumsum(counts**0.75)
    return _Chances(np.minimum(kept, 1.0), noise / noise[-1])


def _drawn(
    chances: _Chances, window: int, drawn: int, batch: Any, here: Any
) -> tuple[Array, Array, dict[str, Array]]:
    """Return the words of a batch that are kept, the same and negatives, and who is with whom.

    Returns
    -------
    centre : ndarray, shape (kept,)
        Row after row.
    other : ndarray, shape (kept + rows * drawn,)
    pairs : dict
        ``there``, of bool, shape (rows, length): where a word stands, at the left of its row.
        ``pairs``, of bool, shape (rows, length, length): of a centre and its context.
    """
    rng = here.rng()
    words = _words(batch[0] if isinstance(batch, tuple) else batch)
    keep = (words >= 0) & (rng.random(words.shape) < chances.kept[np.maximum(words, 0)])
    reach = rng.integers(1, window + 1, words.shape)
    noise = np.searchsorted(chances.noise, rng.random((len(words), drawn)), side="right")
    lengths = keep.sum(1)
    places = np.arange(lengths.max())
    there = places < lengths[:, None]
    near = np.zeros(there.shape, np.int64)
    near[there] = reach[keep]
    apart = np.abs(places[:, None] - places)
    pairs = (apart > 0) & (apart <= near[:, :, None]) & there[:, None, :]
    kept = words[keep]
    return kept, np.concatenate([kept, noise.ravel()]), {"there": there, "pairs": pairs}


def _odds(scores: Array) -> Array:
    scores = np.clip(scores, -LARGEST, LARGEST, out=scores)
    np.exp(np.negative(scores, out=scores), out=scores)
    scores += 1
    return np.reciprocal(scores, out=scores)


def _loss_and_gradients(
    negatives: int, vectors: tuple[Array, Array], terms: dict[str, Array]
) -> tuple[float, tuple[Array, Array]]:
    """Return the mean loss of a pair, and gradients of the sum over pairs, word by word."""
    (centre, other), there, pairs = vectors, terms["there"], terms["pairs"]
    rows, kept = len(there), len(centre)
    centres, contexts = (np.zeros((*there.shape, centre.shape[1]), centre.dtype) for _ in "ab")
    centres[there], contexts[there] = centre, other[:kept]
    noise = other[kept:].reshape(rows, -1, centre.shape[1])
    hits = _odds(centres @ contexts.swapaxes(1, 2))
    false = _odds(centres @ noise.swapaxes(1, 2))
    each = pairs.sum(2, dtype=centre.dtype) * centre.dtype.type(negatives / noise.shape[1])
    loss = -np.log(hits[pairs]).sum() - (np.log1p(-false) * each[:, :, None]).sum()
    hits -= 1
    hits *= pairs
    false *= each[:, :, None]
    to_centres = hits @ contexts + false @ noise
    to_contexts, to_noise = (slope.swapaxes(1, 2) @ centres for slope in (hits, false))
    to_other = np.concatenate([to_contexts[there], to_noise.reshape(-1, centre.shape[1])])
    return float(loss) / max(int(pairs.sum()), 1), (to_centres[there], to_other)


def _similarity(inner: fl.KeyedRows, batch: Any) -> dict[str, float]:
    pairs, wanted = batch[0], batch[1]
    one, two = inner.at(pairs[:, 0]), inner.at(pairs[:, 1])
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    ranks = _ranks((one * two).sum(1) / lengths), _ranks(wanted)
    return {"spearman": float(np.corrcoef(*ranks)[0, 1])}


def _ranks(values: Array) -> Array:
    """Return ranks; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[place])
