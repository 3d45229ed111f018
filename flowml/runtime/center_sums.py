"""Sums of what a gate takes, of whole values and of rows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flowml.keyed_rows import KeyedRows
from flowml.layout import Layout
from flowml.protocol.promise_specs import Taken
from flowml.reductions import Reduction, Tree, reduce_slices
from flowml.runtime.contributions import Contribution
from flowml.types import Array, Pytree

MOST_TREES = 1000
"""Trees that are kept: in most runs there are as many as there are sets of replicas that meet."""
Present = Mapping[tuple[int, int], Contribution]
"""(member, stamp) -> what it brought; those that stand for something."""


class Sum:
    """The reduction of one gate, made in the same buffers again and again.

    Parameters
    ----------
    reduction : Reduction
    tree : Tree
        Of the members.
    members : int
    layout : Layout
        Of what it combines; of one row where it combines rows.
    rows : bool
    """

    def __init__(
        self, reduction: Reduction, tree: Tree, members: int, layout: Layout, *, rows: bool
    ) -> None:
        self._reduction = reduction
        self._tree = tree
        self._members = members
        self._rows = rows
        self._out = () if rows else layout.allocate()
        self._view = None if rows else layout.views(self._out, writeable=False)
        self._trees: dict[tuple[int, ...], tuple[tuple[int, ...], Tree]] = {}

    @property
    def backing(self) -> tuple[Pytree, tuple[Array, ...]]:
        """The value that ``take`` returns, where it combines no rows, and its flat buffers."""
        return self._view, self._out

    def take(self, taken: Taken, present: Present) -> Pytree:
        """Return the reduction of contributions, valid until the next call.

        Parameters
        ----------
        taken : tuple of (member, stamp)
            All that the firing takes, in the order of the sum.
        """
        numbers, tree = self._laid_out(taken)
        found = {
            leaf: present[key] for leaf, key in zip(numbers, taken, strict=True) if key in present
        }
        weights = {leaf: given.weight for leaf, given in found.items()}
        if self._rows:
            return self._take_rows(tree, found, weights)
        for number, out in enumerate(self._out):
            parts = {leaf: given.buffers[number] for leaf, given in found.items()}
            reduce_slices(self._reduction, tree, parts, weights, out)
        return self._view

    def _laid_out(self, taken: Taken) -> tuple[tuple[int, ...], Tree]:
        """Return the number of each contribution in the sum, and the tree over the numbers."""
        members = tuple([member for member, _ in taken])
        found = self._trees.get(members)
        if found is None:
            if len(self._trees) > MOST_TREES:
                self._trees.clear()
            leaves = numbered(taken, self._members)
            found = tuple(leaves.values()), grown(self._tree, leaves, self._members)
            self._trees[members] = found
        return found

    def _take_rows(
        self, tree: Tree, given: Mapping[int, Contribution], weights: Mapping[int, float]
    ) -> KeyedRows:
        """Combine rows over the union of their keys; a row that is absent counts as zeros."""
        keys = np.unique(np.concatenate([g.keys for g in given.values() if g.keys is not None]))
        parts = {leaf: _spread(g, keys) for leaf, g in given.items()}
        out: Array = np.empty_like(next(iter(parts.values())))
        flat = {leaf: part.reshape(-1) for leaf, part in parts.items()}
        reduce_slices(self._reduction, tree, flat, weights, out.reshape(-1))
        return KeyedRows(keys, out)


def _spread(given: Contribution, keys: Array) -> Array:
    (rows,) = given.buffers
    assert given.keys is not None
    found = np.zeros((len(keys), rows.shape[1]), rows.dtype)
    found[np.searchsorted(keys, given.keys)] = rows
    return found


def numbered(taken: Taken, members: int) -> dict[tuple[int, int], int]:
    """Return the number of each contribution in a sum: its member's, or a free one for a further.

    Examples
    --------
    >>> numbered(((0, 4), (1, 4), (1, 5)), 3)
    {(0, 4): 0, (1, 4): 1, (1, 5): 4}
    """
    found: dict[tuple[int, int], int] = {}
    following: dict[int, int] = {}
    for member, stamp in taken:
        found[member, stamp] = following.get(member, member)
        following[member] = found[member, stamp] + members
    return found


def grown(tree: Tree, leaves: Mapping[tuple[int, int], int], members: int) -> Tree:
    """Return the plan's tree over the members that contribute, several of one in their order.

    Notes
    -----
    A member that brings one contribution is a leaf, as in a synchronous sum; one that brings more
    is the sum of them from the first to the last.
    """
    there = set(leaves.values())

    def of(node: Tree) -> Tree | None:
        if isinstance(node, tuple):
            left, right = of(node[0]), of(node[1])
            return right if left is None else left if right is None else (left, right)
        if node not in there:
            return None
        found: Tree = node
        following = node + members
        while following in there:
            found, following = (found, following), following + members
        return found

    found = of(tree)
    assert found is not None  # a firing takes something
    return found
