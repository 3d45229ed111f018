"""A graph as SVG: boxes by layer, dashed where an edge is not sync, loops back up the side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from xml.sax.saxutils import escape, quoteattr

from flowml.actions import GLOBAL, REPLICA
from flowml.drawing.placing import Placing, placed
from flowml.drawing.shapes import BOX_HEIGHT, Point, bar, bent, cylinder, rectangle, rounded
from flowml.drawing.words import Arrow, Picture, Promises, Vertex, picture, scope_order
from flowml.graph import LogicalGraph

LAYER = 112.0
"""Pixels from one layer to the next."""
MARGIN = 28.0
LANE = 20.0
"""Pixels between the loops that run beside each other."""
NAME_CHARACTER, DETAIL_CHARACTER = 7.6, 6.1
"""Pixels that a character takes, at most, in the two sizes of letters."""
LONGEST = 34
"""Characters of a line in a box; the rest stands in the hover text."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
INK, SOFT_INK, LINE, LOOP = "#1b2a41", "#56657c", "#64748b", "#b0306a"
COLOURS = {
    REPLICA: ("#eaf1fd", "#4472b8"),
    "group": ("#e7f6ec", "#3d8b5f"),
    GLOBAL: ("#fdf1de", "#c17f24"),
    "driver": ("#f1f1f4", "#85858f"),
}


def as_svg(
    graph: LogicalGraph,
    promises: Promises | None = None,
    shares: Mapping[str, float] | None = None,
) -> str:
    """Return a graph as an SVG element, without a library for layout.

    Parameters
    ----------
    promises : mapping of (operator, number of the input) to Promise, optional
        The promises taken by unmarked edges, drawn as if they were marked.
    shares : mapping of operator to float, optional
        Part of the time that it takes, from 0 to 1: written into its box, and drawn as a bar.

    Returns
    -------
    str
        One ``<svg>`` that scales down to the width of the page. Each box and edge has a
        ``<title>``, which browsers show on hover: what it is, and file and line.
    """
    drawn = with_shares(picture(graph, promises), shares or {})
    sheet = Sheet(drawn, placed(drawn, {v.name: box_width(v) for v in drawn.vertices}))
    edges = [sheet.edge(number, arrow) for number, arrow in enumerate(drawn.arrows)]
    boxes = [sheet.box(vertex, (shares or {}).get(vertex.name)) for vertex in drawn.vertices]
    labels, legend = sheet.written_labels(), sheet.legend()
    width, height = sheet.width, sheet.height
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width:.0f}" '
        f'height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'style="max-width:100%;height:auto" font-family="{FONT}">'
        f"<title>graph {escape(drawn.name)}</title>"
        f'<rect width="100%" height="100%" rx="8" fill="#ffffff"/>'
        f"{''.join(edges)}{''.join(boxes)}{''.join(labels)}{legend}</svg>"
    )


def with_shares(picture: Picture, shares: Mapping[str, float]) -> Picture:
    """Return a picture whose operators say which part of the time they take."""
    vertices = tuple(
        replace(v, detail=f"{shares[v.name]:.0%} · {v.detail}".strip(" ·"))
        if v.name in shares
        else v
        for v in picture.vertices
    )
    return replace(picture, vertices=vertices)


def box_width(vertex: Vertex) -> float:
    """Return the width of the box of a vertex. Pixels."""
    name, detail = lines(vertex)
    return max(96.0, NAME_CHARACTER * len(name) + 28, DETAIL_CHARACTER * len(detail) + 28)


def lines(vertex: Vertex) -> tuple[str, str]:
    """Return the two lines in the box of a vertex."""
    detail = f"{vertex.kind} · {vertex.detail}" if vertex.kind != "table" else vertex.detail
    return _short(vertex.name), _short(detail)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def colours(scope: str) -> tuple[str, str]:
    """Return fill and stroke of a scope."""
    return COLOURS.get(scope, COLOURS["group"])


@dataclass(frozen=True)
class Way:
    """How an edge runs over a sheet.

    Attributes
    ----------
    line : str
        The ``d`` of an SVG path.
    end : (float, float)
        The point of its arrow head.
    middle : (float, float)
        Where words of it stand best.
    """

    line: str
    end: Point
    middle: Point


@dataclass
class Sheet:
    """A picture with its placing: turns each part into SVG and remembers where labels stand."""

    picture: Picture
    placing: Placing
    labels: list[tuple[float, float, str, str]] = field(default_factory=list)
    """(x, y, text, colour)."""
    lanes: dict[int, int] = field(init=False)
    """Lane of each loop by the number of its arrow: 0, 1, ... right, -1, -2, ... left."""

    def __post_init__(self) -> None:
        """Give each loop a lane on the side that is nearer."""
        self.lanes = {}
        layer, centre = self.placing.layer, self.placing.centre
        loops = [(n, a) for n, a in enumerate(self.picture.arrows) if a.loop]
        loops.sort(key=lambda loop: layer[loop[1].source] - layer[loop[1].target])
        for number, arrow in loops:
            right = centre[arrow.source] + centre[arrow.target] >= self.placing.width
            taken = [lane for lane in self.lanes.values() if (lane >= 0) == right]
            self.lanes[number] = len(taken) if right else -1 - len(taken)

    @property
    def left(self) -> float:
        """Room left of the boxes."""
        return MARGIN + LANE * sum(lane < 0 for lane in self.lanes.values())

    @property
    def width(self) -> float:
        """Width of the sheet; wide enough for the legend."""
        rightward = sum(lane >= 0 for lane in self.lanes.values())
        drawn = self.left + self.placing.width + LANE * rightward + MARGIN
        return max(drawn, self._legend_width() + 2 * MARGIN)

    @property
    def height(self) -> float:
        """Height of the sheet."""
        return self._top(self.placing.layers - 1) + BOX_HEIGHT + 78.0

    def _top(self, layer: int) -> float:
        return 44.0 + LAYER * layer

    def _centre(self, name: str) -> float:
        return self.left + self.placing.centre[name]

    def place(self, vertex: Vertex) -> tuple[float, float, float]:
        """Return where the box of a vertex stands: left, top and width."""
        width = box_width(vertex)
        top = self._top(self.placing.layer[vertex.name])
        return self._centre(vertex.name) - width / 2, top, width

    def box(self, vertex: Vertex, share: float | None = None) -> str:
        """Return a box with its two lines, behind it a second one where there are several."""
        fill, stroke = colours(vertex.scope)
        left, top, width = self.place(vertex)
        x = left + width / 2
        shape = cylinder if vertex.kind == "table" else rectangle
        behind = shape(left + 5, top - 5, width, fill, stroke) if vertex.scope != GLOBAL else ""
        behind = "" if vertex.scope == "driver" else behind
        name, detail = lines(vertex)
        middle = top + BOX_HEIGHT / 2 + (3 if vertex.kind == "table" else 0)
        return (
            f"<g class={quoteattr('table' if vertex.kind == 'table' else 'operator')}>"
            f"<title>{escape(vertex.hover)}</title>{behind}"
            f"{shape(left, top, width, fill, stroke)}"
            f"{'' if share is None else bar(left, top, width, share, stroke)}"
            f'<text x="{x:.1f}" y="{middle - 3:.1f}" text-anchor="middle" font-size="13" '
            f'font-weight="600" fill="{INK}">{escape(name)}</text>'
            f'<text x="{x:.1f}" y="{middle + 13:.1f}" text-anchor="middle" font-size="11" '
            f'fill="{SOFT_INK}">{escape(detail)}</text></g>'
        )

    def edge(self, number: int, arrow: Arrow) -> str:
        """Return an edge: a curve through its bends, or a loop along its lane."""
        kind = "loop" if arrow.loop else "loose" if arrow.loose else "sync"
        way = self.way(number, arrow)
        if arrow.label:
            self.label(way.middle, arrow.label, LOOP if arrow.loop else INK)
        colour, width = (LOOP, 2.0) if arrow.loop else (LINE, 1.5)
        dashes = ' stroke-dasharray="6 4"' if arrow.loose else ""
        line, (x, y) = way.line, way.end
        return (
            f'<g class="edge {kind}"><title>{escape(arrow.hover)}</title>'
            f'<path d="{line}" fill="none" stroke="#000" stroke-opacity="0" stroke-width="12"/>'
            f'<path d="{line}" fill="none" stroke="{colour}" stroke-width="{width}"{dashes}/>'
            f'<path d="M{x - 4.5:.1f} {y - 8:.1f}L{x:.1f} {y:.1f}L{x + 4.5:.1f} {y - 8:.1f}Z" '
            f'fill="{colour}"/></g>'
        )

    def way(self, number: int, arrow: Arrow) -> Way:
        """Return how an edge runs: a curve through its bends, or a loop along its lane."""
        return self._lane(number, arrow) if arrow.loop else self._curve(number, arrow)

    def _curve(self, number: int, arrow: Arrow) -> Way:
        first = self.placing.layer[arrow.source]
        last = self.placing.layer[arrow.target]
        start = (self._out(number, arrow), self._top(first) + BOX_HEIGHT)
        end = (self._in(number, arrow), self._top(last) - self._raised(arrow.target))
        line, here = f"M{start[0]:.1f} {start[1]:.1f}", start
        for offset, bend in enumerate(self.placing.bends[number]):
            x, top = self.left + bend, self._top(first + 1 + offset)
            line += bent(here, (x, top)) + f"L{x:.1f} {top + BOX_HEIGHT:.1f}"
            here = (x, top + BOX_HEIGHT)
        line += bent(here, (end[0], end[1] - 6)) + f"L{end[0]:.1f} {end[1] - 6:.1f}"
        return Way(line, end, ((here[0] + end[0]) / 2, (here[1] + end[1]) / 2))

    def _lane(self, number: int, arrow: Arrow) -> Way:
        lane = self.lanes[number]
        right = self.left + self.placing.width
        x = right + LANE * (lane + 0.7) if lane >= 0 else self.left + LANE * (lane + 0.3)
        rank = lane if lane >= 0 else -1 - lane
        layer = self.placing.layer
        start = (self._out(number, arrow), self._top(layer[arrow.source]) + BOX_HEIGHT)
        end = (self._in(number, arrow), self._top(layer[arrow.target]) - self._raised(arrow.target))
        low, high = start[1] + 16 + 6 * rank, end[1] - 16 - 6 * rank
        line = rounded(
            [start, (start[0], low), (x, low), (x, high), (end[0], high), (end[0], end[1] - 6)]
        )
        return Way(line, end, (x, (low + high) / 2))

    def _raised(self, name: str) -> float:
        """Return how far above its box an arrow ends: on the copy that looks out behind it."""
        scope = next(v.scope for v in self.picture.vertices if v.name == name)
        return 0.0 if scope in (GLOBAL, "driver") else 5.0

    def _out(self, number: int, arrow: Arrow) -> float:
        """Return where an arrow leaves its source: side by side, in the order of their ends."""
        others = [n for n, a in enumerate(self.picture.arrows) if a.source == arrow.source]
        toward = {n: self._next(n, forward=True) for n in others}
        return self._spread(arrow.source, number, toward)

    def _in(self, number: int, arrow: Arrow) -> float:
        others = [n for n, a in enumerate(self.picture.arrows) if a.target == arrow.target]
        toward = {n: self._next(n, forward=False) for n in others}
        return self._spread(arrow.target, number, toward)

    def _next(self, number: int, *, forward: bool) -> float:
        if number in self.lanes:  # out to its side, the outer loop outermost
            return math.copysign(1e6, self.lanes[number]) + self.lanes[number]
        arrow, bends = self.picture.arrows[number], self.placing.bends[number]
        if bends:
            return bends[0 if forward else -1]
        return self.placing.centre[arrow.target if forward else arrow.source]

    def _spread(self, name: str, number: int, toward: dict[int, float]) -> float:
        order = sorted(toward, key=lambda n: (toward[n], n))
        vertex = next(v for v in self.picture.vertices if v.name == name)
        apart = min(22.0, (box_width(vertex) - 30) / max(1, len(order) - 1))
        return self._centre(name) + apart * (order.index(number) - (len(order) - 1) / 2)

    def label(self, at: Point, text: str, colour: str) -> Point:
        """Write a label where no other one stands, at most a line further up or down.

        Notes
        -----
        Those beside a loop are turned and stay where they are.
        """
        x, y = at
        for shift in (0, -15, 15, -24, 24) if colour != LOOP else ():
            clash = any(
                abs(y + shift - b) < 13 and abs(x - a) < 3.2 * (len(t) + len(text))
                for a, b, t, _ in self.labels
            )
            if not clash:
                y += shift
                break
        self.labels.append((x, y, text, colour))
        return x, y

    def written_labels(self) -> list[str]:
        """Return the words at the edges, above all boxes."""
        out = []
        for x, y, text, colour in self.labels:
            turned = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if colour == LOOP else ""
            out.append(
                f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle" font-size="11" '
                f'font-weight="500" fill="{colour}" stroke="#ffffff" stroke-width="4" '
                f'paint-order="stroke"{turned}>{escape(text)}</text>'
            )
        return out

    def _signs(self) -> list[tuple[str, str]]:
        """Return (text, SVG of a sample at 0, 0) for what occurs in this drawing."""
        scopes = sorted({v.scope for v in self.picture.vertices}, key=lambda s: (scope_order(s), s))
        signs = [
            (
                _scope_words(scope),
                f'<rect y="-9" width="22" height="12" rx="3" '
                f'fill="{colours(scope)[0]}" stroke="{colours(scope)[1]}"/>',
            )
            for scope in scopes
            if scope
        ]
        if any(a.loose for a in self.picture.arrows):
            signs.append(
                (
                    "not sync",
                    f'<path d="M0 -3H22" stroke="{LINE}" stroke-width="1.5" '
                    'stroke-dasharray="6 4"/>',
                )
            )
        if self.lanes:
            signs.append(
                ("loop through a table", f'<path d="M0 -3H22" stroke="{LOOP}" stroke-width="2"/>')
            )
        return signs

    def _legend_width(self) -> float:
        return sum(28 + DETAIL_CHARACTER * len(text) + 18 for text, _ in self._signs())

    def legend(self) -> str:
        """Return the line that says what colours and strokes mean."""
        x, y, out = MARGIN, self.height - 16, []
        for text, sample in self._signs():
            out.append(
                f'<g transform="translate({x:.1f} {y:.1f})">{sample}<text x="28" y="1" '
                f'font-size="11" fill="{SOFT_INK}">{escape(text)}</text></g>'
            )
            x += 28 + DETAIL_CHARACTER * len(text) + 18
        return f'<g class="legend">{"".join(out)}</g>'


def _scope_words(scope: str) -> str:
    return {REPLICA: "one a replica", GLOBAL: "one for all", "driver": "on the driver"}.get(
        scope, f"one a {scope}"
    )
