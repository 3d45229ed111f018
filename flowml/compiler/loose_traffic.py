"""What replicas at their own pace read and deliver in a step, as the ledger of a run counts it.

A replica copies a table before a step in which somebody reads it, if it has changed; what it made
is written to its queue at a gate, as codec and filter make it, and applied there by whoever sets it
off. What depends on the values themselves (filters, rows by key) is known from a measurement only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from flowml.actions import GLOBAL, Aggregate, Update
from flowml.compiler.layouts import layout_of_source
from flowml.compiler.traffic import EdgeTraffic, Hosts, Traffic
from flowml.plan import PlanOperator, PlanPort
from flowml.protocol.promise_specs import ReadSpec
from flowml.runtime.group_answers import group_readers
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

    def edge(self, name: str, number: int, promise: str, apart: Hosts) -> EdgeTraffic:
        """Return what an input of an operator carries.

        Parameters
        ----------
        apart : tuple of tuple of int
            Hosts that messages are counted for.
        """
        plan = self.traffic.plan
        reader = plan.operator(name)
        port, edge = reader.inputs[number], plan.edge_name(reader, number)
        written: float | None = 0.0
        read: float | None = 0.0
        gate = next((g for g in self.loose.gates if g.operator.name == name), None)
        if plan.replicas > 1 and gate is not None and number == 0:
            written = self._delivered(gate)
        elif plan.replicas > 1 and reader.scope != GLOBAL and plan.scope_of(port) == GLOBAL:
            read = self._received(reader, number)
        else:
            return EdgeTraffic(edge, promise, port.every, False, 0.0, 0.0, 0.0, 0.0)
        share = 1 - len(apart[0]) / plan.replicas  # of those who are not with the tables
        nbytes = None if written is None or read is None else share * (written + read)
        asked = 2 * share * self._askers(port) * self._asks(name, number)
        return EdgeTraffic(edge, promise, port.every, True, written, read, asked, nbytes)

    def _askers(self, port: PlanPort) -> int:
        """Return how many receive what a port reads: a group's first replica does so for all."""
        plan = self.traffic.plan
        in_group = not port.table and port.source in group_readers(plan)
        return len(plan.groups) if in_group else plan.replicas

    def _asks(self, name: str, number: int) -> float:
        """Return how often a step asks for an input; deliveries go along."""
        source = self.traffic.plan.operator(name).inputs[number].source
        found = (r for r in self.loose.reads if (r.source, r.reader) == (source, name))
        return max((self._rate(read) for read in found), default=0.0)

    def read_rate(self) -> float:
        """Return in which part of the steps a replica copies something."""
        return max((self._rate(r) * self._changed(r) for r in self.loose.reads), default=0.0)

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

    # -- deliveries ----------------------------------------------------------------------------

    def _delivered(self, gate: Gate) -> float | None:
        port = gate.operator.inputs[0]
        edge = self.traffic.plan.edge_name(gate.operator, 0)
        depends = port.codec is not None or port.threshold is not None or port.ids is not None
        nbytes = self._bytes(edge, port, depends=depends)
        members, action = self.loose.teams[gate.spec.team].members, gate.operator.action
        if nbytes is None:
            return None
        if isinstance(action, Update) and action.rule.reads:  # what was read goes along
            nbytes += self.traffic.layouts[action.table, -1].nbytes
        return members * nbytes * self._gate_rate(gate)

    def _bytes(self, edge: str, port: PlanPort, *, depends: bool) -> float | None:
        """Return the bytes of one value on an edge, measured if they depend on more than shapes."""
        layout = layout_of_source(self.traffic.plan, self.traffic.layouts, port)
        if depends or layout is None:
            return self.traffic.payloads.get(edge)
        return float(layout.nbytes)

    def _gate_rate(self, gate: Gate) -> float:
        firing, port = self.traffic.firing, gate.operator.inputs[0]
        return self.traffic.mean(lambda step: firing.delivers(port, step))

    @staticmethod
    def makes_a_version_each(gate: Gate) -> bool:
        """Tell whether each contribution changes the table by itself, at the end of a run."""
        last = gate.spec.promises[-1][1]
        if isinstance(gate.operator.action, Aggregate):
            return math.isinf(last) and not gate.spec.quorum
        return last > 0

    # -- reads ---------------------------------------------------------------------------------

    def _received(self, reader: PlanOperator, number: int) -> float | None:
        """Return what all replicas copy for an edge in a step."""
        plan, port = self.traffic.plan, reader.inputs[number]
        edges = [r for r in self.loose.reads if r.source == port.source]
        mine = next(r for r in edges if r.reader == reader.name)
        if any(p.source == port.source and p.table == port.table for p in reader.inputs[:number]):
            return 0.0
        edge = plan.edge_name(reader, number)
        nbytes = self._bytes(edge, port, depends=port.codec is not None or port.ids is not None)
        if nbytes is None:
            return None
        if mine.answer or port.ids is not None:  # each reader gets its own
            return self._askers(port) * nbytes * self._rate(mine)
        before = edges[: edges.index(mine)]
        rate = self.traffic.mean(
            lambda step: (
                self._is_due(mine, step) and not any(self._is_due(other, step) for other in before)
            )
        )
        return plan.replicas * nbytes * rate * self._changed(mine)

    def _is_due(self, read: ReadSpec, step: int) -> bool:
        if read.answer or read.every > 1:
            return read.is_due(step)
        return self.traffic.firing.fires(self.traffic.plan.operator(read.reader), step)

    def _rate(self, read: ReadSpec) -> float:
        return self.traffic.mean(lambda step: self._is_due(read, step))

    def _changed(self, read: ReadSpec) -> float:
        """Return in which part of its reads a table has changed since the read before.

        Notes
        -----
        It has if the replica itself delivered in between. Else somebody else may have: each with
        the same chance where every contribution makes a version, all together where a sum does.
        """
        edges = [r for r in self.loose.reads if r.source == read.source]
        reads = self.traffic.mean(lambda step: any(self._is_due(r, step) for r in edges))
        if read.gate < 0 or not reads:
            return 0.0
        if read.answer:
            return 1.0
        gate = self.loose.gates[read.gate]
        own = self._gate_rate(gate) / reads
        if own >= 1 or not self.makes_a_version_each(gate):
            return min(1.0, own)
        return float(1 - (1 - own) ** self.traffic.plan.replicas)
