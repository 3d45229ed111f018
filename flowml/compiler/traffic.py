"""What crosses between ranks in a step, from the plan: bytes, messages, barriers, memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import optree

from flowml import configuration
from flowml.actions import Aggregate, Assign, Gradient, Update
from flowml.layout import Layout, layout_of
from flowml.plan import Firing, Plan, PlanOperator, PlanPort
from flowml.runtime.domain import (
    HEADER,
    Domain,
    Layouts,
    layout_of_port,
    map_memory,
    reads_table_buffers,
    remote_partials,
)
from flowml.runtime.loose_plan import is_loose
from flowml.runtime.own_copies import with_own_copies
from flowml.runtime.program import cycle
from flowml.runtime.tablestate import RuleState, initial, whole

LONGEST_AVERAGE = 1000
"""Steps that a longer cycle of periods is averaged over."""


@dataclass(frozen=True)
class EdgeTraffic:
    """What one edge carries in a step, averaged over its period. Bytes a step.

    Attributes
    ----------
    edge : str
        "source -> reader".
    promise : str
        "sync", "stale(4)" or "async".
    every : int
        Steps from one delivery to the next.
    crosses : bool
        It moves between replicas; otherwise it stays in one, and costs nothing.
    written_bytes, read_bytes : float or None
        On one host, over all replicas: each contribution is written once into shared memory, each
        replica reads its slice of all of them. None: the size is not known without a measurement.
    messages : float
        Between hosts: one parcel of partial sums from each host to each other one.
    message_bytes : float or None
        Between hosts, over all of those parcels.
    """

    edge: str
    promise: str
    every: int
    crosses: bool
    written_bytes: float | None
    read_bytes: float | None
    messages: float
    message_bytes: float | None


@dataclass(frozen=True)
class Memory:
    """Bytes that a run holds beside its data, over all replicas of one host.

    Attributes
    ----------
    tables : int
        All versions of all instances.
    rules : int
        State of the rules, such as momentum: held once a table, cut in slices.
    regions : int or None
        What crosses between replicas; None where a size is not known without a measurement.
    """

    tables: int
    rules: int
    regions: int | None


def known_layouts(plan: Plan, measured: Layouts) -> dict[tuple[str, int], Layout]:
    """Return the layouts of tables, and of what operators make as far as it is known.

    Notes
    -----
    A gradient has the layout of its table and an aggregate that of what it combines; what a map
    makes is only known from a measurement.
    """
    found = dict(measured)
    for table in plan.tables:
        if (table.name, -1) not in found:
            found[table.name, -1] = layout_of(initial(plan, table, 0, 0))
    for operator in plan.steps:
        for output in range(operator.outputs):
            key = (operator.name, output)
            layout = found.get(key) or _inferred(plan, found, operator, output)
            if layout is not None:
                found[key] = layout
    return found


def _inferred(
    plan: Plan, found: dict[tuple[str, int], Layout], operator: PlanOperator, output: int
) -> Layout | None:
    action = operator.action
    if isinstance(action, Gradient) and output < action.tables:
        return layout_of_source(plan, found, operator.inputs[output])
    if isinstance(action, Aggregate):
        return layout_of_source(plan, found, operator.inputs[0])
    return None


def layout_of_source(plan: Plan, layouts: Layouts, port: PlanPort) -> Layout | None:
    """Return the layout of what an input reads, or None where it is not known."""
    try:
        return layout_of_port(plan, layouts, port)
    except KeyError:
        return None


@dataclass(frozen=True)
class Traffic:
    """Counts over the steps of one cycle of periods."""

    plan: Plan
    layouts: Layouts
    firing: Firing
    steps: range

    @classmethod
    def of(cls, plan: Plan, layouts: Layouts) -> Traffic:
        """Return the counter of a plan, past the first cycles in which edges fill up."""
        length = min(cycle(plan), LONGEST_AVERAGE)
        return cls(plan, layouts, Firing(plan), range(2 * length, 3 * length))

    def mean(self, count: Callable[[int], float]) -> float:
        """Return the mean of a count over the steps of a cycle."""
        return math.fsum(count(step) for step in self.steps) / len(self.steps)

    def firing_rate(self, operator: PlanOperator) -> float:
        """Return in which part of the steps an operator fires."""
        return self.mean(lambda step: self.firing.fires(operator, step))

    def barriers(self, hosts: int = 1) -> float:
        """Return barriers a step; none where one replica runs, or where an edge is not sync."""
        if self.plan.replicas == 1 or is_loose(self.plan):
            return 0.0
        plan = self.plan
        if all((t.name, -1) in self.layouts for t in plan.tables):
            limit = int(configuration.read("own-copies"))
            plan = with_own_copies(plan, self.layouts, hosts, limit)
        firing = Firing(plan)
        return self.mean(lambda step: len(firing.meeting(step)))

    def edge(
        self, reader: PlanOperator, number: int, promise: str, hosts: Sequence[Sequence[int]]
    ) -> EdgeTraffic:
        """Return what an edge carries; ``hosts`` are the ranks of each host."""
        port, plan = reader.inputs[number], self.plan
        name = f"{port.source} -> {reader.name}"
        crosses = plan.replicas > 1 and (port.crosses or _is_shared(plan, port))
        if not crosses:
            return EdgeTraffic(name, promise, port.every, False, 0.0, 0.0, 0.0, 0.0)
        rate = self.mean(lambda step: self.firing.delivers(port, step))
        layout = layout_of_source(plan, self.layouts, port)
        messages, parcels = self._between(reader, number, hosts)
        if layout is None:
            return EdgeTraffic(name, promise, port.every, True, None, None, messages * rate, None)
        written, read = self._on_host(reader, port, layout.nbytes)
        sent = parcels * (layout.nbytes + 8 * HEADER)
        return EdgeTraffic(
            name,
            promise,
            port.every,
            True,
            written * rate,
            read * rate,
            messages * rate,
            sent * rate,
        )

    def _on_host(self, reader: PlanOperator, port: PlanPort, nbytes: int) -> tuple[float, float]:
        plan = self.plan
        sources = plan.instances(plan.scope_of(port))
        copied = not reads_table_buffers(plan, port)
        written = sources * nbytes if copied else 0
        if plan.combines(reader) and port is reader.inputs[0]:
            members = sum(len(plan.members(reader, i)) for i in range(plan.instances(reader.scope)))
            return written, members * nbytes
        return written, max(sources, plan.instances(reader.scope)) * nbytes

    def _between(
        self, reader: PlanOperator, number: int, hosts: Sequence[Sequence[int]]
    ) -> tuple[int, int]:
        """Return messages, and parcels of one partial sum each, between all hosts."""
        if number or len(hosts) < 2 or not self.plan.combines(reader):
            return 0, 0
        ranks = tuple(tuple(h) for h in hosts)
        parcels, pairs = 0, 0
        for own in range(len(ranks)):
            found = list(remote_partials(self.plan, Domain(own, ranks), reader))
            parcels += len(found)
            pairs += len({partial.domain for partial in found})
        return pairs, parcels

    def memory(self) -> Memory:
        """Return what a run holds on one host."""
        plan, tables, rules = self.plan, 0, 0
        for table in plan.tables:
            layout, count = self.layouts[table.name, -1], plan.instances(table.scope)
            tables += count * (1 + len(table.writes)) * layout.nbytes
            rules += count * sum(self._rule_bytes(plan.operator(w), layout) for w in table.writes)
        try:
            everyone = Domain(0, (tuple(range(plan.replicas)),))
            mapped = map_memory(plan, self.layouts, everyone)
        except KeyError:
            return Memory(tables, rules, None)
        regions = sum(layout.nbytes + 8 * HEADER for layout, _ in mapped.regions.values())
        return Memory(tables, rules, regions)

    def _rule_bytes(self, operator: PlanOperator, layout: Layout) -> int:
        action = operator.action
        if isinstance(action, Assign):
            return 0
        assert isinstance(action, Update)
        state = RuleState(action.rule, layout, whole(layout))
        value = layout.allocate()
        for buffer in value:
            buffer[...] = 0
        state.start(value)
        return sum(getattr(leaf, "nbytes", 0) for leaf in optree.tree_leaves(state.states))


def _is_shared(plan: Plan, port: PlanPort) -> bool:
    """Tell whether a port reads a table that several ranks hold together."""
    return port.table and plan.instances(plan.table(port.source).scope) < plan.replicas
