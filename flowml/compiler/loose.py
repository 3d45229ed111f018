"""Which graphs with stale or async edges run in this release, and what is said of the others.

They are those of which every replica computes from tables alone, and whose values flow through an
aggregate, or a push, into a global table. What a replica reads of another's step it reads from a
table.
"""

from __future__ import annotations

from flowml.actions import GLOBAL, REPLICA, Aggregate, Evaluate
from flowml.compiler.promises import schedules
from flowml.errors import FlowmlError, PlanError
from flowml.freshness import Promises, loosest
from flowml.graph import LogicalGraph, Operator, Port

Schedules = dict[tuple[str, int], Promises]
Gates = dict[str, tuple[str, ...]]
"""Operator -> the names of the aggregates and pushes that it comes of."""


def loose_refusals(graph: LogicalGraph, promises: Schedules) -> list[FlowmlError]:
    """Return an error for each thing that does not run beside a stale or async edge."""
    coded = any(port.edge.codec is not None for port, _ in graph.edges())
    if all(loosest(p) == 0 for p in promises.values()) and not coded:
        return []
    return shape_refusals(graph)


def shape_refusals(graph: LogicalGraph) -> list[FlowmlError]:
    """Return an error for each thing that keeps replicas from going at their own pace."""
    promises = schedules(graph)
    errors: list[FlowmlError] = []
    gates = _gates(graph)
    for operator in graph.operators:
        if isinstance(operator.action, Evaluate):
            continue
        where = f"{operator.kind} {operator.name!r} ({operator.site})"
        if operator.scope not in (GLOBAL, REPLICA):
            errors.append(_beside(where, f"groups do not run, and it has scope {operator.scope!r}"))
        for number in range(len(operator.inputs)):
            errors += _port_refusals(graph, operator, number, promises[operator.name, number])
        if operator.scope == GLOBAL and len(gates[operator.name]) > 1:
            names = ", ".join(gates[operator.name])
            errors.append(
                _beside(where, f"what is global may come of one sum only, not of {names}")
            )
        if operator.scope == GLOBAL and not gates[operator.name]:
            errors.append(
                _beside(where, "what is global must come of the replicas, not of tables alone")
            )
    for table in graph.tables:
        writers = graph.writers(table.name)
        where = f"table {table.name!r} ({table.site})"
        if table.scope not in (GLOBAL, REPLICA):
            errors.append(_beside(where, f"groups do not run, and it has scope {table.scope!r}"))
        if table.scope == GLOBAL and len(writers) > 1:
            names = " and ".join(repr(w.name) for w in writers)
            errors.append(_beside(where, f"a global table has one write, not {names}"))
    return errors + _shared(graph, gates)


def _shared(graph: LogicalGraph, gates: Gates) -> list[FlowmlError]:
    """Refuse two global tables written from one sum: its firing counts the versions of one."""
    errors: list[FlowmlError] = []
    written: dict[str, str] = {}
    for operator in graph.operators:
        if operator.scope != GLOBAL or operator.writes is None:
            continue
        for gate in gates[operator.name]:
            first = written.setdefault(gate, operator.writes)
            if first != operator.writes:
                where = f"{operator.kind} {operator.name!r} ({operator.site})"
                what = f"one sum writes one global table: {gate!r} already writes {first!r}"
                errors.append(_beside(where, what))
    return errors


def _port_refusals(
    graph: LogicalGraph, operator: Operator, number: int, promises: Promises
) -> list[FlowmlError]:
    port = operator.inputs[number]
    where = f"edge {port.source} -> {operator.name} ({operator.site})"
    found: list[FlowmlError] = []
    values = [s for _, s in promises]
    if values != sorted(values):
        found.append(_beside(where, "a later promise may not be tighter than an earlier one"))
    if port.table:
        if operator.scope == GLOBAL and port.edge.period is not None:
            found.append(_beside(where, ".every stands between a replica and what is global"))
        return found
    source = graph.operator(port.source)
    if operator.scope == REPLICA and source.scope != REPLICA:
        found.append(
            _beside(where, "a replica reads what is global from a table, not in the same step")
        )
    if (
        isinstance(operator.action, Aggregate)
        and port.edge.period is not None
        and loosest(promises) > 0
    ):
        found.append(_beside(where, ".every is for sync edges, and for pushes, not for this sum"))
    if number > 0 and isinstance(operator.action, Aggregate):
        found += _weight_refusals(where, source, operator.inputs[0], port)
    if operator.scope == GLOBAL and source.scope == GLOBAL and port.edge.period is not None:
        found.append(_beside(where, ".every stands between a replica and what is global"))
    return found


def _weight_refusals(where: str, source: Operator, value: Port, weight: Port) -> list[FlowmlError]:
    if source.scope != REPLICA:
        return [_beside(where, "a weight comes of the replica whose value it weighs")]
    if value.edge.period is None:
        return []
    steps = 1 if weight.edge.period is None else weight.edge.period.steps
    if steps == value.edge.period.steps:
        return []
    return [_beside(where, "a weight has the period of the value that it weighs")]


def _gates(graph: LogicalGraph) -> Gates:
    """Return for each global operator where the values of replicas that it depends on enter."""
    found: dict[str, tuple[str, ...]] = {}
    for operator in graph.operators:
        inputs = [graph.operator(p.source) for p in operator.inputs if not p.table]
        if operator.scope != GLOBAL:
            found[operator.name] = ()
        elif any(i.scope != GLOBAL for i in inputs):
            found[operator.name] = (operator.name,)
        else:
            found[operator.name] = tuple(sorted({g for i in inputs for g in found[i.name]}))
    return found


def _beside(where: str, what: str) -> PlanError:
    return refusal(
        where,
        f"{what}, beside a stale or async edge in this release",
        "Change that, or mark all edges .sync().",
    )


def refusal(where: str, what: str, fix: str) -> PlanError:
    """Return the error for what can be declared and does not run yet."""
    return PlanError(where, what, fix=fix)
