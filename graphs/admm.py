"""Consensus ADMM for least squares, ridge and lasso: exact local solves that agree on one vector.

Boyd, Parikh, Chu, Peleato and Eckstein, "Distributed Optimization and Statistical Learning via the
Alternating Direction Method of Multipliers", 2011, section 7.1.1 in scaled form, with the local
step of section 8.2 (splitting across examples). It minimises

    |X z - y|^2 / 2 + l1 * |z|_1 + l2 / 2 * |z|^2,

a sum over the examples as there, not a mean. The local system is factored anew in each step, where
they keep the factor. It ends when both residuals of section 3.3, as root mean squares of their
items, are at most ``tol``; they compare norms with an absolute and a relative tolerance.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

import flowml as fl

Vector = npt.NDArray[np.float64]


def build(
    source: Any,
    *,
    test: Any = None,
    rho: float = 1.0,
    l1: float = 0.0,
    l2: float = 0.0,
    tol: float = 1e-8,
) -> fl.Graph:
    """Return the graph; tables: ``z``, shape (features,), and a replica's ``x`` and ``u``, float64.

    Parameters
    ----------
    source : source
        ``(X, y)`` or ``(X, y, weight)``, X dense or CSR. There is no intercept.
    test : source, optional
        Evaluated after each step, which is an epoch: ``loss``, half the mean squared error of z.
    rho : float
        > 0; changes the path and not the optimum. About the size of the smaller eigenvalues of a
        share's ``X.T @ X`` is quick.
    l1, l2 : float
        Penalties, >= 0.
    tol : float
        Ends the run when both residuals are as small.
    """
    source = fl.data.as_source(source)
    zeros = np.zeros(source.partitions()[0].read().columns[0].shape[1])
    z = fl.table("z", zeros)
    x, u = fl.table("x", zeros, scope="replica"), fl.table("u", zeros, scope="replica")
    share = fl.load(source, batch_size=None)
    solved = fl.map(partial(_solve, rho), z, u, share, name="solve")
    total = fl.aggregate("sum", fl.map(_vote, solved, u))
    agreed = fl.assign(z, fl.map(partial(_shrink, rho, l1, l2), total, name="shrink"))
    dual = fl.assign(u, fl.map(lambda u, x, z: u + x - z, u, solved, agreed, name="dual"))
    apart = fl.map(lambda x, z: np.mean(np.square(x - z)), solved, agreed, name="apart")
    primal = fl.aggregate("mean", apart, weight="equal", name="primal")
    residual = fl.map(partial(_residual, rho), primal, z, agreed, name="residual")
    ends = fl.until(lambda largest: largest <= tol, residual)
    sinks = [fl.assign(x, solved), agreed, dual, ends]
    if test is not None:
        sinks.append(fl.evaluate(_loss, z, test, every="1 epoch", name="test"))
    return fl.Graph(*sinks, name="admm")


def _solve(rho: float, z: Vector, u: Vector, batch: Any) -> Vector:
    """Minimise ``|X x - y|^2 / 2 + rho / 2 * |x - z + u|^2`` over x."""
    X, y = batch[0].astype(np.float64, copy=False), batch[1]
    left = X.T * batch[2] if len(batch) > 2 else X.T
    gram = left @ X
    gram = gram.toarray() if hasattr(gram, "toarray") else gram
    return np.linalg.solve(gram + rho * np.eye(len(z)), left @ y + rho * (z - u))


def _vote(x: Vector, u: Vector) -> dict[str, Any]:
    return {"sum": x + u, "members": 1.0}


def _shrink(rho: float, l1: float, l2: float, total: dict[str, Any]) -> Vector:
    """Minimise the penalties plus ``members * rho / 2 * |z - mean|^2`` over z."""
    mean, weight = total["sum"] / total["members"], rho * total["members"]
    soft = np.sign(mean) * np.maximum(np.abs(mean) - l1 / weight, 0)
    return np.asarray(soft / (1 + l2 / weight))


def _residual(rho: float, primal: float, old: Vector, new: Vector) -> float:
    moved = rho**2 * float(np.mean(np.square(new - old)))
    return float(np.sqrt(max(float(primal), moved)))


def _loss(z: Vector, batch: Any) -> dict[str, float]:
    return {"loss": 0.5 * float(np.mean(np.square(batch[0] @ z - batch[1])))}
