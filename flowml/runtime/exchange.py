"""What crosses between domains after a phase: one partial sum for each maximal subtree.

Both ends walk the same plan in the same order, so a message is only headers and buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from flowml.actions import Aggregate
from flowml.errors import PlanError
from flowml.layout import Layout
from flowml.plan import PlanOperator
from flowml.reductions import partial
from flowml.runtime.combining import Member, members_of
from flowml.runtime.domain import Region, layout_of_port, remote_partials, subtrees
from flowml.runtime.inputs import Pattern
from flowml.types import Array


@dataclass(frozen=True)
class Exchange:
    """What one process of a domain sends to, and takes from, the other domains at a barrier."""

    outgoing: tuple[tuple[int, Callable[[], list[Array]]], ...]
    """(domain, maker of its arrays)."""
    incoming: tuple[tuple[int, tuple[Region, ...]], ...]
    """(domain, regions that its arrays go to)."""

    def send(self) -> dict[int, Array]:
        """Return one fresh array of bytes for each other domain."""
        out: dict[int, list[Array]] = {}
        for domain, make in self.outgoing:
            out.setdefault(domain, []).extend(a.view(np.uint8) for a in make())
        return {domain: np.concatenate(parts) for domain, parts in out.items()}

    def take(self, received: Mapping[int, Array | None]) -> None:
        """Copy what came from the other domains to its regions.

        Raises
        ------
        PlanError
            If a message does not hold what the plan says.
        """
        for domain, regions in self.incoming:
            source, start = received[domain], 0
            size = 0 if source is None else len(source)
            for region in regions:
                for target in (region.header, *region.buffers):
                    stop = start + target.nbytes
                    if source is None or stop > size:
                        raise _wrong_length(size)
                    target.view(np.uint8)[...] = source[start:stop]
                    start = stop
            if start != size:
                raise _wrong_length(size)


def _wrong_length(size: int) -> PlanError:
    return PlanError(
        "exchange between hosts",
        "a message must hold what the plan says",
        f"{size} bytes",
        "Install the same flowml on all workers.",
    )


def exchange_after(pattern: Pattern, phase: int) -> Exchange | None:
    """Return what crosses domains after a phase, or None where nothing does."""
    rank = pattern.rank
    if len(rank.domain.domains) == 1:
        return None
    outgoing: list[tuple[int, Callable[[], list[Array]]]] = []
    incoming: dict[int, list[Region]] = {}
    for operator in rank.plan.steps:
        if not _crosses_after(pattern, operator, phase):
            continue
        for other in range(len(rank.domain.domains)):
            if other != rank.domain.number:
                outgoing += _outgoing(pattern, operator, other)
        for found in remote_partials(rank.plan, rank.domain, operator):
            incoming.setdefault(found.domain, []).append(pattern.region(found.key))
    if not outgoing and not incoming:
        return None
    return Exchange(tuple(outgoing), tuple((d, tuple(r)) for d, r in incoming.items()))


def _crosses_after(pattern: Pattern, operator: PlanOperator, phase: int) -> bool:
    plan = pattern.rank.plan
    if not plan.combines(operator) or not pattern.delivers(operator, 0):
        return False
    return plan.operator(operator.inputs[0].source).phase == phase


def _outgoing(
    pattern: Pattern, operator: PlanOperator, other: int
) -> list[tuple[int, Callable[[], list[Array]]]]:
    rank = pattern.rank
    layout = layout_of_port(rank.plan, rank.layouts, operator.inputs[0])
    found = []
    for instance in rank.domain.present(rank.plan, operator.scope, other):
        local = [m for m in members_of(pattern, operator, instance) if not m.partial]
        mine = rank.domain.number
        for subtree in subtrees(rank.plan, rank.domain, operator, instance, mine):
            found.append((other, _partial_maker(operator, subtree, local, layout)))
    return found


def _partial_maker(
    operator: PlanOperator, subtree: object, members: list[Member], layout: Layout
) -> Callable[[], list[Array]]:
    """Return a function that sums a subtree; fresh arrays each time, since a send is queued."""
    action = operator.action
    tree = isinstance(action, Aggregate) and action.reduction.tree
    below = {m.key: m for m in members if m.key in _leaves(subtree)}

    def make() -> list[Array]:
        weights = {key: m.weight() for key, m in below.items()}
        counts = [m.examples() for key, m in below.items() if weights[key]]
        out = layout.allocate()
        weight = sum(weights.values())
        for number, buffer in enumerate(out):
            slices = {key: m.buffers()[number] for key, m in below.items()}
            if tree and isinstance(action, Aggregate) and len(buffer) and weight:
                weight = partial(action.reduction, subtree, slices, weights, buffer)  # type: ignore[arg-type]
            elif weight and len(buffer):
                buffer[...] = slices[subtree]
        return [np.array([sum(counts) if counts else 0.0, weight]), *out]

    return make


def _leaves(subtree: object) -> set[object]:
    if isinstance(subtree, tuple):
        return _leaves(subtree[0]) | _leaves(subtree[1])
    return {subtree}
