"""What the replicas of a worker wait for, how far apart they are, and what their codecs have sent.

The one place that looks into a gang for those who watch it: synchronous and loose runs keep this in
different ways.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from flowml.freshness import loosest, staleness_at
from flowml.plan import Plan
from flowml.runtime.board import Board
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

    def __init__(self, rule: Any, loose: LoosePlan, loop: Any) -> None:
        self._rule, self._loop = rule, loop
        self._reads = [(loop.replica.pulls[n], loose.reads[n]) for n in loose.turns[0].reads]
        self._into = {
            gate.spec.name: f"{gate.operator.inputs[0].source} -> {gate.spec.name}"
            for gate in loose.gates
        }

    def __call__(self, left: Bucket) -> str:
        """Return the edge that is full or not fresh enough for the step, or TRANSFER."""
        step, rule = self._loop.clock, self._rule
        if rule is None:  # the tables are on another host, and so is what is known of them
            return TRANSFER
        due = [read for pull, read in self._reads if pull.is_due(step)]
        members = self._loop.replica.members.items()
        full = (rule.room(team, member) for team, member in members)
        missing = next((m for m in full if m is not None), None) or rule.missing(due, step)
        if missing is None:
            return TRANSFER
        *_, source, reader = missing.edge.split("-> ")
        return f"{source.strip()} -> {reader}" if source.strip() else self._into.get(reader, reader)


def name_waits(gang: Any, board: Board) -> None:
    """Let the meters of a gang's ranks name what is waited for."""
    rule = _rule(gang)
    if gang.spec.loose is None:
        for rank in gang.ranks:
            board.meters[rank].wait_of = BarrierWaits(gang.spec.plan)
    for loop in _loops(gang):
        waits = PromiseWaits(rule, gang.spec.loose, loop)
        board.meters[loop.replica.number].wait_of = waits


def clocks(gang: Any) -> list[int]:
    """Return the steps that each replica of a loose run has delivered; nothing for a sync run."""
    rule, plan = _rule(gang), gang.spec.plan
    if rule is None or not rule.teams:
        return []
    team = rule.teams[0]
    kind = team.spec.kind
    return [team.clock(plan.instance_of(kind, rank)) for rank in range(plan.replicas)]


def lags(gang: Any, board: Board) -> list[Lag]:
    """Return how late each loose edge is for each replica of a worker; nothing for a sync run.

    Notes
    -----
    Of replicas inside a step only: what one that waits would miss is more than it is shown.
    """
    rule, loose, found = _rule(gang), gang.spec.loose, []
    for loop in () if rule is None else _loops(gang):
        rank, step = loop.replica.number, loop.clock
        said = board.read(rank)
        if said.operator_index == WAITING or said.step != step:
            continue
        for read in loose.reads:
            if loosest(read.promises) > 0 and read.gate >= 0:
                late = rule.lateness(read, step)
                found.append(_lag(f"{read.source} -> {read.reader}", rank, late, read, step))
        for gate in rule.gates:
            if loosest(gate.spec.promises) > 0 and not gate.spec.push:
                ahead = max(0, gate.fired * gate.spec.every - step)
                found.append(_lag(_edge_into(loose, gate), rank, ahead, gate.spec, step))
    return found


def _edge_into(loose: LoosePlan, gate: Any) -> str:
    return f"{loose.gates[gate.number].operator.inputs[0].source} -> {gate.spec.name}"


def _lag(edge: str, rank: int, steps: int, promised: Any, step: int) -> Lag:
    bound = staleness_at(promised.promises, step)
    return Lag(edge, rank, steps, None if math.isinf(bound) else int(bound))


def sent(gang: Any) -> list[Sent]:
    """Return what each edge with a codec has carried so far, from the replicas of a worker."""
    found: dict[str, Sent] = {}
    for replica in (loop.replica for loop in _loops(gang)):
        for entry in replica.inputs.values():
            if entry._codec is None:
                continue
            edge = f"{entry.gate.operator.inputs[0].source} -> {entry.gate.spec.name}"
            raw = replica.rank.committed // entry.gate.spec.every * entry._layout.nbytes
            before = found.get(edge, Sent(edge, 0, 0))
            coded = before.sent_bytes + entry._codec.sent_bytes
            found[edge] = Sent(edge, before.raw_bytes + raw, coded)
    return list(found.values())


def _rule(gang: Any) -> Any:
    """Return the rule of promises of a loose gang that is with the tables, or None."""
    place = getattr(gang, "_place", None)
    return None if place is None else place.rule


def _loops(gang: Any) -> tuple[Any, ...]:
    """Return the step loops of the replicas of a loose gang."""
    found: tuple[Any, ...] = getattr(gang, "_loops", ())
    return found
