"""A sum along the plan's tree as straight-line code, for the usual case: everyone contributes.

:func:`flowml.reductions.reduce_slices` walks the tree anew in every step, because a contribution
may be missing. When none is, the same operations in the same order can be laid out once, and kept
as long as the weights stay what they are: most steps have batches of one size. A test holds the two
to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from flowml.reductions import Reduction, Tree, shared_scale
from flowml.types import Array

Operation: TypeAlias = tuple[Callable[[Any, Any, Array], Any], Any, Any, Array]
"""(function, left, right, where the result goes)."""


class StraightSum:
    """Combines fixed slices into ``out`` when no weight is 0.

    Parameters
    ----------
    reduction : Reduction
        One with a tree.
    slices : mapping of rank to ndarray, shape (n,)
        The same arrays in every step.
    out : ndarray, shape (n,)
    """

    def __init__(
        self, reduction: Reduction, tree: Tree, slices: Mapping[Any, Array], out: Array
    ) -> None:
        self._reduction = reduction
        self._tree = tree
        self._slices = slices
        self._out = out
        self._spares: list[Array] = []
        self._weights: Sequence[float] = []
        self._operations: list[Operation] = []

    def __call__(self, weights: Sequence[float]) -> None:
        """Combine the slices by weights, given in the order of ``slices``."""
        if weights != self._weights:
            self._lay_out(weights)
        for function, left, right, out in self._operations:
            function(left, right, out)

    def _lay_out(self, weights: Sequence[float]) -> None:
        by_rank = dict(zip(self._slices, weights, strict=True))
        operations: list[Operation] = []
        scale = shared_scale(self._reduction, by_rank)
        found, total = self._sum(self._tree, by_rank, scale, self._out, 0, operations)
        if found is not self._out:
            operations.append((_copy, found, None, self._out))
        divisor = total / scale
        if self._reduction.divide and divisor != 1.0:
            operations.append((np.divide, self._out, self._out.dtype.type(divisor), self._out))
        self._weights, self._operations = list(weights), operations

    def _sum(
        self,
        tree: Tree,
        weights: Mapping[Any, float],
        scale: float,
        out: Array,
        level: int,
        operations: list[Operation],
    ) -> tuple[Array, float]:
        """Append what makes the sum of a tree; return where it will lie, and its weight."""
        if not isinstance(tree, tuple):
            array, weight = self._slices[tree], weights[tree]
            if not self._reduction.weighted or weight == scale:
                return array, weight
            operations.append((np.multiply, array, out.dtype.type(weight), out))
            return out, weight
        if level == len(self._spares):
            self._spares.append(np.empty_like(out))
        spare = self._spares[level]
        left, one = self._sum(tree[0], weights, scale, out, level, operations)
        right, other = self._sum(tree[1], weights, scale, spare, level + 1, operations)
        operations.append((np.add, left, right, out))
        return out, one + other


def _copy(source: Array, _: None, target: Array) -> None:
    target[...] = source
