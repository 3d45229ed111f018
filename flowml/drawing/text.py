"""A graph as a table in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from flowml.drawing.words import (
    Promises,
    detail_of,
    edge_words,
    loop_of,
    looping_tables,
    shapes,
    taken,
)
from flowml.graph import LogicalGraph, Operator

LOOP = "↺"


def as_text(graph: LogicalGraph, promises: Promises | None = None) -> str:
    """Return a graph as aligned columns: operators, tables, and the loop through each table.

    Parameters
    ----------
    promises : mapping of (operator, number of the input) to Promise, optional
        The promises taken by unmarked edges, named where they are not sync.
    """
    count, tables = len(graph.operators), len(graph.tables)
    title = f"graph {graph.name}: {counted(count, 'operator')}, {counted(tables, 'table')}"
    looping = looping_tables(graph)
    rows = [_operator_row(o, promises, looping) for o in graph.operators]
    parts = [title, columns(("operator", "kind", "scope", "reads", "writes", "where"), rows)]
    if graph.tables:
        kept = [(t.name, t.scope, shapes(t.init), str(t.site)) for t in graph.tables]
        parts.append(columns(("table", "scope", "holds", "where"), kept))
    loops = [_loop(graph, t.name) for t in graph.tables if t.name in looping]
    if loops:
        parts.append("\n".join(loops))
    return "\n\n".join(parts)


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return left-aligned columns under a header.

    Examples
    --------
    >>> print(columns(("edge", "bytes"), [("w -> gradient", "31 kB"), ("mean", "0")]))
    edge           bytes
    w -> gradient  31 kB
    mean           0
    """
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _operator_row(
    operator: Operator, promises: Promises | None, looping: frozenset[str]
) -> tuple[str, ...]:
    reads = [
        _with_words(port.source, edge_words(port.edge, taken(promises, operator, number)))
        for number, port in enumerate(operator.inputs)
    ]
    writes = operator.writes or ""
    if operator.writes in looping:
        writes = f"{writes} {LOOP}"
    what = f"{operator.kind}: {detail_of(operator)}"
    return (operator.name, what, operator.scope, ", ".join(reads), writes, str(operator.site))


def _with_words(source: str, words: str) -> str:
    return f"{source} [{words}]" if words else source


def _loop(graph: LogicalGraph, table: str) -> str:
    way = loop_of(graph, table)
    if way:
        return f"{LOOP} {' -> '.join(way)} -> {table} in the next step"
    writers = ", ".join(w.name for w in graph.writers(table))
    readers = ", ".join(o.name for p, o in graph.edges() if p.table and p.source == table)
    return f"{LOOP} {table}: written by {writers}, read in the next step by {readers}"


def counted(count: float, word: str) -> str:
    """Return a number with its word.

    Examples
    --------
    >>> counted(1, "table"), counted(2, "table"), counted(1 / 3, "barrier")
    ('1 table', '2 tables', '0.333 barriers')
    """
    return f"{count:.3g} {word}{'' if count == 1 else 's'}"
