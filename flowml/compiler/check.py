"""Stage 1, check: infer the scope of every operator and refuse what cannot mean anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from flowml.actions import (
    GLOBAL,
    REPLICA,
    Aggregate,
    Assign,
    Evaluate,
    Load,
    Until,
    Update,
)
from flowml.compiler.filters import filter_errors
from flowml.compiler.promises import promise_errors
from flowml.compiler.rows import row_errors
from flowml.errors import FlowmlError, GraphError, raise_all
from flowml.graph import LogicalGraph, Operator, Port, coarser


def check(graph: LogicalGraph) -> LogicalGraph:
    """Return the graph with the scope of each operator filled in.

    Raises
    ------
    GraphError
        Everything that is wrong with the graph, in one error.

    Notes
    -----
    Idempotent: a checked graph comes back equal.
    """
    errors: list[FlowmlError] = []
    scopes = _infer_scopes(graph, errors)
    scoped = replace(
        graph, operators=tuple(replace(o, scope=scopes[o.name]) for o in graph.operators)
    )
    for find in _CHECKS:
        errors += find(scoped)
    raise_all(graph.label, errors)
    return scoped


def _infer_scopes(graph: LogicalGraph, errors: list[FlowmlError]) -> dict[str, str]:
    scopes = {t.name: t.scope for t in graph.tables}
    for operator in graph.operators:
        scopes[operator.name] = _scope(operator, graph, scopes, errors)
    return scopes


def _scope(
    operator: Operator, graph: LogicalGraph, scopes: dict[str, str], errors: list[FlowmlError]
) -> str:
    found = [scopes[p.source] for p in operator.inputs]
    found += [scopes[p.edge.ids[0]] for p in operator.inputs if p.edge.ids is not None]
    groups = {s for s in found if s not in (GLOBAL, REPLICA)}
    if len(groups) > 1:
        errors.append(
            GraphError(
                operator.label,
                "inputs must come from one grouping",
                " and ".join(sorted(groups)),
                "A run has one grouping of its replicas (groups=).",
            )
        )
    if operator.writes:
        return scopes[operator.writes]
    if isinstance(operator.action, Aggregate):
        return _aggregate_scope(operator, operator.action, found[0], errors)
    if not found:
        return REPLICA
    if isinstance(operator.action, Until | Evaluate) and found[0] != GLOBAL:
        errors.append(
            GraphError(
                operator.label,
                f"{operator.kind} needs a value of scope global",
                found[0],
                "Aggregate it first, or name a global table.",
            )
        )
        return GLOBAL
    return min(found, key=lambda s: (coarser(s, REPLICA), coarser(s, "group")))


def _aggregate_scope(
    operator: Operator, action: Aggregate, source: str, errors: list[FlowmlError]
) -> str:
    scope = action.within or GLOBAL
    if not coarser(scope, source):
        errors.append(
            GraphError(
                operator.label,
                f"an aggregate to scope {scope} needs values of a finer scope",
                source,
                "There is nothing to combine: use the value itself.",
            )
        )
    return scope


def _needs_load(graph: LogicalGraph) -> list[FlowmlError]:
    if graph.loads():
        return []
    return [
        GraphError(
            graph.label,
            "the graph has no load operator; nothing would run",
            fix="Declare one with fl.load(source, batch_size=...).",
        )
    ]


def _one_grouping(graph: LogicalGraph) -> list[FlowmlError]:
    names = {t.scope: t.site for t in graph.tables}
    names |= {o.scope: o.site for o in graph.operators}
    groups = {n: s for n, s in names.items() if n not in (GLOBAL, REPLICA)}
    if len(groups) < 2:
        return []
    got = ", ".join(f"{n!r} ({s})" for n, s in sorted(groups.items()))
    return [
        GraphError(
            graph.label,
            "a graph may name one grouping of its replicas",
            got,
            "Use one name: within= and scope= must agree.",
        )
    ]


def _writes_in_order(graph: LogicalGraph) -> list[FlowmlError]:
    place = {o.name: number for number, o in enumerate(graph.operators)}
    errors: list[FlowmlError] = []
    for table in graph.tables:
        writers = graph.writers(table.name)
        for first, second in pairwise(writers):
            if not _reaches(graph, place, first, second):
                errors.append(
                    GraphError(
                        f"table {table.name!r} ({table.site})",
                        "two writes of a table in one step need an order",
                        f"{first.name!r} ({first.site}) and {second.name!r} ({second.site}), "
                        "with no path between them",
                        "Let the second read what the first returned.",
                    )
                )
    return errors


def _reaches(graph: LogicalGraph, place: dict[str, int], first: Operator, second: Operator) -> bool:
    """Tell whether a path leads from ``first`` to ``second``.

    Notes
    -----
    Operators stand in the order of the step, so a search back from ``second`` ends where ``first``
    stands: it looks at what lies between the two, not at the whole graph.
    """
    pending, seen = [second.name], {second.name}
    while pending:
        for port in graph.operator(pending.pop()).inputs:
            if port.source == first.name and not port.table:
                return True
            if port.table or port.source in seen:
                continue
            if place[port.source] > place[first.name]:
                seen.add(port.source)
                pending.append(port.source)
    return False


def _writes_fit_scopes(graph: LogicalGraph) -> list[FlowmlError]:
    errors: list[FlowmlError] = []
    scopes = {o.name: o.scope for o in graph.operators} | {t.name: t.scope for t in graph.tables}
    for operator in graph.operators:
        if not operator.writes:
            continue
        source = scopes[operator.inputs[0].source]
        if isinstance(operator.action, Assign) and coarser(operator.scope, source):
            errors.append(
                GraphError(
                    operator.label,
                    f"table {operator.writes!r} of scope {operator.scope} can be "
                    "assigned only one value an instance",
                    f"one a {source}",
                    'Aggregate first: fl.aggregate("mean", values).',
                )
            )
    return errors


def _edges_make_sense(graph: LogicalGraph) -> list[FlowmlError]:
    errors: list[FlowmlError] = []
    for port, operator in graph.edges():
        where = f"edge {port.source} -> {operator.name} ({operator.site})"
        period = port.edge.period
        if port.table and period is not None and period.keep not in (None, "last"):
            errors.append(
                GraphError(
                    where,
                    "out of a table only keep='last' has a meaning",
                    repr(period.keep),
                    "Leave keep out.",
                )
            )
        if isinstance(operator.action, Evaluate) and not _reads_table(graph, port):
            errors.append(
                GraphError(
                    where,
                    "evaluate needs a table",
                    f"{port.source!r}",
                    "Pass the table, or what its update returned.",
                )
            )
        if isinstance(operator.action, Evaluate) and period is not None:
            errors.append(
                GraphError(
                    where,
                    "an evaluation has its own every=",
                    str(period),
                    "Leave .every out, and pass fl.evaluate(..., every=).",
                )
            )
        if port.edge.until and port.edge.promise is None:
            errors.append(
                GraphError(
                    where,
                    f"the edge needs a promise from step {port.edge.until[-1][0]} on",
                    port.edge.describe(),
                    "Add the later one, as in .sync(until=500).stale(4).",
                )
            )
        if port.edge.members is not None and not isinstance(operator.action, Aggregate):
            errors.append(
                GraphError(
                    where,
                    "a quorum belongs on an edge into an aggregate",
                    operator.kind,
                    "Move .quorum(n) there.",
                )
            )
    return errors


def _reads_table(graph: LogicalGraph, port: Port) -> bool:
    return port.table or isinstance(graph.operator(port.source).action, Update | Assign)


def _loads_have_one_batch_size_meaning(graph: LogicalGraph) -> list[FlowmlError]:
    errors: list[FlowmlError] = []
    for operator in graph.loads():
        action = operator.action
        if isinstance(action, Load) and action.batch_size is None and action.drop_last:
            errors.append(
                GraphError(
                    operator.label,
                    "drop_last has no meaning with the whole share as a batch",
                    "batch_size=None",
                    "Drop one of them.",
                )
            )
    return errors


_CHECKS: tuple[Callable[[LogicalGraph], list[FlowmlError]], ...] = (
    _needs_load,
    _one_grouping,
    _writes_in_order,
    _writes_fit_scopes,
    _edges_make_sense,
    _loads_have_one_batch_size_meaning,
    promise_errors,
    row_errors,
    filter_errors,
)
