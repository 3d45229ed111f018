"""Sums along the plan's tree, one task a pair: the arithmetic of ``reductions``, cut in pieces.

A task adds two children. A child is a *contribution* (a member's value as made: a leaf of the
tree) or the `Partial` of a subtree. Leaves are scaled by their weights where they are added first,
the root divides once, and children of weight 0 vanish: ``reductions`` promises that this gives
the bits of the sum in one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from flowml.actions import Aggregate
from flowml.errors import FlowmlError
from flowml.layout import Layout, layout_of
from flowml.plan import PlanOperator
from flowml.reductions import Tree, reduce_slices
from flowml.reductions import partial as partial_sum
from flowml.runtime.calls import Spot, all_finite, call, number_of, returned
from flowml.runtime.operations import flatten
from flowml.runtime.tasksetting import on_worker
from flowml.runtime.taskshipment import Shipment
from flowml.runtime.taskvalues import Between, Flat, aligned, value_of
from flowml.runtime.values import EMPTY, Value
from flowml.types import Array

SpotOf = Callable[[], Spot]
Child: TypeAlias = "Partial | list[Any]"
"""The sum of a subtree, or [member, its value] or [member, its value, its weight]."""


@dataclass(frozen=True)
class Partial:
    """The sum of a subtree's contributions, scaled by their weights and not divided.

    Attributes
    ----------
    layout : Layout or None
        None where every member was empty.
    buffers : tuple of ndarray
        Nothing where the weight is 0.
    weight : float
    counts : tuple of (float or None)
        Examples of each member that was not empty, in order.
    first : int
        The first of those members.
    leaf : bool
        One member's contribution as made, not scaled.
    blamed : (int, tuple of ndarray) or None
        A member whose contribution is not finite, and that contribution.
    """

    layout: Layout | None = None
    buffers: tuple[Array, ...] = ()
    weight: float = 0.0
    counts: tuple[float | None, ...] = ()
    first: int = -1
    leaf: bool = False
    blamed: tuple[int, tuple[Array, ...]] | None = None

    def __sizeof__(self) -> int:
        return 200 + sum(b.nbytes for b in self.buffers)


def add_pair(
    shipment: Shipment, name: str, step: int, instance: int, left: Child, right: Child
) -> Partial:
    """Add two children; the result is the partial sum of their subtree."""
    with on_worker(shipment.plan.blas_threads):
        operator, spot = _place(shipment, name, step, instance)
        return _added(operator, spot, [_partial(operator, spot, c) for c in (left, right)])


def finish_sum(
    shipment: Shipment, name: str, step: int, instance: int, *children: Child
) -> Value | Flat:
    """Add the last children, one or two, and divide where the reduction is a mean."""
    with on_worker(shipment.plan.blas_threads):
        operator, spot = _place(shipment, name, step, instance)
        found = [_partial(operator, spot, child) for child in children]
        layout = _agreed_layout(spot, found)
        if layout is None or not any(p.weight for p in found):
            return EMPTY
        out = _reduced(operator, spot, found, layout, finish=True)
        counts = [count for p in found for count in p.counts]
        examples = None if None in counts else float(sum(c for c in counts if c is not None))
        return Flat(layout, out, examples, blame(out, found))


def blame(
    out: Sequence[Array], children: Sequence[Partial]
) -> tuple[int, tuple[Array, ...]] | None:
    """Return a member of weight that made a sum infinite or NaN, so that a write can name it."""
    if all_finite(out):
        return None
    for child in children:
        if child.blamed is not None:
            return child.blamed
        if child.leaf and child.weight and not all_finite(child.buffers):
            return child.first, child.buffers
    return None


def _place(shipment: Shipment, name: str, step: int, instance: int) -> tuple[PlanOperator, SpotOf]:
    operator = shipment.plan.operator(name)
    rank = shipment.plan.ranks_of(operator.scope, instance)[0]
    return operator, partial(Spot, operator, rank, step)


def _partial(operator: PlanOperator, spot: SpotOf, child: Child) -> Partial:
    """Return a child as a partial sum; a contribution becomes a leaf, flat."""
    if isinstance(child, Partial):
        return child
    member, between = child[0], child[1]
    value = value_of(between)
    if value.empty:
        return Partial()
    action = operator.action
    assert isinstance(action, Aggregate)
    weight = 1.0
    if action.weight == "handle":
        given = value_of(child[2])
        weight = (
            0.0
            if given.empty
            else number_of(spot, given.content, "the weight must be one number", "Return a float.")
        )
    elif action.weight == "examples":
        weight = 1.0 if value.examples is None else value.examples
    layout, buffers = _flattened(spot, between, value, member)
    return Partial(layout, buffers, weight, (value.examples,), member, leaf=True)


def _flattened(
    spot: SpotOf, between: Between, value: Value, member: int
) -> tuple[Layout, tuple[Array, ...]]:
    if isinstance(between, Flat):
        return between.layout, aligned(between.buffers)
    try:
        layout = layout_of(value.content)
    except TypeError as error:
        raise returned(
            spot(),
            "values must be pytrees of numeric arrays",
            str(error),
            "Return NumPy arrays, or dicts, tuples and lists of them.",
        ) from error
    return layout, flatten(spot, layout, value.content, member)


def _agreed_layout(spot: SpotOf, children: Sequence[Partial]) -> Layout | None:
    """Return the layout of the first child that has one; the other must have the same."""
    first, *others = [p for p in children if p.layout is not None] or [Partial()]
    for other in others:
        if first.layout != other.layout:
            raise _differs(spot, first, other)
    return first.layout


def _differs(spot: SpotOf, first: Partial, other: Partial) -> FlowmlError:
    assert first.layout is not None
    assert other.layout is not None
    wrong = first.layout.mismatch(other.layout.views(other.layout.allocate()))
    return returned(
        spot(),
        "values of all members must have the same structure, shapes and "
        f"dtypes; member {other.first} differs",
        str(wrong),
        "Return arrays of one shape and dtype.",
    )


def _added(operator: PlanOperator, spot: SpotOf, children: Sequence[Partial]) -> Partial:
    layout = _agreed_layout(spot, children)
    if layout is None:
        return Partial()
    weight = children[0].weight + children[1].weight
    buffers: tuple[Array, ...] = ()
    if weight:
        buffers = _reduced(operator, spot, children, layout, finish=False)
    counts = tuple(count for p in children for count in p.counts)
    first = next(p.first for p in children if p.layout is not None)
    return Partial(layout, buffers, weight, counts, first, blamed=blame(buffers, children))


def _reduced(
    operator: PlanOperator,
    spot: SpotOf,
    children: Sequence[Partial],
    layout: Layout,
    *,
    finish: bool,
) -> tuple[Array, ...]:
    """Reduce one or two children; a label says which is a leaf, as ``reductions`` has it."""
    action = operator.action
    assert isinstance(action, Aggregate)
    labels: list[Tree] = [n if p.leaf else (n, n) for n, p in enumerate(children)]
    tree = labels[0] if len(labels) == 1 else (labels[0], labels[1])
    weights = {label: p.weight for label, p in zip(labels, children, strict=True)}
    reduce = reduce_slices if finish else partial_sum
    out = layout.allocate()
    for number, buffer in enumerate(out):
        slices = {
            label: p.buffers[number] for label, p in zip(labels, children, strict=True) if p.buffers
        }
        call(spot, reduce, action.reduction, tree, slices, weights, buffer)
    return out
