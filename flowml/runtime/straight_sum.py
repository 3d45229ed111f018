"""A sum along the plan's tree as straight-line code, for the usual case: everyone contributes.

:func:`flowml.reductions.reduce_slices` walks the tree anew in every step, because a contribution
may be missing. When none is, the same additions in the same order can be laid out once. A test
holds the two to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from flowml.reductions import Reduction, Tree
from flowml.types import Array

Weights: TypeAlias = Mapping[Any, float]
_Node: TypeAlias = Callable[[Weights], tuple[Array, float]]


def straight_sum(
    reduction: Reduction, tree: Tree, slices: Mapping[Any, Array], out: Array
) -> Callable[[Weights], float]:
    """Return a function that combines fixed slices into ``out`` when no weight is 0.

    Parameters
    ----------
    reduction : Reduction
        One with a tree.
    slices : mapping of rank to ndarray, shape (n,)
        The same arrays in every step.
    out : ndarray, shape (n,)

    Returns
    -------
    callable of (weights) -> float
        Returns the sum of the weights, as ``reduce_slices`` does.
    """
    dtype = out.dtype.type
    root = _node(tree, slices, out, reduction.weighted, [], 0)
    divides = reduction.divide

    def combine(weights: Weights) -> float:
        found, total = root(weights)
        if found is not out:
            np.copyto(out, found)
        if divides and total != 1.0:
            np.divide(out, dtype(total), out=out)
        return total

    return combine


def _node(
    tree: Tree,
    slices: Mapping[Any, Array],
    out: Array,
    weighted: bool,
    spares: list[Array],
    level: int,
) -> _Node:
    if not isinstance(tree, tuple):
        return _leaf(tree, slices[tree], out, weighted)
    if level == len(spares):
        spares.append(np.empty_like(out))
    left = _node(tree[0], slices, out, weighted, spares, level)
    right = _node(tree[1], slices, spares[level], weighted, spares, level + 1)
    add = np.add

    def both(weights: Weights) -> tuple[Array, float]:
        a, weight_a = left(weights)
        b, weight_b = right(weights)
        return add(a, b, out), weight_a + weight_b

    return both


def _leaf(rank: int, array: Array, out: Array, weighted: bool) -> _Node:
    dtype, multiply = out.dtype.type, np.multiply

    def scaled(weights: Weights) -> tuple[Array, float]:
        weight = weights[rank]
        if weight == 1.0:
            return array, weight
        return multiply(array, dtype(weight), out), weight

    if weighted:
        return scaled
    return lambda weights: (array, weights[rank])
