"""Stage 4, lower: from the fused graph to the physical plan that every executor runs."""

from __future__ import annotations

from typing import Literal

from flowml.actions import Aggregate, Update
from flowml.compiler.fuse import Fused, Phase
from flowml.compiler.promises import describe, looseness, resolve
from flowml.errors import FlowmlError, PlanError, raise_all
from flowml.graph import LogicalGraph, Operator, Port
from flowml.plan import Placement, Plan, PlanOperator, PlanPort, PlanTable


def lower(fused: Fused, *, blas_threads: int = 1) -> Plan:
    """Return the plan.

    Raises
    ------
    PlanError
        For each edge or table that can be declared and drawn but not run yet.
    """
    placed = fused.placed
    graph = placed.graph
    raise_all(graph.label, _not_yet(graph))
    placements = dict(placed.placements)
    phases = dict(fused.phases)
    operators = tuple(
        _operator(graph, o, placements[o.name], phases[o.name]) for o in graph.operators
    )
    tables = tuple(
        PlanTable(t.name, t.scope, t.init, t.site, tuple(w.name for w in graph.writers(t.name)))
        for t in graph.tables
    )
    return Plan(
        graph.name, graph.form, placed.replicas, placed.groups, operators, tables, blas_threads
    )


def _operator(
    graph: LogicalGraph, operator: Operator, placement: Placement, phase: Phase
) -> PlanOperator:
    ports = tuple(
        _port(graph, operator, number, port, phase.crosses[number])
        for number, port in enumerate(operator.inputs)
    )
    return PlanOperator(
        operator.name,
        operator.kind,
        operator.action,
        operator.scope,
        ports,
        operator.outputs,
        operator.site,
        placement,
        phase.number,
        phase.sliced,
    )


def _port(
    graph: LogicalGraph, reader: Operator, number: int, port: Port, crosses: bool
) -> PlanPort:
    period = port.edge.period
    if period is None:
        return PlanPort(port.source, port.output, port.table, crosses=crosses)
    keep = period.keep or _default_keep(graph, reader, number, port)
    return PlanPort(port.source, port.output, port.table, period.steps, keep, crosses)


def _default_keep(
    graph: LogicalGraph, reader: Operator, number: int, port: Port
) -> Literal["last", "sum", "mean"]:
    """Return what the steps between become: semantics.md section 3."""
    if port.table or graph.operator(port.source).writes or number > 0:
        return "last"
    if isinstance(reader.action, Aggregate) and reader.action.reduction.tree:
        return "mean" if reader.action.reduction.divide else "sum"
    return "sum" if isinstance(reader.action, Update) else "last"


def _not_yet(graph: LogicalGraph) -> list[FlowmlError]:
    errors: list[FlowmlError] = []
    promises = resolve(graph)
    for operator in graph.operators:
        for number, port in enumerate(operator.inputs):
            where = f"edge {port.source} -> {operator.name} ({operator.site})"
            promise = promises[operator.name, number]
            if looseness(promise) != 0:
                errors.append(
                    _refusal(
                        where,
                        f"runs only as sync in this release, and is {describe(promise)}",
                        "Mark it .sync(), or leave it out.",
                    )
                )
            elif any(looseness(earlier) != 0 for _, earlier in port.edge.until):
                errors.append(
                    _refusal(
                        where,
                        f"runs only as sync in this release, and is {port.edge.describe()}",
                        "Leave the earlier ones out.",
                    )
                )
            for part, word in (
                (port.edge.members, ".quorum"),
                (port.edge.filter, ".when"),
                (port.edge.codec, ".compress"),
                (port.edge.ids, ".at"),
            ):
                if part is not None:
                    errors.append(
                        _refusal(
                            where,
                            f"{word} is declared and drawn, but does not run in this release",
                            "Leave it out to run.",
                        )
                    )
    for table in graph.tables:
        if table.sparse:
            errors.append(
                _refusal(
                    f"table {table.name!r} ({table.site})",
                    "sparse tables are declared and drawn, but do not run in this release",
                    "Use a dense table: fl.table(name, init).",
                )
            )
        if table.on is not None:
            errors.append(
                _refusal(
                    f"table {table.name!r} ({table.site})",
                    "on= is declared and drawn, but does not run in this release",
                    "Leave it out.",
                )
            )
    return errors


def _refusal(where: str, what: str, fix: str) -> PlanError:
    return PlanError(where, what, fix=fix)
