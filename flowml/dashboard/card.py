"""What a run is, sent to the scheduler once: the graph as it is drawn, and who runs it.

Places and lines are worked out here, on the driver, so that the scheduler only fills in colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flowml.drawing.placing import placed
from flowml.drawing.svg import INK, Sheet, box_width, lines
from flowml.drawing.words import NEXT_STEP, Arrow, Promises, edge_words, picture, taken
from flowml.edges import Promise
from flowml.graph import LogicalGraph, Operator, Port

LIVE_WORDS = "lag 99/99 · 99.9 MiB/s"
"""About the room that an edge's live label takes."""


@dataclass(frozen=True)
class VertexCard:
    """An operator or a table: words, and its box in pixels of the drawing."""

    name: str
    kind: str
    scope: str
    title: str
    detail: str
    hover: str
    left: float
    top: float
    width: float


@dataclass(frozen=True)
class EdgeCard:
    """An edge, or a write: what it promises, and its line in pixels of the drawing.

    Attributes
    ----------
    name : str
        "source -> target".
    promise : str
        "sync", "stale(4)" or "async"; "" for a write.
    bound : int or None
        Steps that it may lag; None for async.
    words : str
        All that was asked of it: period, codec.
    loose, loop : bool
        Not sync; closes the loop through a table.
    step_bytes : float or None
        What its readers take in a step, over all replicas and before a codec; None where the size
        is not known, 0 where nothing moves between replicas.
    line : str
        The ``d`` of an SVG path.
    head, label : (float, float)
    """

    name: str
    source: str
    target: str
    promise: str
    bound: int | None
    words: str
    hover: str
    loose: bool
    loop: bool
    step_bytes: float | None
    line: str
    head: tuple[float, float]
    label: tuple[float, float]


@dataclass(frozen=True)
class RunCard:
    """A run as the scheduler gets to know it.

    Attributes
    ----------
    graph, executor : str
    replicas : int
    workers : tuple of str
        Address of the worker of each rank.
    promises : str
        The edges that are anything but sync in every step, in one line; or "sync".
    width, height : float
        Of the drawing. Pixels.
    """

    graph: str
    executor: str
    replicas: int
    workers: tuple[str, ...]
    promises: str
    width: float
    height: float
    vertices: tuple[VertexCard, ...]
    edges: tuple[EdgeCard, ...]

    def as_message(self) -> dict[str, Any]:
        """Return it in types that msgpack knows."""
        return asdict(self)


def card_of(
    graph: LogicalGraph,
    promises: Promises,
    step_bytes: Mapping[str, float | None],
    executor: str,
    workers: Sequence[str],
) -> RunCard:
    """Return the card of a run.

    Parameters
    ----------
    promises : mapping of (operator, number of the input) to Promise
        As the compiler has resolved them.
    step_bytes : mapping of str to float or None
        By edge that crosses between replicas.
    """
    drawn = picture(graph, promises)
    widths = {v.name: box_width(v) for v in drawn.vertices}
    sheet = Sheet(drawn, placed(drawn, widths))
    ports = {(p.source, o.name): (o, n) for o in graph.operators for n, p in enumerate(o.inputs)}
    edges = tuple(
        _edge(sheet, number, arrow, ports, promises, step_bytes)
        for number, arrow in enumerate(drawn.arrows)
    )
    vertices = []
    for vertex in drawn.vertices:
        title, detail = lines(vertex)
        place = sheet.place(vertex)
        vertices.append(
            VertexCard(vertex.name, vertex.kind, vertex.scope, title, detail, vertex.hover, *place)
        )
    return RunCard(
        graph.name,
        executor,
        len(workers),
        tuple(workers),
        promise_summary(graph, promises),
        sheet.width,
        sheet.height,
        tuple(vertices),
        edges,
    )


def _edge(
    sheet: Sheet,
    number: int,
    arrow: Arrow,
    ports: Mapping[tuple[str, str], tuple[Operator, int]],
    promises: Promises,
    step_bytes: Mapping[str, float | None],
) -> EdgeCard:
    way = sheet.way(number, arrow)
    label = way.middle if arrow.loop else sheet.label(way.middle, LIVE_WORDS, INK)
    name = f"{arrow.source} -> {arrow.target}"
    found = ports.get((arrow.source, arrow.target))
    promise = None if found is None else taken(promises, *found) or Promise("sync")
    words = "" if arrow.label == NEXT_STEP else arrow.label
    return EdgeCard(
        name,
        arrow.source,
        arrow.target,
        "" if promise is None else str(promise),
        0 if promise is None else promise.staleness,
        words,
        arrow.hover,
        arrow.loose,
        arrow.loop,
        step_bytes.get(name, 0.0),
        way.line,
        way.end,
        label,
    )


def promise_summary(graph: LogicalGraph, promises: Promises) -> str:
    """Return what the edges promise that is not sync in every step, each wording once."""
    found: dict[str, list[str]] = {}
    for port, operator in graph.edges():
        words = _words(port, operator, promises)
        if words:
            found.setdefault(words, []).append(f"{port.source} -> {operator.name}")
    return "; ".join(f"{words} on {', '.join(edges)}" for words, edges in found.items()) or "sync"


def _words(port: Port, operator: Operator, promises: Promises) -> str:
    promise = taken(promises, operator, operator.inputs.index(port))
    words = edge_words(port.edge, promise)
    return "" if words == "sync" else words
