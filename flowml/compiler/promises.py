"""Which promise each edge has: its own, or the loosest one marked in its loop."""

from __future__ import annotations

import math

from flowml.actions import Aggregate, Evaluate, Map
from flowml.edges import Promise
from flowml.errors import FlowmlError, GraphError
from flowml.freshness import Promises
from flowml.graph import LogicalGraph, Operator, Port

SYNC = Promise("sync", 0)


def looseness(promise: Promise) -> float:
    """Return the staleness that a promise allows. Unit: steps; infinite for async."""
    return math.inf if promise.staleness is None else float(promise.staleness)


def resolve(graph: LogicalGraph) -> dict[tuple[str, int], Promise]:
    """Return the promise of every edge, keyed by (operator, number of the input).

    Notes
    -----
    semantics.md section 1: an unmarked edge takes the loosest promise marked in its loop, that
    is the reads of the table, the pushes to it and the inputs of the aggregates that feed them;
    sync when none is marked.
    """
    promises: dict[tuple[str, int], Promise] = {}
    for loop in _loops(graph).values():
        marked = [p.edge.promise for _, _, p in loop if p.edge.promise is not None]
        loosest = max(marked, key=looseness, default=SYNC)
        for operator, number, port in loop:
            promise = port.edge.promise or loosest
            before = promises.get((operator.name, number))
            if before is None or looseness(promise) > looseness(before):
                promises[operator.name, number] = promise
    for operator in graph.operators:
        for number, port in enumerate(operator.inputs):
            promises.setdefault((operator.name, number), port.edge.promise or SYNC)
    return promises


def schedules(graph: LogicalGraph) -> dict[tuple[str, int], Promises]:
    """Return the promises of every edge over the steps; those of unmarked edges as in ``resolve``.

    Notes
    -----
    An unmarked edge takes the earlier promises too: ``w.sync(until=500).async_()`` on the read
    lets the whole loop begin synchronously.
    """
    last = resolve(graph)
    earlier: dict[tuple[str, int], tuple[tuple[int, Promise], ...]] = {}
    for loop in _loops(graph).values():
        marked = [p.edge for _, _, p in loop if p.edge.promise is not None]
        loosest = max(marked, key=lambda e: looseness(e.promise or SYNC), default=None)
        for operator, number, port in loop:
            edge = port.edge if port.edge.promise is not None else loosest
            if edge is not None and edge.promise == last[operator.name, number]:
                earlier.setdefault((operator.name, number), edge.until)
    return {key: _steps(earlier.get(key, ()), promise) for key, promise in last.items()}


def _steps(earlier: tuple[tuple[int, Promise], ...], last: Promise) -> Promises:
    starts = [0, *(end for end, _ in earlier)]
    kinds = [*(promise for _, promise in earlier), last]
    return tuple((start, looseness(p)) for start, p in zip(starts, kinds, strict=True))


def _loops(graph: LogicalGraph) -> dict[str, list[tuple[Operator, int, Port]]]:
    """By table: its reads, values of its writes, and inputs of the aggregates behind those."""
    found: dict[str, list[tuple[Operator, int, Port]]] = {t.name: [] for t in graph.tables}
    for operator in graph.operators:
        if isinstance(operator.action, Evaluate):
            continue
        for number, port in enumerate(operator.inputs):
            if port.table:
                found[port.source].append((operator, number, port))
    for table, loop in found.items():
        for writer in graph.writers(table):
            loop.append((writer, 0, writer.inputs[0]))
            for source in _aggregates_behind(graph, writer.inputs[0]):
                loop += [(source, n, p) for n, p in enumerate(source.inputs)]
    return found


def _aggregates_behind(graph: LogicalGraph, value: Port) -> tuple[Operator, ...]:
    """Return the aggregates that a value comes from, directly or through maps."""
    pending, seen = [value.source] if not value.table else [], set()
    found: dict[str, Operator] = {}
    while pending:
        source = graph.operator(pending.pop())
        if isinstance(source.action, Aggregate):
            found[source.name] = source
        elif isinstance(source.action, Map) and source.name not in seen:
            pending += [p.source for p in source.inputs if not p.table]
        seen.add(source.name)
    return tuple(found.values())


def promise_errors(graph: LogicalGraph) -> list[FlowmlError]:
    """Refuse reads that promise more than the writes of their table deliver."""
    promises, loops = resolve(graph), _loops(graph)
    errors: list[FlowmlError] = []
    for table in graph.tables:
        reads = [
            (o, promises[o.name, n])
            for o, n, p in loops[table.name]
            if p.table and p.source == table.name
        ]
        writes = [(w, promises[w.name, 0]) for w in graph.writers(table.name)]
        for reader, read in reads:
            for writer, write in writes:
                if looseness(read) < looseness(write):
                    errors.append(
                        GraphError(
                            f"edge {table.name} -> {reader.name} ({reader.site})",
                            f"a read may not promise more than the write delivers on edge "
                            f"{writer.inputs[0].source} -> {writer.name} ({writer.site})",
                            f"a {describe(read)} read of a {describe(write)} write",
                            "Loosen the read, or tighten the write.",
                        )
                    )
        kinds = {looseness(p) == 0 for _, p in reads}
        if len(kinds) == 2:
            errors.append(
                GraphError(
                    f"table {table.name!r} ({table.site})",
                    "a table read sync by one edge must be read sync by all but evaluate",
                    ", ".join(f"{o.name}: {describe(p)}" for o, p in reads),
                    "Mark all reads alike.",
                )
            )
    return errors


def describe(promise: Promise) -> str:
    """Return "sync", "stale(4)" or "async"."""
    return f"stale({promise.staleness})" if promise.kind == "stale" else promise.kind
