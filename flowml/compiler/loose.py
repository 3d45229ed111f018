"""Which graphs whose values pass gates run in this release, and what is said of the others.

Their replicas, or groups of replicas that keep step, compute from what they read; their values
flow through an aggregate, or a push, into what is global. What is global comes of one such gate.
"""

from __future__ import annotations

from flowml.actions import GLOBAL, REPLICA, Aggregate, Evaluate, Update
from flowml.compiler.promises import schedules
from flowml.errors import FlowmlError, PlanError
from flowml.freshness import Promises, loosest
from flowml.graph import LogicalGraph, Operator, Port

Schedules = dict[tuple[str, int], Promises]
Gates = dict[str, tuple[str, ...]]
"""Operator -> the names of the aggregates and pushes that it comes of."""


def loose_refusals(graph: LogicalGraph, promises: Schedules) -> list[FlowmlError]:
    """Return an error for each thing that does not run beside an edge that is not plainly sync."""
    return shape_refusals(graph) if passes_gates(graph, promises) else []


def passes_gates(graph: LogicalGraph, promises: Schedules) -> bool:
    """Tell whether values pass gates: as is_loose of the runtime, which asks the plan."""
    edges = [port.edge for port, _ in graph.edges()]
    return (
        any(loosest(p) > 0 for p in promises.values())
        or any(e.codec is not None or e.filter is not None for e in edges)
        or any(e.members is not None or e.ids is not None for e in edges)
        or any(t.sparse for t in graph.tables)
        or any(o.writes and len(o.inputs) > 1 for o in graph.operators)
        or any(isinstance(o.action, Update) and o.action.rule.reads for o in graph.operators)
    )


def shape_refusals(graph: LogicalGraph) -> list[FlowmlError]:
    """Return an error for each thing that keeps replicas from going at their own pace."""
    promises = schedules(graph)
    errors: list[FlowmlError] = []
    gates = _gates(graph)
    for operator in graph.operators:
        if isinstance(operator.action, Evaluate):
            continue
        where = f"{operator.kind} {operator.name!r} ({operator.site})"
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
        if isinstance(operator.action, Update) and operator.action.rule.reads:
            errors += _reading_refusals(graph, operator)
    for table in graph.tables:
        writers = graph.writers(table.name)
        if table.scope == GLOBAL and len({g for w in writers for g in gates[w.name]}) > 1:
            where = f"table {table.name!r} ({table.site})"
            names = " and ".join(repr(w.name) for w in writers)
            errors.append(
                _beside(where, f"a global table is written behind one sum, not by {names}")
            )
    return errors + _overwritten_refusals(graph)


def _overwritten_refusals(graph: LogicalGraph) -> list[FlowmlError]:
    """Refuse readers of what a write makes of a table that is written again before they read."""
    errors: list[FlowmlError] = []
    order = {operator.name: number for number, operator in enumerate(graph.operators)}
    for reader in graph.operators:
        for port in reader.inputs:
            source = None if port.table else graph.operator(port.source)
            if source is None or source.writes is None or source.scope != GLOBAL:
                continue
            again = [
                writer.name
                for writer in graph.writers(source.writes)
                if order[writer.name] > order[source.name]
                and (reader.scope != GLOBAL or order[writer.name] < order[reader.name])
            ]
            if again:
                where = f"edge {port.source} -> {reader.name} ({reader.site})"
                what = f"it reads the last write of table {source.writes!r}, {again[-1]!r},"
                errors.append(_beside(where, f"{what} not one before it"))
    return errors


def _reading_refusals(graph: LogicalGraph, operator: Operator) -> list[FlowmlError]:
    """Refuse a rule that wants to know what the writer had read, where nobody can say."""
    where = f"update {operator.name!r} ({operator.site})"
    port = operator.inputs[0]
    source = None if port.table else graph.operator(port.source)
    if source is None or operator.scope != GLOBAL or source.scope != REPLICA:
        what = "a rule that compares with what the writer had read is for pushes of replicas"
        return [_beside(where, what)]
    read = any(
        p.table and p.source == operator.writes and p.edge.ids is None
        for o in graph.operators
        if o.scope == REPLICA
        for p in o.inputs
    )
    if read and port.edge.period is None:
        return []
    what = f"the writer must read table {operator.writes!r} whole in each step that it pushes"
    return [_beside(where, what)]


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
        in_group = operator.scope not in (GLOBAL, REPLICA)
        if in_group and graph.table(port.source).scope == GLOBAL and loosest(promises) > 0:
            what = "a group reads a table of all .sync(), or reads what its own write returns,"
            found.append(_beside(where, f"{what} so that its replicas have one version"))
        return found
    source = graph.operator(port.source)
    if source.scope != operator.scope != GLOBAL and source.scope == REPLICA:
        if loosest(promises) > 0:
            found.append(_beside(where, "replicas of a group keep step, so the edge is sync"))
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
    if source.scope == GLOBAL:
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
        f"{what}, beside edges that are not plainly sync, in this release",
        "Change that, or mark all edges .sync() and leave codecs, quorums and rows out.",
    )


def refusal(where: str, what: str, fix: str) -> PlanError:
    """Return the error for what can be declared and does not run yet."""
    return PlanError(where, what, fix=fix)
