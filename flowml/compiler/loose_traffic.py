"""What replicas at their own pace read and deliver in a step, as the ledger of a run counts it.

A replica copies a table before a step in which somebody reads it, if it has changed; what it made
is written to its queue at a gate, as its codec makes it, and applied there by whoever sets it off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from flowml.actions import REPLICA, Aggregate
from flowml.compiler.layouts import layout_of_source
from flowml.compiler.traffic import EdgeTraffic, Traffic
from flowml.plan import PlanOperator
from flowml.protocol.promise_rule import ReadSpec
from flowml.runtime.loose_plan import Gate, LoosePlan, split


@dataclass(frozen=True)
class LooseTraffic:
    """Counts over the steps of one cycle of periods of a loose plan."""

    traffic: Traffic
    loose: LoosePlan

    @classmethod
    def of(cls, traffic: Traffic) -> LooseTraffic:
        """Return the counter of a loose plan."""
        return cls(traffic, split(traffic.plan))

    def edge(self, name: str, number: int, promise: str) -> EdgeTraffic:
        """Return what an input of an operator carries."""
        plan = self.traffic.plan
        reader = plan.operator(name)
        port, edge = reader.inputs[number], plan.edge_name(reader, number)
        gate = next((g for g in self.loose.gates if g.operator.name == name), None)
        shared = port.table and plan.table(port.source).scope != REPLICA
        written: float | None = 0.0
        read: float | None = 0.0
        if plan.replicas > 1 and gate is not None and number == 0:
            written = self._delivered(gate)
        elif plan.replicas > 1 and shared and reader.scope == REPLICA:
            read = self._copied(reader, number)
        else:
            return EdgeTraffic(edge, promise, port.every, False, 0.0, 0.0, 0.0, 0.0)
        return EdgeTraffic(edge, promise, port.every, True, written, read, 0.0, 0.0)

    def read_rate(self) -> float:
        """Return in which part of the steps a replica copies a table."""
        tables = {read.table for read in self.loose.reads}
        rates = [self._table_rate(t) * self._changed(t) for t in tables]
        return max(rates, default=0.0)

    def deliver_rate(self) -> float:
        """Return in which part of the steps a replica has something for a gate."""
        return max((self._gate_rate(gate) for gate in self.loose.gates), default=0.0)

    def gate_bytes(self) -> float:
        """Return the bytes of one contribution to each gate, decoded; unknown ones are left out."""
        layouts = [
            layout_of_source(self.traffic.plan, self.traffic.layouts, gate.operator.inputs[0])
            for gate in self.loose.gates
        ]
        return float(sum(layout.nbytes for layout in layouts if layout is not None))

    def _delivered(self, gate: Gate) -> float | None:
        port, plan = gate.operator.inputs[0], self.traffic.plan
        nbytes: float | None = self.traffic.payloads.get(gate.operator.name)
        if nbytes is None and port.codec is None:
            layout = layout_of_source(plan, self.traffic.layouts, port)
            nbytes = None if layout is None else float(layout.nbytes)
        return None if nbytes is None else plan.replicas * nbytes * self._gate_rate(gate)

    def _gate_rate(self, gate: Gate) -> float:
        firing, port = self.traffic.firing, gate.operator.inputs[0]
        return self.traffic.mean(lambda step: firing.delivers(port, step))

    def _copied(self, reader: PlanOperator, number: int) -> float:
        """Return what is copied of a table for an edge: once a step, for the first that reads."""
        plan, table = self.traffic.plan, reader.inputs[number].source
        edges = [r for r in self.loose.reads if r.table == table]
        mine = [r.reader for r in edges].index(reader.name)
        if any(p.source == table and p.table for p in reader.inputs[:number]):
            return 0.0
        rate = self.traffic.mean(
            lambda step: (
                self._is_due(edges[mine], step)
                and not any(self._is_due(other, step) for other in edges[:mine])
            )
        )
        nbytes = self.traffic.layouts[table, -1].nbytes
        return plan.replicas * nbytes * rate * self._changed(table)

    def _is_due(self, read: ReadSpec, step: int) -> bool:
        if read.every > 1:
            return step % read.every == 0
        return self.traffic.firing.fires(self.traffic.plan.operator(read.reader), step)

    def _table_rate(self, table: str) -> float:
        edges = [r for r in self.loose.reads if r.table == table]
        return self.traffic.mean(lambda step: any(self._is_due(r, step) for r in edges))

    def _changed(self, table: str) -> float:
        """Return in which part of its reads a table has changed since the read before.

        Notes
        -----
        It has if the replica itself delivered in between. Else somebody else may have: each with
        the same chance where every contribution makes a version, all together where a sum does.
        """
        gate = next((g for g in self.loose.gates if g.spec.table == table), None)
        reads = self._table_rate(table)
        if gate is None or not reads:
            return 0.0
        own = self._gate_rate(gate) / reads
        if own >= 1 or not self.makes_a_version_each(gate):
            return min(1.0, own)
        return float(1 - (1 - own) ** self.traffic.plan.replicas)

    @staticmethod
    def makes_a_version_each(gate: Gate) -> bool:
        """Tell whether each contribution changes the table by itself, at the end of a run."""
        last = gate.spec.promises[-1][1]
        if isinstance(gate.operator.action, Aggregate):
            return math.isinf(last)
        return last > 0
