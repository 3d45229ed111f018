"""Stage 4, lower: from the fused graph to the physical plan that every executor runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from flowml.actions import Aggregate, Update
from flowml.compiler.fuse import Fused, Phase
from flowml.compiler.loose import loose_refusals, refusal
from flowml.compiler.promises import schedules
from flowml.errors import FlowmlError, raise_all
from flowml.freshness import Promises
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
    promises = schedules(graph)
    raise_all(graph.label, _refused(graph, promises))
    placements = dict(placed.placements)
    phases = dict(fused.phases)
    operators = tuple(
        _operator(graph, o, placements[o.name], phases[o.name], promises) for o in graph.operators
    )
    tables = tuple(
        PlanTable(t.name, t.scope, t.init, t.site, tuple(w.name for w in graph.writers(t.name)))
        for t in graph.tables
    )
    return Plan(
        graph.name, graph.form, placed.replicas, placed.groups, operators, tables, blas_threads
    )


def _operator(
    graph: LogicalGraph,
    operator: Operator,
    placement: Placement,
    phase: Phase,
    promises: dict[tuple[str, int], Promises],
) -> PlanOperator:
    ports = tuple(
        replace(
            _port(graph, operator, number, port, phase.crosses[number]),
            promises=promises[operator.name, number],
            codec=port.edge.codec,
            ids=port.edge.ids,
            threshold=None if port.edge.filter is None else port.edge.filter.threshold,
            members=port.edge.members,
        )
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
    default = _default_keep(graph, reader, number, port)
    if period is None:
        keep = default if port.edge.filter is not None else "last"
        return PlanPort(port.source, port.output, port.table, keep=keep, crosses=crosses)
    keep = period.keep or default
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


def _refused(graph: LogicalGraph, promises: dict[tuple[str, int], Promises]) -> list[FlowmlError]:
    """Return what can be declared and drawn, and does not run in this release."""
    errors: list[FlowmlError] = [
        refusal(
            f"table {table.name!r} ({table.site})",
            "on= is declared and drawn, but does not run in this release",
            "Leave it out.",
        )
        for table in graph.tables
        if table.on is not None
    ]
    return errors + loose_refusals(graph, promises)
