"""Sums over replicas in the resident executor: each rank combines its slice of the flat buffers."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowml.actions import Aggregate
from flowml.layout import Layout
from flowml.plan import PlanOperator
from flowml.reductions import reduce_slices
from flowml.runtime.bodies import Act, out_regions
from flowml.runtime.calls import Spot, raise_explained
from flowml.runtime.domain import (
    Region,
    layout_of_port,
    reads_table_buffers,
    region_of_port,
    remote_partials,
)
from flowml.runtime.inputs import Pattern
from flowml.runtime.rank import slice_of
from flowml.runtime.ranktable import RankTable
from flowml.runtime.straight_sum import StraightSum
from flowml.runtime.values import EMPTY, Value
from flowml.types import Array

Buffers = Callable[[], tuple[Array, ...]]


@dataclass(frozen=True)
class Member:
    """One contribution to a sum: a member's own value, or the partial sum of another domain."""

    key: Hashable
    """A member, or a subtree of members."""
    header: Array | None
    """Its region's header; None where it is always present (a table)."""
    buffers: Buffers
    weight_of: Callable[[], float] | None
    """Its weight where a handle says it; None: see ``counts``."""
    counts: bool
    """It weighs as many examples as it stands for, if it stands for any."""
    partial: bool = False

    def weight(self) -> float:
        """Return its weight in the sum; 0 leaves it out."""
        if self.header is None:
            return 1.0 if self.weight_of is None else self.weight_of()
        examples = float(self.header[0])
        if examples == 0.0:
            return 0.0
        if self.partial:
            return float(self.header[1])
        if self.weight_of is not None:
            return self.weight_of()
        return examples if self.counts and examples == examples else 1.0

    @property
    def weighs_examples(self) -> bool:
        """Tell whether its weight is the number of its examples and nothing else."""
        return self.counts and self.weight_of is None and not self.partial

    def examples(self) -> float:
        """Return the examples that it stands for; NaN: none."""
        return float("nan") if self.header is None else float(self.header[0])


def members_of(pattern: Pattern, operator: PlanOperator, instance: int) -> list[Member]:
    """Return the contributions that this domain sees of an operator that combines."""
    rank = pattern.rank
    plan, port = rank.plan, operator.inputs[0]
    source_scope = plan.scope_of(port)
    found = []
    for member in plan.members(operator, instance):
        if rank.domain.owner(plan, source_scope, member) == rank.domain.number:
            found.append(_local_member(pattern, operator, member))
    for partial in remote_partials(plan, rank.domain, operator):
        if partial.instance == instance:
            region = pattern.region(partial.key)
            found.append(_remote_member(partial.subtree, region))
    return found


def _remote_member(subtree: Hashable, region: Region) -> Member:
    return Member(subtree, region.header, lambda: region.buffers, None, False, True)


def _local_member(pattern: Pattern, operator: PlanOperator, member: int) -> Member:
    rank, action = pattern.rank, operator.action
    weight_of = None
    counts = isinstance(action, Aggregate) and action.weight == "examples"
    if isinstance(action, Aggregate) and action.weight == "handle":
        weight = pattern.region(region_of_port(rank.plan, operator, 1, member))
        weight_of = lambda: float(weight.buffers[0][0]) if weight.header[0] else 0.0  # noqa: E731
    port = operator.inputs[0]
    if reads_table_buffers(rank.plan, port):
        writer = rank.plan.operator(port.source)
        writes = pattern.writes_before(writer, including=True)
        versions = rank.memory.table(str(writer.writes), member)
        mine = rank.tables[str(writer.writes)]
        assert isinstance(mine, RankTable)
        return Member(
            member, None, lambda: versions[(mine.now + writes) % len(versions)], weight_of, counts
        )
    region = pattern.region(region_of_port(rank.plan, operator, 0, member))
    return Member(member, region.header, lambda: region.buffers, weight_of, counts)


def aggregate_body(pattern: Pattern, operator: PlanOperator) -> Act:
    """Return the body of an aggregate for this rank's slice."""
    rank, action = pattern.rank, operator.action
    assert isinstance(action, Aggregate)
    instance = rank.instance(operator.scope)
    layout = layout_of_port(rank.plan, rank.layouts, operator.inputs[0])
    parts = slice_of(rank, operator, layout.sizes)
    region = out_regions(pattern, operator)[0]
    buffers = region.buffers if region is not None else layout.allocate()
    rank.flats[operator.name, 0] = buffers
    combine = _combiner(pattern, operator, instance, layout, parts, buffers)
    slot, registers = rank.slots[operator.name, 0], rank.registers
    made = layout.views(buffers, writeable=False)
    rank.backing[id(made)] = buffers
    number, enter = rank.index[operator.name], rank.enter
    leads = rank.domain.workers_of(rank.plan, operator.scope, instance)[0] == rank.number

    def act(step: int) -> None:
        enter(number, step)
        examples = combine(step)
        if region is not None and leads:
            region.header[0] = np.nan if examples is None else examples
        registers[slot] = EMPTY if examples == 0 else Value(made, examples)

    return act


def _combiner(
    pattern: Pattern,
    operator: PlanOperator,
    instance: int,
    layout: Layout,
    parts: tuple[slice, ...],
    out: tuple[Array, ...],
) -> Callable[[int], float | None]:
    """Return a function that combines this rank's slice and returns the examples it stands for."""
    rank, action = pattern.rank, operator.action
    assert isinstance(action, Aggregate)
    members = members_of(pattern, operator, instance)
    tree, reduction = rank.plan.tree(operator, instance), action.reduction
    targets = [(n, s, b[s]) for n, (b, s) in enumerate(zip(out, parts, strict=True))]
    targets = [t for t in targets if len(t[2])]
    spares = {n: _spares(target) for n, _, target in targets}
    fixed = reduction.tree and all(m.header is not None and not m.partial for m in members)
    at_once = [
        StraightSum(reduction, tree, {m.key: m.buffers()[n][s] for m in members}, target)
        for n, s, target in (targets if fixed else ())
    ]

    def combine_present(step: int) -> float | None:
        weights: dict[Any, float] = {m.key: m.weight() for m in members}
        present = [m for m in members if weights[m.key]]
        if not present:
            return 0.0
        try:
            for number, part, target in targets:
                slices = {m.key: m.buffers()[number][part] for m in members}
                reduce_slices(reduction, tree, slices, weights, target, spares[number]())
        except BaseException as error:
            raise_explained(Spot(operator, rank.number, step, rank.worker), error)
        total = 0.0
        for m in present:
            total += m.examples()
        return None if total != total else total

    if not fixed or not all(m.weighs_examples for m in members):
        return combine_present
    counts_of = [m.header.data for m in members if m.header is not None]  # reads as a float

    def combine_all(step: int) -> float | None:
        counts = [count[0] for count in counts_of]
        total = 0.0
        for count in counts:
            total += count
        if 0.0 in counts or total != total:
            return combine_present(step)
        for add_up in at_once:
            add_up(counts)
        return total

    return combine_all


def _spares(like: Array) -> Callable[[], Callable[[], Array]]:
    """Return a maker of scratch functions that hand out the same arrays in every step."""
    made: list[Array] = []

    def fresh() -> Callable[[], Array]:
        used = 0

        def spare() -> Array:
            nonlocal used
            if used == len(made):
                made.append(np.empty_like(like))
            used += 1
            return made[used - 1]

        return spare

    return fresh
