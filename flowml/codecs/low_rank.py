"""A matrix as the product of two thin ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import numpy.typing as npt

from flowml.codecs.checks import refusal, spelling
from flowml.codecs.contract import Payload, State
from flowml.codecs.residual import first_residual, next_residual, with_residual
from flowml.types import Array


@dataclass(frozen=True)
class LowRank:
    """A matrix as the product of two thin ones, by one step of power iteration.

    Attributes
    ----------
    rank : int
        Columns of the thin matrices, >= 1.
    feedback : bool

    Notes
    -----
    An array of more than two dimensions is taken as a matrix (first, all others). With m rows and
    n columns the payload is ``(P, Q)``, of shapes (m, rank) and (n, rank) in the dtype of the
    values, and is decoded as ``P @ Q.T``. A vector, and a matrix with ``rank * (m + n) >= m * n``,
    goes as it is, as one array; its residual is 0.

    The last array of the state is where the next step starts: an orthonormal basis of the columns
    of the last Q, at first of random ones. That spans what Q spans, so P is the same; but the
    products of small gradients with Q itself would underflow. Zeros leave it where it was.

    If an entry is not finite, or a product of large ones is not, P and Q are NaN throughout.

    References
    ----------
    Vogels et al., "PowerSGD: Practical Low-Rank Gradient Compression for Distributed
    Optimization", NeurIPS 2019, algorithm 1, and the residual of algorithm 2. There P and Q are
    averaged over the replicas by an all-reduce between the products, so that all use one P and one
    Q, of the mean gradient. Here each contribution is compressed on its own edge, with a start of
    its own, and what is decoded is averaged: the mean may have a higher rank, each contribution
    costs ``rank * (m + n)`` on the way to it, and nothing is summed in compressed form. The
    momentum of algorithm 2 is the rule's. Orthogonalised by Householder QR, not by Gram-Schmidt,
    which needs a small constant against zero columns.
    """

    rank: int
    feedback: bool = True

    def __str__(self) -> str:
        return spelling("low_rank", self.rank, feedback=self.feedback, usual=True)

    def init(self, shape: tuple[int, ...], dtype: npt.DTypeLike, seed: int) -> State:
        """Return the residual, if there is one, and for a matrix a random start from the seed."""
        kept = first_residual(self, shape, dtype)
        if goes_whole(shape, self.rank):
            return kept
        generator = np.random.Generator(np.random.Philox(key=seed))
        start = generator.standard_normal((math.prod(shape[1:]), self.rank))
        return (*kept, orthonormal(start).astype(dtype))

    def encode(self, values: Array, state: State) -> tuple[Payload, State]:
        """Return the two thin matrices, or the whole array, and the residual with the start."""
        total = with_residual(self, values, state)
        if goes_whole(total.shape, self.rank):
            whole = (total.flatten(),)
            return whole, next_residual(self, total, whole)
        # BLAS may add in another order where the entries lie otherwise in memory
        matrix = np.ascontiguousarray(total).reshape(total.shape[0], -1)
        payload, start = power_step(matrix, state[-1])
        return payload, (*next_residual(self, total, payload), start)

    def decode(self, payload: Payload, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Return the product of the two thin matrices, or the whole array."""
        if goes_whole(shape, self.rank):
            return payload[0].astype(dtype).reshape(shape)
        left, right = payload
        if left.shape != (shape[0], self.rank) or right.shape[1:] != (self.rank,):
            raise ValueError(f"no thin matrices of {shape}: {left.shape} and {right.shape}")
        with np.errstate(over="ignore"):
            product: Array = left @ right.T
        return product.astype(dtype, copy=False).reshape(shape)


def low_rank(rank: int, *, feedback: bool = True) -> LowRank:
    """Send a matrix as two thin ones with ``rank`` columns each; see `LowRank`."""
    if not isinstance(rank, Integral) or isinstance(rank, bool) or rank < 1:
        raise refusal("low_rank(rank) needs an integer >= 1", rank, "4")
    return LowRank(rank, feedback)


def goes_whole(shape: tuple[int, ...], rank: int) -> bool:
    """Tell whether two thin matrices would have no fewer entries than the array.

    Examples
    --------
    >>> goes_whole((784, 10), 4), goes_whole((10,), 1), goes_whole((4, 4), 2)
    (False, True, True)
    """
    if len(shape) < 2:
        return True
    rows, columns = shape[0], math.prod(shape[1:])
    return rank * (rows + columns) >= rows * columns


def power_step(matrix: Array, start: Array) -> tuple[Payload, Array]:
    """Return ``(P, Q)`` with ``P @ Q.T`` near the matrix, and the start of the next step.

    Parameters
    ----------
    matrix : ndarray, shape (m, n)
    start : ndarray, shape (n, rank)
        Columns that P begins from, as ``matrix @ start``.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        left = matrix @ start
        if np.isfinite(left).all():
            left = orthonormal(left)
        right = matrix.T @ left
    if not np.isfinite(right).all():
        return (np.full_like(left, np.nan), np.full_like(right, np.nan)), start.copy()
    return (left, right), orthonormal(right) if right.any() else start.copy()


def orthonormal(columns: Array) -> Array:
    """Return as many orthonormal columns, spanning the same; where these are dependent, more."""
    with np.errstate(over="ignore"):  # the other factor, which is dropped, may be too large
        return np.asarray(np.linalg.qr(columns).Q)
