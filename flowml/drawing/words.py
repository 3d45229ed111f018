"""What a drawing says of each operator, table and edge, before any form is chosen."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import networkx as nx

from flowml.actions import (
    GLOBAL,
    REPLICA,
    Aggregate,
    Assign,
    Evaluate,
    Gradient,
    Here,
    Load,
    Map,
    SparseRows,
    Until,
    Update,
)
from flowml.edges import Edge, Promise
from flowml.graph import LogicalGraph, Operator, Port, Table
from flowml.layout import layout_of

Promises: TypeAlias = Mapping[tuple[str, int], Promise]
"""The promise of each edge, by (operator, number of the input)."""

NEXT_STEP = "next step"
"""Words on the edge that closes the loop through a table."""


@dataclass(frozen=True)
class Vertex:
    """An operator or a table as it is drawn."""

    name: str
    kind: str
    """Kind of the operator, or ``table``."""
    scope: str
    detail: str
    """What it does or holds, in a few words."""
    site: str

    @property
    def hover(self) -> str:
        """All of it, a line a fact."""
        facts = (self.name, f"{self.kind}, scope {self.scope or 'unknown'}", self.detail, self.site)
        return "\n".join(fact for fact in facts if fact)


@dataclass(frozen=True)
class Arrow:
    """An edge, or a write, as it is drawn."""

    source: str
    target: str
    label: str
    loose: bool
    """Not sync: drawn dashed."""
    loop: bool
    """It closes the loop through a table: what it writes is read in the next step."""
    hover: str


@dataclass(frozen=True)
class Picture:
    """All that is drawn of a graph."""

    name: str
    vertices: tuple[Vertex, ...]
    arrows: tuple[Arrow, ...]


def picture(graph: LogicalGraph, promises: Promises | None = None) -> Picture:
    """Return the vertices and arrows of a graph, tables first, operators in their order."""
    vertices = [_table_vertex(t) for t in graph.tables]
    vertices += [_operator_vertex(o) for o in graph.operators]
    arrows = [
        _read(port, operator, taken(promises, operator, number))
        for operator in graph.operators
        for number, port in enumerate(operator.inputs)
    ]
    looping = looping_tables(graph)
    for operator in graph.operators:
        if operator.writes is not None:
            arrows.append(_write(operator, operator.writes, operator.writes in looping))
    return Picture(graph.name, tuple(vertices), tuple(dict.fromkeys(arrows)))


def taken(promises: Promises | None, operator: Operator, number: int) -> Promise | None:
    """Return the promise that an edge has in the end, or None where nobody said."""
    own = operator.inputs[number].edge.promise
    return own if promises is None else promises.get((operator.name, number), own)


def is_loose(edge: Edge, promise: Promise | None) -> bool:
    """Tell whether an edge is anything but sync at some step."""
    found = [p for _, p in edge.until] + ([promise] if promise is not None else [])
    return any(p.kind != "sync" for p in found)


def edge_words(edge: Edge, promise: Promise | None) -> str:
    """Return what stands at an edge: its own words, and a promise that it takes from its loop.

    Examples
    --------
    >>> edge_words(Edge().every(8), Promise("stale", 4))
    'stale(4) from its loop, every(8)'
    >>> edge_words(Edge(), Promise("sync"))
    ''
    """
    words = edge.describe()
    if edge.promise is None and not edge.until and is_loose(edge, promise):
        words = f"{promise} from its loop" + (f", {words}" if words else "")
    return words


def looping_tables(graph: LogicalGraph) -> frozenset[str]:
    """Return the tables that are read at the start of a step and written in it."""
    read = {p.source for p, o in graph.edges() if p.table and not isinstance(o.action, Evaluate)}
    return frozenset(o.writes for o in graph.operators if o.writes in read and o.writes)


def loop_of(graph: LogicalGraph, table: str) -> tuple[str, ...]:
    """Return the shortest way from a table through a step back to a write of it, or nothing."""
    way = nx.DiGraph([(p.source, o.name) for p, o in graph.edges()])
    found: list[tuple[str, ...]] = [
        tuple(nx.shortest_path(way, table, w.name))
        for w in graph.writers(table)
        if table in way and w.name in way and nx.has_path(way, table, w.name)
    ]
    return min(found, key=len) if found else ()


def shapes(init: Any) -> str:
    """Return the leaves of a table, such as ``W 64 x 10, b 10 float32``."""
    if isinstance(init, SparseRows):
        return f"rows of {init.dim} {init.dtype}, by key"
    if callable(init):
        return "made by init(here)"
    layout = layout_of(init)
    leaves = [
        " ".join(part for part in (leaf.path, " x ".join(map(str, leaf.shape))) if part)
        for leaf in layout.leaves
    ]
    more = [f"and {len(leaves) - 4} more"] if len(leaves) > 4 else []
    kinds = "/".join(dtype.name for dtype in layout.dtypes)
    return f"{', '.join(leaves[:4] + more) or 'one number'} {kinds}"


def _table_vertex(table: Table) -> Vertex:
    return Vertex(table.name, "table", table.scope, shapes(table.init), str(table.site))


def _operator_vertex(operator: Operator) -> Vertex:
    scope = "driver" if isinstance(operator.action, Evaluate | Until) else operator.scope
    return Vertex(operator.name, operator.kind, scope, detail_of(operator), str(operator.site))


def _read(port: Port, reader: Operator, promise: Promise | None) -> Arrow:
    words = edge_words(port.edge, promise)
    hover = f"{port.source} -> {reader.name}: {words or 'sync'}"
    return Arrow(port.source, reader.name, words, is_loose(port.edge, promise), False, hover)


def _write(writer: Operator, table: str, loop: bool) -> Arrow:
    after = "the table of the next step" if loop else "the table after the step"
    return Arrow(
        writer.name,
        table,
        NEXT_STEP if loop else "",
        False,
        loop,
        f"{writer.name} -> {table}: {after}",
    )


def detail_of(operator: Operator) -> str:
    """Return what an operator does in a few words: its source, model, reduction or rule."""
    action = operator.action
    found = ""
    if isinstance(action, Load):
        size = "whole share" if action.batch_size is None else f"batch {action.batch_size}"
        found = f"{action.source.name}, {size}"
    elif isinstance(action, Here):
        found = "rank, clock, random numbers"
    elif isinstance(action, Map | Until):
        found = callable_name(action.function)
    elif isinstance(action, Gradient):
        found = _model_name(action.model)
    elif isinstance(action, Aggregate):
        within = "" if action.within is None else f" within {action.within}"
        found = f"{action.reduction.name}, {_weighing(action)}{within}"
    elif isinstance(action, Update):
        found = action.rule.name
    elif isinstance(action, Assign):
        found = "replaces the table"
    elif isinstance(action, Evaluate):
        unit = action.unit if action.every > 1 else action.unit.removesuffix("s")
        found = f"{callable_name(action.function)}, every {action.every} {unit}"
    return found


def _weighing(action: Aggregate) -> str:
    words = {"examples": "by examples", "equal": "equal weights", "handle": "by a value"}
    return words[action.weight] if action.reduction.weighted else "unweighted"


def callable_name(function: Any) -> str:
    """Return what to call a function or a model."""
    inner = getattr(function, "func", function)  # functools.partial
    name = getattr(inner, "__name__", type(inner).__name__)
    return "lambda" if name == "<lambda>" else str(name)


def _model_name(model: Any) -> str:
    """Return the function that a model was made of, or the model's own class."""
    for part in (getattr(model, "function", None), getattr(model, "loss", None)):
        if inspect.isfunction(part):
            return callable_name(part)
    return type(model).__name__.lower()


def scope_order(scope: str) -> int:
    """Return the place of a scope in a legend: replica, groups, global, driver."""
    return {REPLICA: 0, GLOBAL: 2, "driver": 3}.get(scope, 1)
