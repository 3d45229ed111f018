"""How an aggregate combines contributions, the same bits whoever does it.

Every reduction here is elementwise over flat slices, so that any rank may reduce any slice. Sums
are taken along a tree that is part of the plan (semantics.md, section 4): each contribution is
scaled by its weight, added along the tree in the dtype of the slices, and divided once.

A contribution without weight is left out of the arithmetic (0 x NaN is NaN): its leaf vanishes
from the tree, and a node with one child left is that child. A host may therefore replace a subtree
whose ranks are all its own by one *partial*, and the result keeps its bits. What an array is, its
key says:

- an ``int`` is a rank: its contribution as made, not scaled;
- a ``(left, right)`` pair is a subtree: its partial, the sum of contributions scaled already.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from flowml.errors import GraphError
from flowml.schedules import count
from flowml.types import Array

Tree: TypeAlias = "int | tuple[Tree, Tree]"
"""A rank, or the pair of two trees that are added."""

Scratch: TypeAlias = Callable[[], Array]
"""Gives an array like ``out`` at each call, another one each time during one reduction."""


@dataclass(frozen=True)
class Reduction:
    """A way to combine the contributions of several ranks into one value.

    Attributes
    ----------
    name : str
    tree : bool
        True: a sum along the plan's tree, so partial sums may be formed on the way.
    divide : bool
        True: the sum is divided by the sum of the weights. The values must be floats.
    weighted : bool
        True: each contribution is scaled by its weight. False: a weight other than 0 only says that
        the contribution counts. An aggregate whose ``weight=`` is a handle uses
        ``dataclasses.replace(reduction, weighted=True)``.
    combine : callable, optional
        ``combine(slices, weights, out)`` when not ``tree``: elementwise over equally long slices,
        in the order of ranks, and the same bits for any slicing.
    """

    name: str
    tree: bool
    divide: bool
    weighted: bool
    combine: Callable[[Sequence[Array], Sequence[float], Array], None] | None = None

    def __post_init__(self) -> None:
        if self.tree == (self.combine is not None):
            required = "needs combine where tree is False, and only there"
            raise GraphError(f"Reduction({self.name!r})", required)

    @property
    def floats(self) -> bool:
        """Whether the values must be floats: all but a plain sum divide or scale."""
        return self.divide or self.weighted or not self.tree


@dataclass(frozen=True)
class TrimmedMean:
    """See `trimmed_mean`; ``keep`` is None for the middle alone (the median)."""

    name: str
    trim: int | None

    def __call__(self, slices: Sequence[Array], weights: Sequence[float], out: Array) -> None:
        """Write the mean of what remains of each coordinate into ``out``."""
        n = len(slices)
        trim = (n - 1) // 2 if self.trim is None else self.trim
        if n <= 2 * trim:
            fix = "Lower f, use more replicas, or use 'median'."
            required = f"needs more than {2 * trim} contributions"
            raise GraphError(f"aggregate({self.name})", required, str(n), fix)
        kept = np.sort(np.stack(slices), axis=0)[trim : n - trim]
        # A loop, since the order in which NumPy sums along an axis depends on the width.
        out[...] = kept[0]
        for row in kept[1:]:
            out += row
        out /= out.dtype.type(len(kept))


mean = Reduction("mean", tree=True, divide=True, weighted=True)
"""The mean, weighted by numbers of examples."""

sum_ = Reduction("sum", tree=True, divide=False, weighted=False)
"""The sum; integers stay integers."""

median = Reduction("median", False, False, False, TrimmedMean("'median'", None))
"""The median of each coordinate, of every contribution alike (Yin et al., ICML 2018, definition 1).

NaN sorts as the largest value, so a minority of broken replicas does not spoil it.
"""

NAMED = {"mean": mean, "sum": sum_, "median": median}


def trimmed_mean(f: int) -> Reduction:
    """Return the mean of each coordinate without its ``f`` largest and ``f`` smallest values.

    Parameters
    ----------
    f : int
        How many contributions may be arbitrarily wrong, >= 0; more than ``2 * f`` are needed.

    Notes
    -----
    Contributions weigh the same whatever their number of examples: a weight is a claim that a
    broken replica could make too. NaN sorts as the largest value.

    References
    ----------
    Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML
    2018, definition 2; there a fraction is trimmed, here a count.
    """
    name = f"trimmed_mean({count('fl.trimmed_mean', 'f', f, low=0)})"
    return Reduction(name, False, False, False, TrimmedMean(name, int(f)))


def reduction(how: str | Reduction) -> Reduction:
    """Return a reduction by its name.

    Raises
    ------
    GraphError
        If there is none of that name; the message has the closest one.

    Examples
    --------
    >>> reduction("sum").divide
    False
    """
    if isinstance(how, Reduction):
        return how
    found = NAMED.get(how) if isinstance(how, str) else None
    if found is None:
        near = difflib.get_close_matches(str(how), [*NAMED, "trimmed_mean"], n=1)
        spelled = ["fl.trimmed_mean(f=1)" if n == "trimmed_mean" else repr(n) for n in near]
        raise GraphError(
            "fl.aggregate",
            "how must be 'mean', 'sum', 'median', fl.trimmed_mean(f) or a Reduction",
            repr(how),
            f"Did you mean {spelled[0]}?" if spelled else "",
        )
    return found


def sum_tree(ranks: Sequence[int]) -> Tree:
    """Return the balanced tree over ranks, split at the largest power of two below their number.

    Raises
    ------
    ValueError
        If there are no ranks.

    Examples
    --------
    >>> sum_tree(range(5))
    (((0, 1), (2, 3)), 4)
    """
    if not ranks:
        raise ValueError("a summation tree needs at least one rank, got none")
    if len(ranks) == 1:
        return ranks[0]
    left = 1 << ((len(ranks) - 1).bit_length() - 1)
    return sum_tree(ranks[:left]), sum_tree(ranks[left:])


def maximal_subtrees(tree: Tree, owned: set[int]) -> tuple[Tree, ...]:
    """Return the largest subtrees whose ranks are all owned, from left to right.

    Examples
    --------
    >>> maximal_subtrees((((0, 1), (2, 3)), 4), {0, 2, 3, 4})
    (0, (2, 3), 4)
    """
    if not isinstance(tree, tuple):
        return (tree,) if tree in owned else ()
    left, right = (maximal_subtrees(child, owned) for child in tree)
    return (tree,) if (left, right) == ((tree[0],), (tree[1],)) else left + right


def leaves(tree: Tree) -> list[int]:
    """Return the ranks of a tree from left to right."""
    return leaves(tree[0]) + leaves(tree[1]) if isinstance(tree, tuple) else [tree]


def reduce_slices(
    reduction: Reduction,
    tree: Tree,
    slices: Mapping[Any, Array],
    weights: Mapping[Any, float] | None,
    out: Array,
    scratch: Scratch | None = None,
) -> float:
    """Combine one slice of every contribution into ``out``.

    Parameters
    ----------
    reduction : Reduction
    tree : Tree
        Of the ranks; a plain rank when there is one.
    slices : mapping of rank or subtree to ndarray, shape (n,)
        Contributions by rank, or partials by subtree (see the module's header); one dtype.
    weights : mapping of rank or subtree to float, optional
        Finite and >= 0; 0 or missing leaves a contribution out. None gives each rank's 1.
    out : ndarray, shape (n,)
        Of the slices' dtype; shares no memory with them. Untouched when the total is 0.
    scratch : callable, optional
        Called at most once for each level of the tree; a new array by default.

    Returns
    -------
    float
        Sum of the weights, added along the tree; 0.0 if nothing was written.

    Raises
    ------
    ValueError
        If a weight is negative or not finite, or a weight has no slice.
    GraphError
        If the values are not floats and the reduction needs floats.
    """
    weighed = _checked(reduction, slices, weights, out)
    scale = shared_scale(reduction, weighed)
    given = _Given(slices, weighed, reduction.weighted, scratch, scale)
    if not reduction.tree:
        return _combine(reduction, tree, given, out)
    total = _sum_into(out, tree, given)
    divisor = total / scale
    if reduction.divide and divisor not in (0.0, 1.0):
        np.divide(out, out.dtype.type(divisor), out=out)
    return total


def shared_scale(reduction: Reduction, weights: Mapping[Any, float]) -> float:
    """Return a power of two that all contributions to a mean weigh, or 1.0.

    Notes
    -----
    Scaling by a power of two is exact, so ``(a n + b n) / 2 n`` has the bits of ``(a + b) / 2``
    then, for one pass less over each contribution; batches of 32 or 256 examples are such. They
    part only where ``a n`` overflows. A partial sum is scaled already, by whoever made it.

    Examples
    --------
    >>> shared_scale(mean, {0: 32.0, 1: 32.0}), shared_scale(mean, {0: 32.0, 1: 31.0})
    (32.0, 1.0)
    """
    if not (reduction.weighted and reduction.divide):
        return 1.0
    scale = 0.0
    for key, weight in weights.items():
        if isinstance(key, tuple) or (weight and scale and weight != scale):
            return 1.0
        scale = weight or scale
    return scale if math.frexp(scale)[0] == 0.5 else 1.0


def partial(
    reduction: Reduction,
    subtree: Tree,
    slices: Mapping[Any, Array],
    weights: Mapping[Any, float] | None,
    out: Array,
    scratch: Scratch | None = None,
) -> float:
    """Sum the contributions of one subtree into ``out``, scaled by their weights and not divided.

    Give the result to `reduce_slices` under the key ``subtree``, with the weight returned here. A
    subtree that is one rank is copied as it is, since its key says that it is not scaled yet.

    Returns
    -------
    float
        Sum of the weights in the subtree; 0.0 if nothing was written.

    Raises
    ------
    ValueError
        As `reduce_slices`, and if the reduction is not a sum along a tree.
    """
    if not reduction.tree:
        raise ValueError(f"{reduction.name} has no partial sums: send every contribution itself")
    scaled = reduction.weighted and isinstance(subtree, tuple)
    given = _Given(slices, _checked(reduction, slices, weights, out), scaled, scratch)
    return _sum_into(out, subtree, given)


@dataclass(frozen=True)
class _Given:
    """What a walk along the tree reads; ``spares`` are its temporaries, one a level."""

    slices: Mapping[Any, Array]
    weights: Mapping[Any, float]
    scaled: bool
    scratch: Scratch | None
    scale: float = 1.0
    """Contributions of this weight are added as they are."""
    spares: list[Array] = field(default_factory=list)

    def leaf(self, rank: int, weight: float) -> Array:
        try:
            return self.slices[rank]
        except KeyError:
            raise ValueError(f"rank {rank} has weight {weight:g} but no contribution") from None

    def spare(self, level: int, out: Array) -> Array:
        if level == len(self.spares):
            self.spares.append(np.empty_like(out) if self.scratch is None else self.scratch())
        return self.spares[level]


def _sum_into(out: Array, tree: Tree, given: _Given) -> float:
    found, total = _sum(tree, given, out, 0)
    if found is not None and found is not out:
        np.copyto(out, found)
    return total


def _sum(tree: Tree, given: _Given, out: Array, level: int) -> tuple[Array | None, float]:
    """Return the scaled sum of a tree, in ``out`` or where it lies already, and its weight."""
    if not isinstance(tree, tuple):
        weight = given.weights.get(tree, 0.0)
        if not weight:
            return None, 0.0
        leaf = given.leaf(tree, weight)
        if not given.scaled or weight == given.scale:
            return leaf, weight
        return np.multiply(leaf, out.dtype.type(weight), out=out), weight
    if tree in given.slices:
        weight = given.weights.get(tree, 0.0)
        return (given.slices[tree], weight) if weight else (None, 0.0)
    left, left_weight = _sum(tree[0], given, out, level)
    if left is None:
        return _sum(tree[1], given, out, level)
    right, right_weight = _sum(tree[1], given, given.spare(level, out), level + 1)
    if right is None:
        return left, left_weight
    return np.add(left, right, out=out), left_weight + right_weight


def _combine(reduction: Reduction, tree: Tree, given: _Given, out: Array) -> float:
    ranks = [rank for rank in leaves(tree) if given.weights.get(rank, 0.0)]
    if not ranks or reduction.combine is None:
        return 0.0
    weights = [given.weights[rank] for rank in ranks]
    reduction.combine([given.leaf(rank, given.weights[rank]) for rank in ranks], weights, out)
    return sum(weights)


def _checked(
    reduction: Reduction,
    slices: Mapping[Any, Array],
    weights: Mapping[Any, float] | None,
    out: Array,
) -> Mapping[Any, float]:
    """Return the weights, or say what is wrong with them or with the dtype."""
    kind = out.dtype.kind
    if kind not in "fc" and (reduction.floats or kind not in "iu"):
        fix = "Cast them to float in the operator."
        raise GraphError(
            f"aggregate({reduction.name!r})", "values must be floats", str(out.dtype), fix
        )
    if weights is None:
        return dict.fromkeys(slices, 1.0)
    for key, weight in weights.items():
        if not 0.0 <= weight < math.inf:
            raise ValueError(f"weight of {key} must be finite and >= 0, got {weight}")
    if out.dtype.itemsize == 2 and (reduction.weighted or reduction.divide):
        _check_half(reduction, sum(weights.values()), out)
    return weights


def _check_half(reduction: Reduction, total: float, out: Array) -> None:
    # Numbers of examples soon exceed the largest float16, 65504; nothing else is that narrow.
    if total > float(np.finfo(out.dtype).max):
        where, required = (
            f"aggregate({reduction.name!r})",
            f"sum of the weights must fit {out.dtype}",
        )
        raise GraphError(where, required, f"{total:g}", "Use float32, or weight='equal'.")
