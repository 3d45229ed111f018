"""Matrix factorisation by strata: blocks of columns go round, and no two replicas share a factor.

Gemulla, Nijkamp, Haas and Sismanis, "Large-Scale Matrix Factorization with Distributed Stochastic
Gradient Descent", KDD 2011, algorithm 2. Rows and columns are cut in as many blocks as there are
replicas. In step c replica k takes the ratings of its rows in the column block (k + c) mod K; these
blocks are interchangeable (their definition 2): none has a row or column in common with another,
so replicas work on parts of one model at once, and the result is that of one loop after the other.

How we differ: they draw the sequence of strata; here blocks rotate. Inside a block they take the
ratings one by one, at random; here diagonals of the block come in a random order, and the ratings
of a diagonal, which again share no row or column, are one array operation. The rate is a schedule,
not their bold driver. Row and column factors are rows of one table, so that both
travel where replicas are on several hosts; there row factors stay where they are.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

import flowml as fl

Array = npt.NDArray[Any]


def build(
    source: Any,
    *,
    test: Any = None,
    lr: float | fl.schedules.Schedule = 0.05,
    l2: float = 0.02,
    rank: int = 16,
    scale: float = 0.1,
    blocks: int = 64,
    dtype: str = "float32",
    seed: int = 0,
) -> fl.Graph:
    """Return the graph; its table is ``factors``: row i of the matrix has the key i.

    Column j has the key ``rows + j``, with as many rows as the source has. One step is a stratum,
    and K steps see each rating once.

    Parameters
    ----------
    source : source
        ``(X, y)``: X of integers, shape (n, 2), row and column of a rating, and y the ratings. It
        is read once, to give the ratings of one row to one replica.
    test : source, optional
        Other ratings of these rows and columns, evaluated after each step: ``rmse``, the root of
        the mean squared error of a block of 4,096 ratings, averaged.
    lr : float or schedule
        Of the step.
    l2 : float
        The loss of a rating is half its squared error plus ``l2 / 2`` times the squares of both of
        its factors.
    rank : int
        Length of a factor.
    scale : float
        Standard deviation of the initial factors.
    blocks : int
        Parts that rows are dealt in, and so at most that many replicas have work.
    dtype : str
        Of the factors.
    seed : int
        Of the initial factors, and of the order of diagonals.
    """
    cells, ratings = _read(fl.data.as_source(source))
    rows, columns = (cells.max(0) + 1).tolist()
    parts = [cells[:, 0] % blocks == part for part in range(min(blocks, rows))]
    share = fl.load(fl.data.parts([(cells[p], ratings[p]) for p in parts]), batch_size=None)
    start = fl.init.normal(scale, seed=seed)
    factors = fl.sparse_table("factors", rank, start, dtype, rows=rows + columns)
    keys, stratum = fl.map(partial(_stratum, rows), share, fl.here(seed), outputs=2, name="stratum")
    sweep = fl.value_and_grad(partial(_sweep, lr, l2))
    gone = fl.gradient(sweep, factors.at(keys), stratum)
    sinks = [fl.update(factors.at(keys), gone, fl.add(-1.0))]
    if test is not None:
        evaluated = partial(_evaluated, rows)
        sinks.append(fl.evaluate(evaluated, factors, test, every="1 epoch", name="test"))
    return fl.Graph(*sinks, name="rotated_mf")


def _read(source: fl.data.Source) -> tuple[Array, Array]:
    held = [partition.read().columns for partition in source.partitions()]
    cells = np.concatenate([columns[0] for columns in held])
    if cells.ndim != 2 or cells.shape[1] != 2 or cells.dtype.kind not in "iu" or cells.min() < 0:
        got = f"{cells.dtype}, shape {cells.shape}"
        raise TypeError(
            f"rotated_mf: X must be integers >= 0 of shape (n, 2), a row and a column, got {got}. "
            "Number rows and columns from 0."
        )
    return cells, np.concatenate([columns[1] for columns in held])


def _stratum(rows: int, share: Any, here: Any) -> tuple[Array, dict[str, Any]]:
    """Return the keys of a replica's block of ratings, and its ratings, diagonal by diagonal.

    Returns
    -------
    keys : ndarray of int64, shape (factors,)
    stratum : dict
        ``row`` and ``column``: places in keys; ``rating``; ``ends`` of the diagonals; ``clock``.
    """
    cells, ratings = share[0], share[1]
    mine = cells[:, 1] % here.replicas == (here.replica + here.clock) % here.replicas
    row_keys, row = np.unique(cells[mine, 0], return_inverse=True)
    column_keys, column = np.unique(cells[mine, 1], return_inverse=True)
    side = max(len(row_keys), len(column_keys), 1)
    diagonal = here.rng().permutation(side)[(column - row) % side]
    order = np.argsort(diagonal, kind="stable")
    ends = np.cumsum(np.bincount(diagonal, minlength=side))
    return np.concatenate([row_keys, rows + column_keys]).astype(np.int64), {
        "row": row[order],
        "column": len(row_keys) + column[order],
        "rating": ratings[mine][order],
        "ends": ends,
        "clock": here.clock,
    }


def _sweep(
    lr: float | fl.schedules.Schedule, l2: float, factors: Array, stratum: dict[str, Any]
) -> tuple[float, Array]:
    """Return half the mean squared error met on the way, and what the factors have lost by it."""
    rate = lr(stratum["clock"]) if callable(lr) else lr
    moved, rating = factors.copy(), stratum["rating"].astype(factors.dtype, copy=False)
    step, decay = factors.dtype.type(rate), factors.dtype.type(l2)
    begin, squares = 0, 0.0
    for end in stratum["ends"].tolist():
        row, column = stratum["row"][begin:end], stratum["column"][begin:end]
        w, h = moved[row], moved[column]
        error = (w * h).sum(1) - rating[begin:end]
        moved[row] = w - step * (error[:, None] * h + decay * w)
        moved[column] = h - step * (error[:, None] * w + decay * h)
        squares += float(np.square(error).sum())
        begin = end
    return squares / 2 / max(len(rating), 1), factors - moved


def _evaluated(rows: int, factors: fl.KeyedRows, batch: Any) -> dict[str, float]:
    cells, ratings = batch[0], batch[1]
    found = (factors.at(cells[:, 0]) * factors.at(rows + cells[:, 1])).sum(1)
    return {"rmse": float(np.sqrt(np.mean(np.square(found - ratings))))}
