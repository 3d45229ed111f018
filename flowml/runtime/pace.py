"""What the replicas of a worker wait for, how far apart they are, and what their codecs have sent.

The one place that looks into a gang for those who watch it: synchronous and loose runs keep this in
different ways.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from flowml.freshness import loosest, staleness_at
from flowml.plan import Plan
from flowml.runtime.domain import layout_of_port
from flowml.runtime.loose_plan import LoosePlan
from flowml.runtime.meter import TRANSFER, WAITING, Bucket


class Lag(NamedTuple):
    """How late an edge is for one replica that is inside a step.

    Attributes
    ----------
    edge : str
        "source -> reader".
    replica : int
    steps : int
        Steps that are missing from what it has read, or fewer: some may have come since.
    bound : int or None
        Steps that the edge allows at that step; None: no bound.
    """

    edge: str
    replica: int
    steps: int
    bound: int | None


class Sent(NamedTuple):
    """What has gone over an edge with a codec, from the replicas of one worker. Bytes.

    Attributes
    ----------
    edge : str
    raw_bytes, sent_bytes : int
        Before and after the codec.
    """

    edge: str
    raw_bytes: int
    sent_bytes: int


class BarrierWaits:
    """Names what a rank of a synchronous run waits for: the edges behind the phase it leaves."""

    def __init__(self, plan: Plan) -> None:
        self._phase = [operator.phase for operator in plan.steps]
        self._edges = [_crossing(plan, phase) for phase in range(plan.phases)]
        self._last = 0

    def __call__(self, left: Bucket) -> str:
        """Return the edges; a wait right after a wait is for those of the next phase."""
        if isinstance(left, int):
            self._last = self._phase[left]
        else:
            self._last = (self._last + 1) % len(self._edges)
        return self._edges[self._last]


def _crossing(plan: Plan, phase: int) -> str:
    """Return the edges that make the ranks meet after a phase, with commas between."""
    edges = [
        f"{port.source} -> {reader.name}"
        for reader in plan.steps
        for port in reader.inputs
        if port.crosses and not port.table and plan.operator(port.source).phase == phase
    ]
    writes = [f"{o.name} -> {o.writes}" for o in plan.steps if o.phase == phase and o.writes]
    return ", ".join(dict.fromkeys(edges or writes)) or "barrier"


class PromiseWaits:
    """Names what a replica of a loose run waits for: an edge, or the lock and its own copies."""

    def __init__(self, rule: Any, loose: LoosePlan, rank: int) -> None:
        self._rule, self._rank = rule, rank
        self._into = {
            gate.spec.name: f"{gate.operator.inputs[0].source} -> {gate.spec.name}"
            for gate in loose.gates
        }

    def __call__(self, left: Bucket) -> str:
        """Return the edge that is not fresh enough, the one that is full, or TRANSFER."""
        missing = self._rule.room(self._rank) or self._rule.missing(self._rank)
        if missing is None:
            return TRANSFER
        *_, source, reader = missing.edge.split("-> ")
        return f"{source.strip()} -> {reader}" if source.strip() else self._into[reader]


def name_waits(gang: Any) -> None:
    """Let the meters of a gang's ranks name what is waited for."""
    rule = _rule(gang)
    for rank in gang.ranks:
        gang.board.meters[rank].wait_of = (
            BarrierWaits(gang.spec.plan)
            if rule is None
            else PromiseWaits(rule, gang.spec.loose, rank)
        )


def clocks(gang: Any) -> list[int]:
    """Return the steps that each replica of a loose run has delivered; nothing for a sync run."""
    rule = _rule(gang)
    if rule is None:
        return []
    return [int(rule.clock(rank)) for rank in range(gang.spec.plan.replicas)]


def lags(gang: Any) -> list[Lag]:
    """Return how late each loose edge is for each replica of a worker; nothing for a sync run.

    Notes
    -----
    Of replicas inside a step only: what one that waits would miss is more than it is shown.
    """
    rule, loose = _rule(gang), gang.spec.loose
    if rule is None:
        return []
    found = []
    numbers = {gate.spec.name: n for n, gate in enumerate(loose.gates)}
    tables = {gate.spec.table: n for n, gate in enumerate(loose.gates) if gate.spec.table}
    for rank in gang.ranks:
        clock, said = rule.clock(rank), gang.board.read(rank)
        if said.operator_index == WAITING or said.step != clock:
            continue
        for read in loose.reads:
            if loosest(read.promises) > 0 and read.table in tables:
                edge = f"{read.table} -> {read.reader}"
                late = clock - _complete(rule, loose, tables[read.table])
                found.append(_lag(edge, rank, late, read.promises, clock))
        for gate in loose.gates:
            if loosest(gate.spec.promises) > 0 and not gate.spec.push:
                ahead = rule.fired(numbers[gate.spec.name]) - clock
                edge = f"{gate.operator.inputs[0].source} -> {gate.spec.name}"
                found.append(_lag(edge, rank, ahead, gate.spec.promises, clock))
    return found


def _complete(rule: Any, loose: LoosePlan, number: int) -> int:
    """Return the steps that are complete behind a gate: of all who push, or of its firings."""
    spec, least = loose.gates[number].spec, int(rule.least())
    return least if spec.push else max(least, (int(rule.fired(number)) + 1) * spec.every - 1)


def _lag(edge: str, rank: int, steps: int, promises: Any, clock: int) -> Lag:
    bound = staleness_at(promises, clock)
    return Lag(edge, rank, max(0, steps), None if math.isinf(bound) else int(bound))


def sent(gang: Any) -> list[Sent]:
    """Return what each edge with a codec has carried so far, from the replicas of a worker."""
    found: dict[str, Sent] = {}
    for loop in getattr(gang, "_loops", ()):
        replica, plan = loop.replica, gang.spec.plan
        for number, codec in replica.codecs.items():
            gate = gang.spec.loose.gates[number]
            port = gate.operator.inputs[0]
            edge = f"{port.source} -> {gate.spec.name}"
            times = replica.rank.committed // gate.spec.every
            raw = times * layout_of_port(plan, gang.spec.layouts, port).nbytes
            before = found.get(edge, Sent(edge, 0, 0))
            found[edge] = Sent(edge, before.raw_bytes + raw, before.sent_bytes + codec.sent_bytes)
    return list(found.values())


def _rule(gang: Any) -> Any:
    """Return the rule of promises that a loose gang shares, or None."""
    center = getattr(gang, "_center", None)
    return None if center is None else center.rule
