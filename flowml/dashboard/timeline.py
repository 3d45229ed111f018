"""The last minute of each replica: its windows, and which part of each it waited."""

from __future__ import annotations

from typing import Any

from bokeh.models import FactorRange, Range1d

from flowml.dashboard.contract import Replica, RunSnapshot
from flowml.dashboard.looks import PARTS, chart, hover, legend, put, source
from flowml.dashboard.replicas import SHOWN_SECONDS

MOST_ROWS = 32
"""Replicas; of more, the slowest."""


class Timeline:
    """A row a replica, the slowest at the top."""

    def __init__(self) -> None:
        self._bars = source("timeline", "name", "left", "right", "part", "color", "text")
        self._rows = FactorRange(factors=[])
        self._span = Range1d(start=0, end=SHOWN_SECONDS)
        found = chart(y_range=self._rows, x_range=self._span, x_axis_label="seconds of the run")
        found.ygrid.grid_line_color = None
        bars = found.hbar(
            y="name",
            left="left",
            right="right",
            height=0.7,
            color="color",
            line_color="#ffffff",
            line_width=0.5,
            legend_field="part",
            source=self._bars,
        )
        hover(found, ("", "@text"), renderers=[bars])
        legend(found)
        self.roots = {"timeline": found}

    def update(self, run: RunSnapshot) -> None:
        """Show a run."""
        rows = run["replicas"][:MOST_ROWS]
        bars: dict[str, list[Any]] = {
            k: [] for k in ("name", "left", "right", "part", "color", "text")
        }
        for replica in rows:
            _add(bars, replica)
        put(self._bars, bars)
        names = [_name(r) for r in reversed(rows)]
        if list(self._rows.factors) != names:
            self._rows.factors = names
        self._span.start = max(0.0, run["seconds"] - SHOWN_SECONDS)
        self._span.end = max(run["seconds"], 1.0)


def _name(replica: Replica) -> str:
    return f"replica {replica['replica']}"


def _add(bars: dict[str, list[Any]], replica: Replica) -> None:
    for window in replica["windows"]:
        worked = window["seconds"] - min(window["wait_seconds"], window["seconds"])
        middle = window["start"] + worked
        for part, words, left, right in (
            ("compute", "working", window["start"], middle),
            ("wait", "waiting", middle, window["start"] + window["seconds"]),
        ):
            bars["name"].append(_name(replica))
            bars["left"].append(left)
            bars["right"].append(right)
            bars["part"].append(words)
            bars["color"].append(PARTS[part])
            bars["text"].append(
                f"{_name(replica)}: {window['steps']:,} steps in {window['seconds']:.3g} s, "
                f"{words} {right - left:.3g} s of them"
            )
