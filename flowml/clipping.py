"""Rules over whole leaves: clipping by the global norm, and another rule for each leaf.

Both take other rules apart: they are not elementwise themselves, since a flat slice of a table
knows neither the norm of the whole nor which leaf it belongs to. The runtime therefore applies
them at one owner of the whole table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from flowml.errors import GraphError
from flowml.rules import At, Rule, State
from flowml.schedules import real
from flowml.types import Array

Leaves: TypeAlias = dict[str, Array]
"""Whole leaves by path: ``"W"``, ``"0/W"``, or ``""`` for a table that is one array."""


def _flat(leaf: Array) -> Array:
    if not leaf.flags.c_contiguous:
        raise ValueError("a leaf of a table must be C-contiguous; this is a mistake in flowml")
    return leaf.reshape(-1)


def init_leaves(rule: Rule, params: Leaves) -> dict[str, State]:
    """Return the state of any rule for whole leaves, by path."""
    if rule.elementwise:
        return {path: rule.init(_flat(leaf)) for path, leaf in params.items()}
    state: dict[str, State] = rule.init(params)
    return state


def step_leaves(
    rule: Rule, params: Leaves, update: Leaves, state: dict[str, State], at: At, out: Leaves
) -> None:
    """Apply any rule to whole leaves, an elementwise one leaf by leaf.

    Parameters
    ----------
    params, update, out : dict of ndarray
        The same paths, shapes and dtype; ``out`` may be ``params`` itself.
    state : dict of dict of ndarray
        As `init_leaves` made it; changed in place.
    """
    if not rule.elementwise:
        rule.step(params, update, state, at, out)
        return
    for path, leaf in params.items():
        here = at if at.read is None else at._replace(read=_flat(at.read[path]))
        rule.step(_flat(leaf), _flat(update[path]), state[path], here, _flat(out[path]))


@dataclass(frozen=True)
class InnerInit:
    """The ``init`` of a rule that only changes the update before another rule."""

    rule: Rule

    def __call__(self, params: Leaves) -> dict[str, State]:
        """Return the inner rule's state."""
        return init_leaves(self.rule, params)


@dataclass(frozen=True)
class ClipNormStep:
    """See `clip_norm`."""

    limit: float
    rule: Rule

    def __call__(
        self, params: Leaves, update: Leaves, state: dict[str, State], at: At, out: Leaves
    ) -> None:
        """Apply one update."""
        norm = global_norm(update)
        if norm > self.limit:
            factor = self.limit / norm
            update = {path: leaf * leaf.dtype.type(factor) for path, leaf in update.items()}
        step_leaves(self.rule, params, update, state, at, out)


def global_norm(update: Mapping[str, Array]) -> float:
    """Return the l2 norm over all leaves, summed in float64 and in no particular order of leaves.

    Examples
    --------
    >>> global_norm({"W": np.array([[3.0], [0.0]]), "b": np.array([4.0])})
    5.0
    """
    squares = (float(np.sum(np.square(leaf, dtype=np.float64))) for leaf in update.values())
    return math.sqrt(math.fsum(squares))


def clip_norm(limit: float, rule: Rule) -> Rule:
    """Scale the update down to the global l2 norm ``limit`` if it is longer, then apply ``rule``.

    Parameters
    ----------
    limit : float
        Largest norm over all leaves together, > 0.
    rule : Rule
        What is done with the clipped update.

    Notes
    -----
    A norm that is not finite is left for the run's own check to find: NaN is passed on as it came.

    References
    ----------
    Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", ICML
    2013, algorithm 1. PyTorch divides by the norm plus 1e-6; here by the norm.
    """
    limit = real("fl.clip_norm", "limit", limit)
    if limit == 0.0:
        raise GraphError("fl.clip_norm", "limit must be > 0", "0", "At 0 nothing would be learned.")
    _check_rule("fl.clip_norm", "rule", rule)
    step = ClipNormStep(limit, rule)
    name = f"clip_norm({rule.name})"
    return Rule(InnerInit(rule), step, elementwise=False, reads=rule.reads, name=name)


@dataclass(frozen=True)
class ByLeaf:
    """Rules by pattern, in the order in which they are tried."""

    rules: tuple[tuple[str, Rule], ...]

    def groups(self, params: Leaves) -> list[tuple[Rule, tuple[str, ...]]]:
        """Return each rule with the paths that it takes, rules without any left out."""
        patterns = tuple(pattern for pattern, _ in self.rules)
        taken = _assign(patterns, tuple(params))
        return [(rule, paths) for (_, rule), paths in zip(self.rules, taken, strict=True) if paths]


@dataclass(frozen=True)
class ByLeafInit:
    """See `by_leaf`."""

    leaves: ByLeaf

    def __call__(self, params: Leaves) -> dict[str, State]:
        """Return the state of every leaf under its own rule."""
        state: dict[str, State] = {}
        for rule, paths in self.leaves.groups(params):
            state |= init_leaves(rule, _only(params, paths))
        return state


@dataclass(frozen=True)
class ByLeafStep:
    """See `by_leaf`."""

    leaves: ByLeaf

    def __call__(
        self, params: Leaves, update: Leaves, state: dict[str, State], at: At, out: Leaves
    ) -> None:
        """Apply one update."""
        for rule, paths in self.leaves.groups(params):
            here = at if at.read is None else at._replace(read=_only(at.read, paths))
            step_leaves(
                rule, _only(params, paths), _only(update, paths), state, here, _only(out, paths)
            )


def _only(leaves: Any, paths: tuple[str, ...]) -> Any:
    return {path: leaves[path] for path in paths}


@lru_cache(maxsize=256)
def _assign(patterns: tuple[str, ...], paths: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Return the paths that each pattern takes: those that no earlier pattern matches."""
    taken: list[list[str]] = [[] for _ in patterns]
    for path in paths:
        first = next((i for i, p in enumerate(patterns) if fnmatchcase(path, p)), None)
        if first is None:
            raise GraphError(
                "fl.by_leaf",
                f"leaf {path!r} must match one of the patterns",
                ", ".join(map(repr, patterns)),
                "Add '*' as the last pattern for all other leaves.",
            )
        taken[first].append(path)
    return tuple(map(tuple, taken))


def by_leaf(rules: Mapping[str, Rule]) -> Rule:
    """Give each leaf of a table its own rule.

    Parameters
    ----------
    rules : mapping of str to Rule
        Shell patterns on the path of a leaf, such as ``"W"``, ``"0/*"`` or ``"*"``; the first that
        matches wins. A rule that is not elementwise, such as `clip_norm`, sees all the leaves of
        its pattern together.

    Raises
    ------
    GraphError
        If there is no rule; when the state is made, if a leaf matches no pattern.

    Examples
    --------
    >>> from flowml.rules import sgd
    >>> rule = by_leaf({"b": sgd(0.2), "*": sgd(0.1, momentum=0.9)})
    >>> sorted(rule.init({"W": np.ones((2, 2)), "b": np.ones(2)})["W"])
    ['velocity']
    """
    if not rules:
        raise GraphError("fl.by_leaf", "there must be at least one pattern", "none")
    for pattern, rule in rules.items():
        _check_rule("fl.by_leaf", repr(pattern), rule)
    leaves = ByLeaf(tuple(rules.items()))
    reads = any(rule.reads for rule in rules.values())
    return Rule(ByLeafInit(leaves), ByLeafStep(leaves), False, reads, "by_leaf")


def _check_rule(where: str, name: str, rule: object) -> None:
    if not isinstance(rule, Rule):
        raise GraphError(where, f"{name} must be a Rule", repr(rule), "fl.sgd(lr=0.1) makes one.")
