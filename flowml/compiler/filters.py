"""Where quorums, thresholds and codecs have a meaning: on the way into what is global, mostly."""

from __future__ import annotations

from collections.abc import Iterator

from flowml.actions import GLOBAL, REPLICA, Aggregate, Evaluate
from flowml.compiler.promises import schedules
from flowml.errors import FlowmlError, GraphError
from flowml.freshness import SYNC
from flowml.graph import LogicalGraph, Operator, Port


def filter_errors(graph: LogicalGraph) -> list[FlowmlError]:
    """Refuse quorums, thresholds and codecs on edges where they mean nothing."""
    errors: list[FlowmlError] = []
    quorums = []
    for operator in graph.operators:
        for port in operator.inputs:
            if port.edge.members is not None and isinstance(operator.action, Aggregate):
                quorums.append((operator, port))
            if port.edge.filter is not None:
                errors += _threshold_errors(graph, operator, port)
            if port.edge.codec is not None:
                errors += _codec_errors(graph, operator, port)
    for operator, port in quorums:
        errors += _quorum_errors(graph, operator, port)
    if len(quorums) > 1:
        names = ", ".join(f"{o.name!r} ({o.site})" for o, _ in quorums)
        errors.append(
            GraphError(
                graph.label,
                "a graph has one quorum: a replica that misses it moves over its step",
                names,
                "Keep one of them.",
            )
        )
    return errors


def enters(graph: LogicalGraph, reader: Operator, port: Port) -> bool:
    """Tell whether values of replicas or groups flow into something global on an edge."""
    if port.table or reader.scope != GLOBAL or reader.inputs[0] is not port:
        return False
    return graph.operator(port.source).scope != GLOBAL


def _where(port: Port, operator: Operator) -> str:
    return f"edge {port.source} -> {operator.name} ({operator.site})"


def _quorum_errors(graph: LogicalGraph, operator: Operator, port: Port) -> Iterator[FlowmlError]:
    where = _where(port, operator)
    promises = schedules(graph)
    if port.table or graph.operator(port.source).scope != REPLICA or operator.scope != GLOBAL:
        yield GraphError(
            where,
            "a quorum is of replicas, for all of them",
            f"from {port.source!r} to scope {operator.scope}",
            "Aggregate over all replicas.",
        )
    elif any(o.scope not in (GLOBAL, REPLICA) for o in graph.operators):
        yield GraphError(
            where,
            "replicas of a group keep step, so none can miss a quorum",
            "groups",
            "Drop them.",
        )
    if port.edge.promise is not None and port.edge.promise.kind != "sync":
        yield GraphError(
            where,
            "a quorum is a promise: it waits for so many contributions of a step",
            f"{port.edge.promise} beside it",
            "Drop one of them.",
        )
    behind = _tables_behind(graph, operator)
    for reader in graph.operators:
        for number, read in enumerate(reader.inputs):
            reads = read.table and read.source in behind and not isinstance(reader.action, Evaluate)
            if reads and promises[reader.name, number] != SYNC:
                yield GraphError(
                    _where(read, reader),
                    f"what a quorum writes is read sync (edge {where})",
                    read.edge.describe(),
                    "Mark the read .sync().",
                )


def _tables_behind(graph: LogicalGraph, operator: Operator) -> set[str]:
    reached, tables = {operator.name}, set()
    for other in graph.operators:
        if any(not p.table and p.source in reached for p in other.inputs):
            reached.add(other.name)
            if other.writes:
                tables.add(other.writes)
    return tables


def _threshold_errors(graph: LogicalGraph, operator: Operator, port: Port) -> Iterator[FlowmlError]:
    where = _where(port, operator)
    if not enters(graph, operator, port):
        yield GraphError(
            where,
            ".when belongs where values of replicas or groups flow into a sum or a push of a "
            "global table",
            "another edge",
            "Move it there.",
        )
        return
    tables = {operator.writes} if operator.writes else _tables_behind(graph, operator)
    whole = [
        p
        for o in graph.operators
        if o.scope == graph.operator(port.source).scope or o.scope == REPLICA
        for p in o.inputs
        if p.table and p.source in tables and p.edge.ids is None
    ]
    if not whole:
        yield GraphError(
            where,
            ".when compares with the parameter, so the replica must read the table whole",
            f"no read of {', '.join(sorted(map(repr, tables))) or 'a table'}",
            "Read it, or use .every or a codec.",
        )


def _codec_errors(graph: LogicalGraph, operator: Operator, port: Port) -> Iterator[FlowmlError]:
    where, codec = _where(port, operator), port.edge.codec
    if not port.table:
        if not enters(graph, operator, port):
            yield GraphError(
                where,
                ".compress belongs where something travels: out of a global table, and where "
                "values of replicas or groups flow into a sum or a push of one",
                "another edge",
                "Move it there.",
            )
        elif codec.feedback and _names_rows(operator):
            yield _feedback(where, codec, "rows come and go, so there is no residual of them")
        return
    table = graph.table(port.source)
    if table.scope != GLOBAL or operator.scope == GLOBAL:
        yield GraphError(
            where, ".compress belongs where something travels", "a table of its own", "Drop it."
        )
    if codec.feedback:
        yield _feedback(where, codec, "what leaves a table would need a residual for each reader")


def _names_rows(operator: Operator) -> bool:
    return operator.inputs[0].edge.ids is not None or (
        bool(operator.writes) and len(operator.inputs) > 1
    )


def _feedback(where: str, codec: object, why: str) -> GraphError:
    return GraphError(
        where, f"only codecs without feedback: {why}", str(codec), "Pass feedback=False."
    )
