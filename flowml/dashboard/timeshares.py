"""What the replicas' time goes into: a row an operator, its own work and its waits."""

from __future__ import annotations

from bokeh.models import FactorRange, NumeralTickFormatter
from bokeh.plotting import figure

from flowml.dashboard.contract import RunSnapshot, Share
from flowml.dashboard.looks import (
    PARTS,
    Changes,
    Rows,
    chart,
    hover,
    reach,
    rows,
    source,
    span,
)

MOST_ROWS = 14
COLUMNS = ("name", "left", "right", "part", "color", "text")
"""The colours of the parts are explained in page.html."""
WORDS = {
    "compute": "computing",
    "apply": "sums and writes",
    "wait": "waiting",
    "transfer": "moving values",
    "scheduler": "between windows",
}
"""Words of a part, in the legend and for what belongs to no operator."""


def charts() -> dict[str, figure]:
    """Return the chart."""
    found = chart(y_range=FactorRange(name="share rows"), x_range=span("shares across"))
    found.xaxis.formatter = NumeralTickFormatter(format="0 %")
    found.ygrid.grid_line_color = None
    bars = found.hbar(
        y="name",
        left="left",
        right="right",
        height=0.66,
        color="color",
        source=source("shares", *COLUMNS),
    )
    hover(found, ("", "@text"), renderers=[bars])
    return {"shares": found}


def changes(run: RunSnapshot) -> Changes:
    """Return what shows a run."""
    found = [(o["title"], o["parts"]) for o in run["operators"] if o["parts"]]
    found += [(WORDS[s["part"]], [s]) for s in run["elsewhere"]]
    found.sort(key=lambda row: -_total(row[1]))
    found = found[:MOST_ROWS]
    end = max((_total(parts) for _, parts in found), default=0.9)
    return (
        rows("shares", _stacked(found))
        | {"share rows": {"factors": [name for name, _ in reversed(found)]}}
        # In tenths, so that the scale does not twitch with each look.
        | reach("shares across", 0.0, min(1.0, (int(end * 10) + 1) / 10))
    )


def _total(parts: list[Share]) -> float:
    return sum(s["share"] for s in parts)


def _stacked(found: list[tuple[str, list[Share]]]) -> Rows:
    out: Rows = {column: [] for column in COLUMNS}
    for name, parts in found:
        at = 0.0
        for share in sorted(parts, key=lambda s: list(PARTS).index(s["part"])):
            what = f"waits for {share['edge']}" if share["edge"] else WORDS[share["part"]]
            bar = (
                name,
                at,
                at + share["share"],
                WORDS[share["part"]],
                PARTS[share["part"]],
                f"{name}: {what} {share['share']:.1%}",
            )
            at += share["share"]
            for column, value in zip(COLUMNS, bar, strict=True):
                out[column].append(value)
    return out
