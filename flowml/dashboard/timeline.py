"""The last minute of each replica: its windows, and which part of each it waited."""

from __future__ import annotations

from bokeh.models import FactorRange
from bokeh.plotting import figure

from flowml.dashboard.contract import Replica, RunSnapshot
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
from flowml.dashboard.replicas import SHOWN_SECONDS

MOST_ROWS = 32
"""Replicas; of more, the slowest."""
COLUMNS = ("name", "left", "right", "part", "color", "text")


def charts() -> dict[str, figure]:
    """Return the chart: a row a replica, the slowest at the top."""
    found = chart(
        y_range=FactorRange(name="timeline rows"),
        x_range=span("timeline across"),
        x_axis_label="seconds of the run",
    )
    found.ygrid.grid_line_color = None
    bars = found.hbar(
        y="name",
        left="left",
        right="right",
        height=0.7,
        color="color",
        line_color="#ffffff",
        line_width=0.5,
        source=source("timeline", *COLUMNS),
    )
    hover(found, ("", "@text"), renderers=[bars])
    return {"timeline": found}


def changes(run: RunSnapshot) -> Changes:
    """Return what shows a run."""
    replicas, now = run["replicas"][:MOST_ROWS], run["seconds"]
    bars: Rows = {column: [] for column in COLUMNS}
    for replica in replicas:
        _add(bars, replica)
    return (
        rows("timeline", bars)
        | {"timeline rows": {"factors": [_name(r) for r in reversed(replicas)]}}
        | reach("timeline across", max(0.0, now - SHOWN_SECONDS), max(now, 1.0))
    )


def _name(replica: Replica) -> str:
    return f"replica {replica['replica']}"


def _add(bars: Rows, replica: Replica) -> None:
    for window in replica["windows"]:
        worked = window["seconds"] - min(window["wait_seconds"], window["seconds"])
        middle = window["start"] + worked
        for part, words, left, right in (
            ("compute", "working", window["start"], middle),
            ("wait", "waiting", middle, window["start"] + window["seconds"]),
        ):
            text = (
                f"{_name(replica)}: {window['steps']:,} steps in {window['seconds']:.3g} s, "
                f"{words} {right - left:.3g} s of them"
            )
            bar = (_name(replica), left, right, words, PARTS[part], text)
            for column, value in zip(COLUMNS, bar, strict=True):
                bars[column].append(value)
