"""From declared handles to a logical graph: what the sinks depend on, with names."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace

from flowml.actions import Assign, Evaluate, Until, Update
from flowml.edges import Edge
from flowml.errors import FlowmlError, GraphError, raise_all
from flowml.graph import LogicalGraph, Operator, Port, Table
from flowml.handles import Declared, DeclaredTable, Handle
from flowml.types import calling_site


def collect(sinks: Sequence[Handle], name: str) -> LogicalGraph:
    """Return the graph that the sinks close over.

    Parameters
    ----------
    sinks : sequence of Handle
        Writes, evaluations and ends.

    Raises
    ------
    GraphError
        All of: a sink that does nothing, a name used twice, no sink at all.

    Notes
    -----
    Operators stand in the order of declaration, which is a topological one: an operator can
    only be given handles that exist.
    """
    site = calling_site()
    where = f"graph {name!r} ({site})"
    errors: list[FlowmlError] = []
    if not sinks:
        raise GraphError(
            where,
            "a graph needs at least one write, evaluation or end",
            "none",
            "Pass what fl.update or fl.assign returned.",
        )
    for sink in sinks:
        errors += _sink_errors(where, sink)
    raise_all(where, errors)
    operators, tables = _reach(sinks)
    names = _names(operators, tables, errors)
    raise_all(where, errors)
    return LogicalGraph(
        name,
        tuple(_operator(o, names) for o in operators),
        tuple(Table(t.name, t.init, t.scope, t.site, t.on) for t in tables),
        site,
    )


def _sink_errors(where: str, sink: object) -> list[FlowmlError]:
    fix = "Pass what fl.update, fl.assign, fl.evaluate or fl.until returned."
    if not isinstance(sink, Handle):
        return [GraphError(where, "a sink must be a handle", f"a {type(sink).__name__}", fix)]
    of = sink.of
    if isinstance(of, DeclaredTable) or not isinstance(
        of.action, Update | Assign | Evaluate | Until
    ):
        return [
            GraphError(where, "a sink must write a table, evaluate or end the run", of.label, fix)
        ]
    if sink.edge != Edge():
        return [
            GraphError(
                where,
                "a sink is read by nobody, so it promises nothing",
                f"{of.label} with {sink.edge.describe()}",
                "Mark the value that is written instead.",
            )
        ]
    return []


def _reach(sinks: Sequence[Handle]) -> tuple[list[Declared], list[DeclaredTable]]:
    operators: dict[int, Declared] = {}
    tables: dict[int, DeclaredTable] = {}
    pending: list[Declared | DeclaredTable] = [s.of for s in sinks]
    while pending:
        found = pending.pop()
        if isinstance(found, DeclaredTable):
            tables.setdefault(id(found), found)
        elif found.order not in operators:
            operators[found.order] = found
            pending.extend(h.of for h in found.inputs)
            pending.extend(h.edge.ids.of for h in found.inputs if h.edge.ids is not None)
            if found.writes is not None:
                pending.append(found.writes)
    ordered = [operators[k] for k in sorted(operators)]
    return ordered, sorted(tables.values(), key=lambda t: t.name)


def _names(
    operators: list[Declared], tables: list[DeclaredTable], errors: list[FlowmlError]
) -> dict[int, str]:
    taken: dict[str, Declared | DeclaredTable] = {}
    names: dict[int, str] = {}

    def take(thing: Declared | DeclaredTable, name: str) -> None:
        if name in taken:
            both = isinstance(thing, DeclaredTable) and isinstance(taken[name], DeclaredTable)
            errors.append(
                GraphError(
                    thing.label,
                    f"the name {name!r} is already taken by {taken[name].label}",
                    fix="Pass the handle of one of them everywhere, or rename the other."
                    if both
                    else "Give one of them another name=.",
                )
            )
        taken[name] = thing
        names[id(thing)] = name

    for table in tables:
        take(table, table.name)
    for operator in operators:
        if operator.name is not None:
            take(operator, operator.name)
    following: dict[str, int] = {}
    for operator in operators:
        if operator.name is None:
            name, number = operator.suggested, following.get(operator.suggested, 2)
            while name in taken:
                name, number = f"{operator.suggested}_{number}", number + 1
            following[operator.suggested] = number
            take(operator, name)
    return names


def _operator(declared: Declared, names: dict[int, str]) -> Operator:
    ports = tuple(
        Port(names[id(h.of)], h.output, _named(h.edge, names), isinstance(h.of, DeclaredTable))
        for h in declared.inputs
    )
    return Operator(
        names[id(declared)], declared.kind, ports, declared.outputs, declared.action, declared.site
    )


def _named(edge: Edge, names: dict[int, str]) -> Edge:
    """Return an edge whose row ids are named by (operator, output) instead of by a handle."""
    if edge.ids is None:
        return edge
    return replace(edge, ids=(names[id(edge.ids.of)], edge.ids.output))


def closest(word: str, known: Sequence[str]) -> str:
    """Return " Did you mean 'x'?" for the known word nearest to ``word``, or nothing."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"Did you mean {near[0]!r}? " if near else ""
