"""What crosses between ranks in a step, from the plan: bytes, messages, barriers.

The plan is taken as it would run: where tables are small, each rank keeps copies of its own and
reads all contributions. What replicas move at their own pace is in loose_traffic.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from flowml import configuration
from flowml.actions import REPLICA, Aggregate
from flowml.compiler.layouts import layout_of_source
from flowml.layout import Layout
from flowml.plan import Firing, Plan, PlanOperator, PlanPort
from flowml.runtime.domain import (
    HEADER,
    Domain,
    Layouts,
    kept_by_source,
    reads_table_buffers,
    remote_partials,
)
from flowml.runtime.loose_plan import is_loose
from flowml.runtime.own_copies import with_own_copies
from flowml.runtime.program import cycle

LONGEST_AVERAGE = 1000
"""Steps that a longer cycle of periods is averaged over."""

Hosts = tuple[tuple[int, ...], ...]
"""Ranks of each host."""


@dataclass(frozen=True)
class EdgeTraffic:
    """What one edge carries in a step, averaged over its period. Bytes a step.

    All replicas are taken to have a batch, as they have until the last steps of an epoch.

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
        On one host, over all replicas, as ``run.moved`` counts them. A value is written once into
        shared memory, on the first of its edges, and read by each replica that needs it: whole,
        or the slice that it works on. Under stale and async edges a table is copied where it has
        changed, and a contribution is applied where it was written. None: the size is not known
        without a measurement.
    messages : float
        Between hosts: one parcel of partial sums from each host to each other one. Under stale and
        async edges a request and its reply for each replica that is not on the first host, where
        the tables are; what is delivered goes with the next request.
    message_bytes : float or None
        Between hosts, over all of those.
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
class Traffic:
    """Counts over the steps of one cycle of periods.

    Attributes
    ----------
    plan : Plan
        As it was compiled.
    placed : Plan
        As it runs: with copies of its own for each rank where that is better.
    layouts : mapping of (operator, output) to Layout
    hosts : tuple of tuple of int
    payloads : mapping of str to float
        Bytes a step of each edge that passes a gate, where codec, filter or row ids make them.
    """

    plan: Plan
    placed: Plan
    layouts: Layouts
    hosts: Hosts
    payloads: Mapping[str, float]
    firing: Firing
    steps: range

    @classmethod
    def of(
        cls, plan: Plan, layouts: Layouts, hosts: Hosts, payloads: Mapping[str, float]
    ) -> Traffic:
        """Return the counter of a plan, past the first cycles in which edges fill up."""
        length = min(cycle(plan), LONGEST_AVERAGE)
        placed = plan
        if not is_loose(plan) and all((t.name, -1) in layouts for t in plan.tables):
            limit = int(configuration.read("own-copies"))
            placed = with_own_copies(plan, layouts, len(hosts), limit)
        steps = range(2 * length, 3 * length)
        return cls(plan, placed, layouts, hosts, payloads, Firing(placed), steps)

    def mean(self, count: Callable[[int], float]) -> float:
        """Return the mean of a count over the steps of a cycle."""
        return math.fsum(count(step) for step in self.steps) / len(self.steps)

    def firing_rate(self, operator: PlanOperator) -> float:
        """Return in which part of the steps an operator fires."""
        return self.mean(lambda step: self.firing.fires(operator, step))

    def barriers(self) -> float:
        """Return barriers a step; none where one replica runs, or where an edge is not sync."""
        if self.plan.replicas == 1 or is_loose(self.plan):
            return 0.0
        return self.mean(lambda step: len(self.firing.meeting(step)))

    def meetings(self) -> float:
        """Return in which part of the steps replicas meet at all."""
        if self.plan.replicas == 1 or is_loose(self.plan):
            return 0.0
        return self.mean(lambda step: bool(self.firing.meeting(step)))

    def edge(self, name: str, number: int, promise: str, apart: Hosts) -> EdgeTraffic:
        """Return what an input of an operator carries.

        Parameters
        ----------
        apart : tuple of tuple of int
            Hosts that messages are counted for, if there is only one.
        """
        reader = self.placed.operator(name)
        port = reader.inputs[number]
        edge = self.plan.edge_name(reader, number)
        if not self.crosses(port):
            return EdgeTraffic(edge, promise, port.every, False, 0.0, 0.0, 0.0, 0.0)
        rate = self.mean(lambda step: self.firing.delivers(port, step))
        layout = layout_of_source(self.plan, self.layouts, port)
        messages, parcels = self._between(self.plan.operator(name), number, apart)
        if layout is None:
            return EdgeTraffic(edge, promise, port.every, True, None, None, messages * rate, None)
        return EdgeTraffic(
            edge,
            promise,
            port.every,
            True,
            self._written(reader, number, layout.nbytes),
            self._read(reader, number, layout),
            messages * rate,
            parcels * (layout.nbytes + 8 * HEADER) * rate,
        )

    def crosses(self, port: PlanPort) -> bool:
        """Tell whether what an input reads lies in memory that ranks share."""
        if self.plan.replicas == 1:
            return False
        shared_table = reads_table_buffers(self.placed, port) and not self.placed.own_copies
        return port.crosses or (shared_table and self.placed.scope_of(port) != REPLICA)

    def _written(self, reader: PlanOperator, number: int, nbytes: int) -> float:
        """Return the bytes that the instances of a source write for an edge."""
        plan, port = self.placed, reader.inputs[number]
        if reads_table_buffers(plan, port) or not port.crosses:
            return 0.0
        source = plan.operator(port.source)
        whole = float(plan.instances(source.scope) * nbytes)
        if kept_by_source(plan, port):
            return whole * self.mean(lambda step: self.firing.delivers(port, step))
        first = next(
            (o.name, n)
            for o in plan.steps
            for n, p in enumerate(o.inputs)
            if p.crosses and (p.source, p.output) == (port.source, port.output)
            if not kept_by_source(plan, p)
        )
        return whole * self.firing_rate(source) if first == (reader.name, number) else 0.0

    def _read(self, reader: PlanOperator, number: int, layout: Layout) -> float:
        """Return the bytes that the ranks which work on a reader take for an input."""
        plan, port = self.placed, reader.inputs[number]
        ranks = self._ranks_on(reader)
        if plan.combines(reader) and (number == 0 or isinstance(reader.action, Aggregate)):
            instances = range(plan.instances(reader.scope))
            members = sum(len(plan.members(reader, i)) for i in instances)
            sliced = reader.sliced and number == 0 and not plan.own_copies
            copies = members if sliced else members * ranks / len(instances)
            return copies * layout.nbytes * self.firing_rate(reader)
        return ranks * layout.nbytes * self.mean(lambda step: self._is_read(reader, port, step))

    def _is_read(self, reader: PlanOperator, port: PlanPort, step: int) -> bool:
        """Tell whether a rank looks at what an input reads in a step."""
        firing = self.firing
        at_reader = port.crosses and not kept_by_source(self.placed, port)
        if at_reader and firing.keeps(port):
            return firing.fires(self.placed.operator(port.source), step)
        if not firing.delivers(port, step):
            return False
        return firing.holds(port, reader) or firing.fires(reader, step)

    def _ranks_on(self, operator: PlanOperator) -> int:
        """Return how many ranks work on an operator."""
        if operator.scope == REPLICA or operator.sliced or self.placed.own_copies:
            return self.plan.replicas
        return self.plan.instances(operator.scope)

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
