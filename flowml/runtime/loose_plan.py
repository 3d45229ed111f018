"""A plan with stale or async edges, in two parts: what each replica does, and what all share.

A replica computes from private copies of the tables, at its own pace. Where its values flow into
something global (an aggregate, or a table that it pushes to) stands a *gate*; what the gate's
firing leads to, up to the write of a table, is done at once by whoever made it fire.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from flowml.actions import GLOBAL, REPLICA, Aggregate
from flowml.freshness import loosest
from flowml.plan import Plan, PlanOperator
from flowml.protocol.promise_rule import GateSpec, ReadSpec

QUEUE_STEPS = 16
"""Steps of one replica that a gate holds where no promise bounds them."""


@dataclass(frozen=True)
class Gate:
    """Where contributions of replicas become something global."""

    spec: GateSpec
    operator: PlanOperator
    behind: tuple[PlanOperator, ...]
    """What runs on its output, in the order of the step; empty behind a push."""


@dataclass(frozen=True)
class LoosePlan:
    """The parts of a loose plan.

    Attributes
    ----------
    plan : Plan
        All of it.
    local : Plan
        The operators of the replicas; every table is private, and only local ones are written.
    gates : tuple of Gate
    reads : tuple of ReadSpec
        The edges out of global tables into operators of the replicas.
    queue : int
        Steps of one replica that a gate may hold.
    """

    plan: Plan
    local: Plan
    gates: tuple[Gate, ...]
    reads: tuple[ReadSpec, ...]
    queue: int


def is_loose(plan: Plan) -> bool:
    """Tell whether any edge promises less than sync, or has a codec: then values pass gates."""
    return any(loosest(p.promises) > 0 or p.codec is not None for o in plan.steps for p in o.inputs)


def split(plan: Plan) -> LoosePlan:
    """Return the parts of a loose plan that the compiler has accepted."""
    gates = tuple(_gate(plan, o) for o in plan.steps if _is_gate(plan, o))
    reads = tuple(
        ReadSpec(p.source, o.name, p.promises, p.every)
        for o in plan.steps
        if o.scope == REPLICA
        for p in o.inputs
        if p.table and plan.table(p.source).scope == GLOBAL
    )
    bounds = [loosest(r.promises) for r in reads] + [loosest(g.spec.promises) for g in gates]
    widest = max(bounds, default=0.0)
    queue = QUEUE_STEPS if math.isinf(widest) else int(2 * widest) + 2
    longest = max((g.spec.every for g in gates), default=1)
    return LoosePlan(plan, _local(plan), gates, reads, max(queue, longest, 2))


def _is_gate(plan: Plan, operator: PlanOperator) -> bool:
    """Tell whether values of replicas flow into an operator that is global; also of only one."""
    if operator.scope != GLOBAL or not operator.inputs or operator.inputs[0].table:
        return False
    return plan.operator(operator.inputs[0].source).scope == REPLICA


def _local(plan: Plan) -> Plan:
    operators = tuple(
        replace(o, phase=0, inputs=tuple(replace(p, crosses=False) for p in o.inputs))
        for o in plan.steps
        if o.scope == REPLICA
    )
    tables = tuple(t if t.scope == REPLICA else replace(t, writes=()) for t in plan.tables)
    return replace(plan, operators=operators, tables=tables, own_copies=True)


def _gate(plan: Plan, operator: PlanOperator) -> Gate:
    port = operator.inputs[0]
    push = not isinstance(operator.action, Aggregate)
    behind: list[PlanOperator] = []
    known = {operator.name}
    for other in plan.steps:
        if other.scope == GLOBAL and any(p.source in known for p in other.inputs if not p.table):
            behind.append(other)
            known.add(other.name)
    written = operator.writes or next((o.writes for o in behind if o.writes), None) or ""
    spec = GateSpec(operator.name, port.promises, push, written, port.every)
    return Gate(spec, operator, tuple(behind))
