"""What edges between replicas carry: bytes a second, so far, and how much a codec saves."""

from __future__ import annotations

from bokeh.models import FactorRange
from bokeh.plotting import figure

from flowml.dashboard.contract import Edge, RunSnapshot
from flowml.dashboard.looks import (
    INK,
    PARTS,
    Changes,
    chart,
    hover,
    reach,
    rows,
    source,
    span,
)

MOST_ROWS = 14


def charts() -> dict[str, figure]:
    """Return the chart: a row an edge."""
    data = source("traffic", "name", "rate", "text", "color")
    found = chart(y_range=FactorRange(name="traffic rows"), x_range=span("traffic across"))
    found.xaxis.visible = False  # the words at the bars say it
    found.grid.grid_line_color = None
    bars = found.hbar(y="name", right="rate", height=0.5, color="color", source=data)
    found.text(
        x="rate",
        y="name",
        text="text",
        source=data,
        x_offset=6,
        text_baseline="middle",
        text_font_size="11px",
        text_color=INK,
    )
    hover(found, ("", "@name: @text"), renderers=[bars])
    return {"traffic": found}


def changes(run: RunSnapshot) -> Changes:
    """Return what shows a run."""
    edges = sorted((e for e in run["edges"] if e["crosses"]), key=lambda e: -_length(e))
    edges = edges[:MOST_ROWS]
    return (
        rows(
            "traffic",
            {
                "name": [e["name"] for e in edges],
                "rate": [_length(e) for e in edges],
                "text": [traffic_words(e) for e in edges],
                "color": [PARTS["transfer"] if e["ratio"] else PARTS["compute"] for e in edges],
            },
        )
        | {"traffic rows": {"factors": [e["name"] for e in reversed(edges)]}}
        # Three times as wide as the longest bar: the words stand right of it.
        | reach("traffic across", 0.0, 3 * max([1.0, *map(_length, edges)]))
    )


def _length(edge: Edge) -> float:
    """Return how long the bar of an edge is: bytes a second, or in all once nothing flows."""
    rate = edge["bytes_per_second"]
    return (edge["bytes"] or 0.0) if rate is None else rate


def traffic_words(edge: Edge) -> str:
    """Return what an edge carries: a second, in all, and how much smaller a codec makes it."""
    rate, total, ratio = edge["bytes_per_second"], edge["bytes"], edge["ratio"]
    parts = (
        f"{short_bytes(rate)}/s" if rate is not None else "",
        short_bytes(total) if total is not None else "size not known",
        f"{ratio:.3g} times smaller" if ratio else "",
    )
    return ", ".join(part for part in parts if part)


def short_bytes(count: float) -> str:
    """Return a size with three digits.

    Examples
    --------
    >>> short_bytes(0), short_bytes(31400), short_bytes(1023.9 * 2**20)
    ('0 B', '30.7 kiB', '1 GiB')
    """
    for unit in ("B", "kiB", "MiB", "GiB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"
