"""How late reads are: a histogram an edge, with the bound that it promises as a line."""

from __future__ import annotations

from typing import Any

from bokeh.models import BasicTicker, NumeralTickFormatter, Range1d

from flowml.dashboard.contract import Edge, RunSnapshot
from flowml.dashboard.looks import SERIES, chart, hover, legend, put, source

MOST_EDGES = 6
WIDTH = 0.8
"""Of all bars of one staleness together; they are one apart."""


class Lateness:
    """Bars side by side, an edge a colour."""

    def __init__(self) -> None:
        self._bars = source("staleness", "x", "top", "width", "name", "color", "text")
        self._bounds = source("bounds", "x", "name", "color")
        self._late, self._part = Range1d(start=-0.6, end=1.6), Range1d(start=0, end=1)
        found = chart(
            x_range=self._late, y_range=self._part, x_axis_label="steps late", y_axis_label="reads"
        )
        found.yaxis.formatter = NumeralTickFormatter(format="0 %")
        found.xaxis.ticker = BasicTicker(min_interval=1, mantissas=[1, 2, 5])
        bars = found.vbar(
            x="x",
            top="top",
            width="width",
            color="color",
            legend_field="name",
            source=self._bars,
        )
        bounds = found.vspan(
            x="x", source=self._bounds, color="color", line_dash="6 4", line_width=2
        )
        ends = found.scatter(x="x", y=0, source=self._bounds, color="color", size=8)
        hover(found, ("", "@text"), renderers=[bars])
        hover(found, ("", "@name"), renderers=[bounds, ends])
        legend(found)
        found.legend.orientation = "vertical"
        self.roots = {"lateness": found}

    def update(self, run: RunSnapshot) -> None:
        """Show a run."""
        edges = [e for e in run["edges"] if e["staleness"]][:MOST_EDGES]
        bars: dict[str, list[Any]] = {k: [] for k in ("x", "top", "width", "name", "color", "text")}
        for number, edge in enumerate(edges):
            _add(bars, edge, number, len(edges))
        put(self._bars, bars)
        bounds = [e["bound"] or 0 for e in edges]
        self._late.end = max([1, *bounds, *(int(n) for e in edges for n in e["staleness"])]) + 0.6
        self._part.end = max([*bars["top"], 0.05]) * 1.05
        bounded = [(n, e) for n, e in enumerate(edges) if e["bound"] is not None]
        put(
            self._bounds,
            {
                "x": [float(e["bound"] or 0) + WIDTH / 2 + 0.06 for _, e in bounded],
                "name": [f"{e['name']}: at most {e['bound']}" for _, e in bounded],
                "color": [SERIES[n] for n, _ in bounded],
            },
        )


def _add(bars: dict[str, list[Any]], edge: Edge, number: int, edges: int) -> None:
    total, width = sum(edge["staleness"].values()), WIDTH / edges
    for late, count in edge["staleness"].items():
        bars["x"].append(int(late) + (number + 0.5) * width - WIDTH / 2)
        bars["top"].append(count / total)
        bars["width"].append(width * 0.95)
        bars["name"].append(edge["name"])
        bars["color"].append(SERIES[number])
        seen = "reads" if edge["exact"] else "looks"
        bars["text"].append(f"{edge['name']}: {late} steps late in {count:,} {seen}")
