"""Bars: what the replicas' time goes into, and what edges carry."""

from __future__ import annotations

from typing import Any

from bokeh.models import FactorRange, NumeralTickFormatter, Range1d

from flowml.dashboard.contract import Edge, RunSnapshot, Share
from flowml.dashboard.looks import INK, PARTS, chart, hover, legend, put, source

MOST_ROWS = 14
WORDS = {
    "compute": "computing",
    "apply": "sums and writes",
    "wait": "waiting",
    "transfer": "moving values",
    "scheduler": "between windows",
}
"""Words of a part, in the legend and for what belongs to no operator."""


class TimeShares:
    """A row an operator: its own work and its waits, as parts of the replicas' time."""

    def __init__(self) -> None:
        self._bars = source("shares", "name", "left", "right", "part", "color", "text")
        self._rows = FactorRange(factors=[])
        self._scale = Range1d(start=0, end=1)
        found = chart(y_range=self._rows, x_range=self._scale)
        found.xaxis.formatter = NumeralTickFormatter(format="0 %")
        found.ygrid.grid_line_color = None
        bars = found.hbar(
            y="name",
            left="left",
            right="right",
            height=0.66,
            color="color",
            legend_field="part",
            source=self._bars,
        )
        hover(found, ("", "@text"), renderers=[bars])
        legend(found)
        self.roots = {"shares": found}

    def update(self, run: RunSnapshot) -> None:
        """Show a run."""
        rows = [(o["title"], o["parts"]) for o in run["operators"] if o["parts"]]
        rows += [(WORDS[s["part"]], [s]) for s in run["elsewhere"]]
        rows.sort(key=lambda row: -sum(s["share"] for s in row[1]))
        rows = rows[:MOST_ROWS]
        put(self._bars, _stacked(rows))
        names = [name for name, _ in reversed(rows)]
        if list(self._rows.factors) != names:
            self._rows.factors = names
        end = max((sum(s["share"] for s in parts) for _, parts in rows), default=0.9)
        # In tenths, so that the scale does not twitch with each look.
        self._scale.end = min(1.0, (int(end * 10) + 1) / 10)


def _stacked(rows: list[tuple[str, list[Share]]]) -> dict[str, list[Any]]:
    out: dict[str, list[Any]] = {k: [] for k in ("name", "left", "right", "part", "color", "text")}
    for name, parts in rows:
        at = 0.0
        for share in sorted(parts, key=lambda s: list(PARTS).index(s["part"])):
            out["name"].append(name)
            out["left"].append(at)
            at += share["share"]
            out["right"].append(at)
            out["part"].append(WORDS[share["part"]])
            out["color"].append(PARTS[share["part"]])
            what = f"waits for {share['edge']}" if share["edge"] else WORDS[share["part"]]
            out["text"].append(f"{name}: {what} {share['share']:.1%}")
    return out


class Traffic:
    """A row an edge that crosses between replicas: bytes a second, so far, and the codec's part."""

    def __init__(self) -> None:
        self._bars = source("traffic", "name", "rate", "text", "color")
        self._rows = FactorRange(factors=[])
        self._scale = Range1d(start=0, end=1)
        found = chart(y_range=self._rows, x_range=self._scale)
        found.xaxis.visible = False  # the words at the bars say it
        found.grid.grid_line_color = None
        bars = found.hbar(y="name", right="rate", height=0.5, color="color", source=self._bars)
        found.text(
            x="rate",
            y="name",
            text="text",
            source=self._bars,
            x_offset=6,
            text_baseline="middle",
            text_font_size="11px",
            text_color=INK,
        )
        hover(found, ("", "@name: @text"), renderers=[bars])
        self.roots = {"traffic": found}

    def update(self, run: RunSnapshot) -> None:
        """Show a run."""
        edges = [e for e in run["edges"] if e["crosses"]]
        edges = sorted(edges, key=lambda e: -_length(e))[:MOST_ROWS]
        put(
            self._bars,
            {
                "name": [e["name"] for e in edges],
                "rate": [_length(e) for e in edges],
                "text": [traffic_words(e) for e in edges],
                "color": [PARTS["transfer"] if e["ratio"] else PARTS["compute"] for e in edges],
            },
        )
        # Three times as wide as the longest bar: the words stand right of it.
        self._scale.end = 3 * max([1.0, *map(_length, edges)])
        names = [e["name"] for e in reversed(edges)]
        if list(self._rows.factors) != names:
            self._rows.factors = names


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
