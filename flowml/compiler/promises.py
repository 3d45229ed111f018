"""Which promise each edge has: its own, or the loosest one marked in its loop."""

from __future__ import annotations

import math
from collections.abc import Iterator

from flowml.actions import Aggregate, Evaluate, Map
from flowml.edges import Promise
from flowml.errors import FlowmlError, GraphError
from flowml.freshness import Promises, staleness_at
from flowml.graph import LogicalGraph, Operator, Port, coarser

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
    sync when none is marked. What a write came to and is read in the same step counts as a read of
    the table: it is the answer of the push. A quorum is a promise by itself, on top of sync.
    """
    promises: dict[tuple[str, int], Promise] = {}
    for loop in _loops(graph).values():
        loosest = max(_marked(loop), key=looseness, default=SYNC)
        for operator, number, port in loop:
            promise = _own(port) or loosest
            before = promises.get((operator.name, number))
            if before is None or looseness(promise) > looseness(before):
                promises[operator.name, number] = promise
    for operator in graph.operators:
        for number, port in enumerate(operator.inputs):
            promises.setdefault((operator.name, number), port.edge.promise or SYNC)
    return promises


def _own(port: Port) -> Promise | None:
    """Return the promise that an edge has of itself."""
    return SYNC if port.edge.members is not None else port.edge.promise


def _marked(loop: list[tuple[Operator, int, Port]]) -> list[Promise]:
    return [p.edge.promise for _, _, p in loop if p.edge.promise is not None]


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
            edge = port.edge if _own(port) is not None else loosest
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
    for operator, number, port in _answers(graph):
        found[str(graph.operator(port.source).writes)].append((operator, number, port))
    for table, loop in found.items():
        for writer in graph.writers(table):
            loop.append((writer, 0, writer.inputs[0]))
            for source in _aggregates_behind(graph, writer.inputs[0]):
                if source.scope == writer.scope:  # a sum inside a group is a loop of its own
                    loop += [(source, n, p) for n, p in enumerate(source.inputs)]
    return found


def _answers(graph: LogicalGraph) -> Iterator[tuple[Operator, int, Port]]:
    """Yield the edges on which a finer operator reads in the same step what a write came to."""
    for operator in graph.operators:
        if isinstance(operator.action, Evaluate):
            continue
        for number, port in enumerate(operator.inputs):
            if _answered(graph, port, operator) and graph.operator(port.source).writes:
                yield operator, number, port


def _answered(graph: LogicalGraph, port: Port, reader: Operator) -> bool:
    """Tell whether an input is made for a coarser scope in the same step."""
    return not port.table and coarser(graph.operator(port.source).scope, reader.scope)


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
    """Refuse reads that promise more than the writes of their table deliver, in any step."""
    promises, loops = schedules(graph), _loops(graph)
    errors: list[FlowmlError] = []
    for table in graph.tables:
        writers = graph.writers(table.name)
        written = [w.name for w in writers]
        reads = [
            (o, n, p)
            for o, n, p in loops[table.name]
            if (p.source == table.name if p.table else p.source in written and o not in writers)
        ]
        for reader, number, port in reads:
            for writer in writers:
                read, write = promises[reader.name, number], promises[writer.name, 0]
                if _answered(graph, writer.inputs[0], writer):
                    continue  # it is written in the step, whatever it is that is written
                step = _first_tighter(read, write)
                if step is not None:
                    errors.append(_tighter(port, reader, read, writer, write, step))
        whole = [(o, promises[o.name, n]) for o, n, p in reads if p.table]
        steps = {start for _, found in whole for start, _ in found}
        mixed = [s for s in steps if len({staleness_at(f, s) == 0 for _, f in whole}) == 2]
        if mixed:
            got = ", ".join(f"{o.name}: {words(staleness_at(f, min(mixed)))}" for o, f in whole)
            errors.append(
                GraphError(
                    f"table {table.name!r} ({table.site})",
                    "a table read sync by one edge must be read sync by all but evaluate",
                    got + (f" in step {min(mixed)}" if min(mixed) else ""),
                    "Mark all reads alike.",
                )
            )
    return errors


def _first_tighter(read: Promises, write: Promises) -> int | None:
    """Return the first step in which a read promises more than a write delivers, or None."""
    starts = sorted({start for start, _ in (*read, *write)})
    return next((s for s in starts if staleness_at(read, s) < staleness_at(write, s)), None)


def _tighter(
    port: Port, reader: Operator, read: Promises, writer: Operator, write: Promises, step: int
) -> GraphError:
    later = f" from step {step} on" if step else ""
    one, other = words(staleness_at(read, step)), words(staleness_at(write, step))
    return GraphError(
        f"edge {port.source} -> {reader.name} ({reader.site})",
        f"a read may not promise more than the write delivers on edge "
        f"{writer.inputs[0].source} -> {writer.name} ({writer.site})",
        f"a {one} read of a {other} write{later}",
        "Loosen the read, or tighten the write.",
    )


def words(staleness: float) -> str:
    """Return "sync", "stale(4)" or "async".

    Examples
    --------
    >>> words(0.0), words(4.0), words(math.inf)
    ('sync', 'stale(4)', 'async')
    """
    if math.isinf(staleness):
        return "async"
    return f"stale({int(staleness)})" if staleness else "sync"


def describe(promise: Promise) -> str:
    """Return "sync", "stale(4)" or "async"."""
    return f"stale({promise.staleness})" if promise.kind == "stale" else promise.kind
