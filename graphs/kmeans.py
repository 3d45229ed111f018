"""k-means by iterative map-reduce: sums and counts of each cluster, then the mean.

Lloyd, "Least squares quantization in PCM", IEEE Transactions on Information Theory, 1982, method I;
over replicas as in Dhillon and Modha, "A Data-Clustering Algorithm on Distributed Memory
Multiprocessors", 2000: one sum over replicas a step. They leave open what an empty cluster does;
here it keeps its centre.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

import flowml as fl

Centres = npt.NDArray[np.floating[Any]]
Totals = dict[str, npt.NDArray[Any]]


def build(
    source: Any, *, test: Any = None, clusters: int = 8, tol: float = 1e-4, seed: int = 0
) -> fl.Graph:
    """Return the graph; its table is ``centres``, shape (clusters, features). An epoch is one step.

    Parameters
    ----------
    source : source
        Rows to cluster, dense or CSR. Labels and weights are left out.
    test : source, optional
        Evaluated after each step: ``distortion``, the mean squared distance to the nearest centre.
    clusters : int
        At most the number of rows of the source's first partition, which the start is drawn from.
    tol : float
        Ends the run when no centre moves further (Euclidean distance); 0 runs to a fixed point.
    seed : int
        Of the rows that the centres start from.
    """
    source = fl.data.as_source(source)
    centres = fl.table("centres", _drawn(source, clusters, seed))
    share = fl.load(source, batch_size=None)
    totals = fl.aggregate("sum", fl.map(_totals, centres, share))
    fresh = fl.assign(centres, fl.map(_means, centres, totals))
    moved = fl.map(
        lambda old, new: np.sqrt(np.square(new - old).sum(1).max()), centres, fresh, name="moved"
    )
    sinks = [fresh, fl.until(lambda distance: distance <= tol, moved)]
    if test is not None:
        sinks.append(fl.evaluate(_distortion, centres, test, every="1 epoch", name="test"))
    return fl.Graph(*sinks, name="kmeans")


def _drawn(source: fl.data.Source, clusters: int, seed: int) -> Centres:
    rows = source.partitions()[0].read().columns[0]
    if not 1 <= clusters <= rows.shape[0]:
        raise ValueError(
            f"kmeans: clusters must be from 1 to {rows.shape[0]}, the rows of the "
            f"first partition, got {clusters}. Use fewer, or larger partitions."
        )
    drawn = rows[np.random.default_rng(seed).choice(rows.shape[0], clusters, replace=False)]
    dense = drawn.toarray() if hasattr(drawn, "toarray") else drawn
    return np.asarray(dense, np.result_type(dense.dtype, np.float32))


def _scores(centres: Centres, batch: Any) -> tuple[Any, Centres]:
    """Return the rows, and for each row and centre the squared distance less the row's square."""
    rows = batch[0] if isinstance(batch, tuple) else batch
    rows = rows.astype(centres.dtype, copy=False)
    return rows, np.square(centres).sum(1) - 2 * (rows @ centres.T)


def _totals(centres: Centres, batch: Any) -> Totals:
    rows, scores = _scores(centres, batch)
    members = scores.argmin(1)[:, None] == np.arange(len(centres))
    return {"sums": members.T.astype(centres.dtype) @ rows, "counts": members.sum(0)}


def _means(centres: Centres, totals: Totals) -> Centres:
    counts = totals["counts"][:, None]
    means = totals["sums"] / np.maximum(counts, 1).astype(centres.dtype)
    return np.where(counts > 0, means, centres)


def _distortion(centres: Centres, batch: Any) -> dict[str, float]:
    rows, scores = _scores(centres, batch)
    return {"distortion": float(np.mean(scores.min(1) + (rows * rows).sum(1)))}
