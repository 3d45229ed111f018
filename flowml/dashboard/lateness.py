"""How late reads are: a histogram an edge, with the bound that it promises as a line."""

from __future__ import annotations

from bokeh.models import BasicTicker, NumeralTickFormatter
from bokeh.plotting import figure

from flowml.dashboard.contract import Edge, RunSnapshot
from flowml.dashboard.flows import MOST_BARS
from flowml.dashboard.looks import (
    SERIES,
    Changes,
    Rows,
    chart,
    hover,
    legend,
    reach,
    rows,
    source,
    span,
)

MOST_EDGES = 6
WIDTH = 0.8
"""Of all bars of one staleness together; they are one apart."""
COLUMNS = ("x", "top", "width", "name", "color", "text")


def charts() -> dict[str, figure]:
    """Return the chart: bars side by side, an edge a colour."""
    found = chart(
        x_range=span("lateness across", -0.6, 1.6),
        y_range=span("lateness up"),
        x_axis_label="steps late",
        y_axis_label="reads",
    )
    found.yaxis.formatter = NumeralTickFormatter(format="0 %")
    found.xaxis.ticker = BasicTicker(min_interval=1, mantissas=[1, 2, 5])
    bars = found.vbar(
        x="x",
        top="top",
        width="width",
        color="color",
        legend_field="name",
        source=source("staleness", *COLUMNS),
    )
    bounds = found.vspan(
        x="x",
        source=source("bounds", "x", "name", "color"),
        color="color",
        line_dash="6 4",
        line_width=2,
    )
    hover(found, ("", "@text"), renderers=[bars])
    hover(found, ("", "@name"), renderers=[bounds])
    legend(found)
    found.legend.orientation = "vertical"
    return {"lateness": found}


def changes(run: RunSnapshot) -> Changes:
    """Return what shows a run."""
    edges = [e for e in run["edges"] if e["staleness"]][:MOST_EDGES]
    bars: Rows = {column: [] for column in COLUMNS}
    for number, edge in enumerate(edges):
        _add(bars, edge, number, len(edges))
    bounded = [(n, e, e["bound"]) for n, e in enumerate(edges) if e["bound"] is not None]
    late = [int(steps) for e in edges for steps in e["staleness"]]
    return (
        rows("staleness", bars)
        | rows(
            "bounds",
            {
                "x": [bound + WIDTH / 2 + 0.06 for _, _, bound in bounded],
                "name": [f"{e['name']}: at most {bound}" for _, e, bound in bounded],
                "color": [SERIES[n] for n, _, _ in bounded],
            },
        )
        | reach("lateness across", -0.6, max([1, *late, *(b for _, _, b in bounded)]) + 0.6)
        | reach("lateness up", 0.0, 1.05 * max([0.05, *bars["top"]]))
    )


def _add(bars: Rows, edge: Edge, number: int, edges: int) -> None:
    total, width = sum(edge["staleness"].values()), WIDTH / edges
    seen = "reads" if edge["exact"] else "looks"
    for late, count in edge["staleness"].items():
        more = " or more" if int(late) == MOST_BARS else ""
        bar = (
            int(late) + (number + 0.5) * width - WIDTH / 2,
            count / total,
            width * 0.95,
            edge["name"],
            SERIES[number],
            f"{edge['name']}: {late}{more} steps late in {count:,} {seen}",
        )
        for column, value in zip(COLUMNS, bar, strict=True):
            bars[column].append(value)
