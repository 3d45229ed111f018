"""What a domain of ranks that share memory holds: where each shared value and table lies.

Every process of a domain computes the same map from the plan, so that only a file descriptor has
to travel. A *region* is a header and the flat buffers of one value:

- ``out``: what one instance of an operator made and another rank reads;
- ``port``: what an edge with a period hands over when it fires;
- ``partial``: the scaled sum of a subtree whose ranks are all in another domain.

A region has two turns where steps follow each other with one barrier between them: what a rank
reads in this step is written again in the next but one (own_copies.py). Else it has one.

Operators of scope group and global run once a *domain*: they are pure, so each domain computes
the same bytes from the same sums, and only sums cross between domains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from flowml.actions import REPLICA, Aggregate, Answer
from flowml.layout import Layout
from flowml.plan import Plan, PlanOperator, PlanPort
from flowml.reductions import Tree, maximal_subtrees
from flowml.types import Array, Pytree

RegionKey: TypeAlias = tuple[Any, ...]
Layouts: TypeAlias = Mapping[tuple[str, int], Layout]
"""Layout of each output that crosses, by (operator, output); tables as (table, -1)."""

HEADER = 2
"""float64 items: examples (NaN: none), weight of a partial."""
ALIGN = 64


@dataclass(frozen=True)
class Domain:
    """The ranks that share one memory, and those of the other domains of the run."""

    number: int
    domains: tuple[tuple[int, ...], ...]

    @property
    def ranks(self) -> tuple[int, ...]:
        """Ranks of this domain."""
        return self.domains[self.number]

    def owner(self, plan: Plan, scope: str, instance: int) -> int:
        """Return the domain that hands an instance's value to the others."""
        first = plan.ranks_of(scope, instance)[0]
        return next(d for d, ranks in enumerate(self.domains) if first in ranks)

    def present(self, plan: Plan, scope: str, domain: int | None = None) -> tuple[int, ...]:
        """Return the instances of a scope that have a rank in a domain."""
        ranks = self.domains[self.number if domain is None else domain]
        return tuple(sorted({plan.instance_of(scope, r) for r in ranks}))

    def workers_of(self, plan: Plan, scope: str, instance: int) -> tuple[int, ...]:
        """Return the ranks of this domain that work on an instance; the first leads."""
        return tuple(r for r in plan.ranks_of(scope, instance) if r in self.ranks)


def kept_by_source(plan: Plan, port: PlanPort) -> bool:
    """Tell whether the source's rank keeps what an edge's period skips; else its reader does."""
    if port.table or port.every == 1:
        return False
    source = plan.operator(port.source)
    return not source.sliced and (source.writes is None or source.scope == REPLICA)


def region_of_port(plan: Plan, reader: PlanOperator, number: int, instance: int) -> RegionKey:
    """Return the region that a crossing input reads for one instance of its source."""
    port = reader.inputs[number]
    if kept_by_source(plan, port):
        return ("port", reader.name, number, instance)
    return ("out", port.source, port.output, instance)


def reads_table_buffers(plan: Plan, port: PlanPort) -> bool:
    """Tell whether an input reads a shared table's own buffers instead of a region."""
    if port.table:
        return True
    source = plan.operator(port.source)
    return source.writes is not None and source.scope != REPLICA


@dataclass(frozen=True)
class PartialSum:
    """A subtree of a sum that another domain owns."""

    operator: str
    instance: int
    subtree: Tree
    domain: int

    @property
    def key(self) -> RegionKey:
        """Return its region."""
        return ("partial", self.operator, self.instance, self.subtree)


def subtrees(
    plan: Plan, domain: Domain, operator: PlanOperator, instance: int, owner: int
) -> tuple[Tree, ...]:
    """Return what ``owner`` contributes to a sum: its maximal subtrees, or single members."""
    source = plan.scope_of(operator.inputs[0])
    members = plan.members(operator, instance)
    owned = {m for m in members if domain.owner(plan, source, m) == owner}
    action = operator.action
    if isinstance(action, Aggregate) and action.reduction.tree:
        return maximal_subtrees(plan.tree(operator, instance), owned)
    return tuple(sorted(owned))


def remote_partials(plan: Plan, domain: Domain, operator: PlanOperator) -> Iterator[PartialSum]:
    """Yield what this domain receives for the sums and pushes of an operator."""
    for instance in domain.present(plan, operator.scope):
        for other in range(len(domain.domains)):
            if other != domain.number:
                for subtree in subtrees(plan, domain, operator, instance, other):
                    yield PartialSum(operator.name, instance, subtree, other)


@dataclass
class Region:
    """A header and flat buffers in memory."""

    layout: Layout
    header: Array
    buffers: tuple[Array, ...]
    view: Pytree = None
    writable: Pytree = None

    def __post_init__(self) -> None:
        """Make the pytrees of views once."""
        self.view = self.layout.views(self.buffers, writeable=False)
        self.writable = self.layout.views(self.buffers)

    def put(self, content: Pytree, examples: float | None) -> None:
        """Copy a value that fits the layout, or mark the region empty."""
        if examples == 0:
            self.header[0] = 0.0
            return
        self.layout.write(content, self.buffers)
        self.header[0] = np.nan if examples is None else examples

    @property
    def examples(self) -> float | None:
        """Examples that the value stands for; None: it carries none."""
        found = float(self.header[0])
        return None if found != found else found


@dataclass
class MemoryMap:
    """Offsets of all regions and shared tables of a domain."""

    regions: dict[RegionKey, tuple[Layout, int]] = field(default_factory=dict)
    tables: dict[tuple[str, int], tuple[Layout, int, int]] = field(default_factory=dict)
    """(table, instance) -> layout, number of versions, offset."""
    nbytes: int = 0

    def add_region(self, key: RegionKey, layout: Layout) -> None:
        """Reserve a region once."""
        if key not in self.regions:
            self.regions[key] = (layout, self.nbytes)
            self.nbytes += _padded(8 * HEADER) + _stride(layout)

    def add_table(self, name: str, instance: int, layout: Layout, versions: int) -> None:
        """Reserve a table with one set of buffers more than it has writes a step."""
        self.tables[name, instance] = (layout, versions, self.nbytes)
        self.nbytes += versions * _stride(layout)


def _padded(nbytes: int) -> int:
    return -(-nbytes // ALIGN) * ALIGN


def _stride(layout: Layout) -> int:
    return sum(_padded(s * d.itemsize) for s, d in zip(layout.sizes, layout.dtypes, strict=True))


def map_memory(plan: Plan, layouts: Layouts, domain: Domain, reserve: int = 0) -> MemoryMap:
    """Return where everything lies in a domain's memory; the same in each of its processes.

    Parameters
    ----------
    reserve : int
        Bytes left free at the start, for the status board.
    """
    found = MemoryMap(nbytes=_padded(reserve))
    for table in plan.tables:
        if table.scope != REPLICA and not plan.own_copies:
            for instance in domain.present(plan, table.scope):
                found.add_table(
                    table.name, instance, layouts[table.name, -1], 1 + len(table.writes)
                )
    for reader in plan.steps:
        for number, port in enumerate(reader.inputs):
            if port.crosses and not reads_table_buffers(plan, port):
                layout = layout_of_port(plan, layouts, port)
                for instance in domain.present(plan, plan.scope_of(port)):
                    key = region_of_port(plan, reader, number, instance)
                    for turn in range(2 if plan.own_copies else 1):
                        found.add_region((turn, *key), layout)
        if plan.combines(reader):
            port = reader.inputs[0]
            layout = layout_of_port(plan, layouts, port)
            for partial in remote_partials(plan, domain, reader):
                found.add_region((0, *partial.key), layout)
    return found


def layout_of_port(plan: Plan, layouts: Layouts, port: PlanPort) -> Layout:
    """Return the layout of what an input reads."""
    if port.table:
        return layouts[port.source, -1]
    source = plan.operator(port.source)
    written = source.action.table if isinstance(source.action, Answer) else source.writes
    return layouts[written, -1] if written else layouts[port.source, port.output]


class DomainMemory:
    """The regions and shared tables of a domain over one block of memory."""

    def __init__(self, memory_map: MemoryMap, block: Array) -> None:
        self._map = memory_map
        self._block = block
        self._regions: dict[RegionKey, Region] = {}

    def region(self, key: RegionKey) -> Region:
        """Return a region; one object a process, so that its views are made once."""
        if key not in self._regions:
            layout, offset = self._map.regions[key]
            header = self._block[offset : offset + 8 * HEADER].view(np.float64)
            buffers = self._buffers(layout, offset + _padded(8 * HEADER))
            self._regions[key] = Region(layout, header, buffers)
        return self._regions[key]

    def table(self, name: str, instance: int) -> list[tuple[Array, ...]]:
        """Return the buffers of each version of a shared table."""
        layout, versions, offset = self._map.tables[name, instance]
        return [self._buffers(layout, offset + v * _stride(layout)) for v in range(versions)]

    def _buffers(self, layout: Layout, offset: int) -> tuple[Array, ...]:
        out = []
        for size, dtype in zip(layout.sizes, layout.dtypes, strict=True):
            stop = offset + size * dtype.itemsize
            out.append(self._block[offset:stop].view(dtype))
            offset += _padded(size * dtype.itemsize)
        return tuple(out)
