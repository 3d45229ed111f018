"""Loss and evaluations against steps and against seconds, with marks where a worker was lost."""

from __future__ import annotations

from typing import Any

from bokeh.models import LinearAxis, Range1d
from bokeh.plotting import figure

from flowml.dashboard.contract import Evaluation, RunSnapshot
from flowml.dashboard.looks import LOST, SERIES, SOFT_INK, chart, fit, hover, legend, put, source

AXES = {"step": "steps", "seconds": "seconds"}
LOSSLIKE = ("loss", "error", "norm")
"""Metrics whose name has one of these words share the axis of the loss."""


class Curves:
    """Two charts over the same data."""

    def __init__(self) -> None:
        self._losses = source("losses", "step", "seconds", "value")
        columns = ("step", "seconds", "value", "name", "color")
        self._near = source("evaluations", *columns)
        self._far = source("scores", *columns, "score")
        self._near_points = source("evaluation points", *columns)
        self._far_points = source("score points", *columns)
        self._marks = source("marks", "step", "seconds", "text")
        self._far_axes: list[LinearAxis] = []
        self._across: dict[str, Range1d] = {}
        self._up, self._scores = Range1d(start=0, end=1), Range1d(start=0, end=1)
        self.roots = {f"curve_{axis}": self._chart(axis, words) for axis, words in AXES.items()}

    def _chart(self, axis: str, words: str) -> figure:
        self._across[axis] = Range1d(start=0, end=1)
        found = chart(x_range=self._across[axis], y_range=self._up, x_axis_label=words)
        loss = found.line(
            axis,
            "value",
            source=self._losses,
            color="#4472b8",
            line_width=2,
            legend_label="loss",
        )
        found.multi_line(
            axis, "value", source=self._near, color="color", line_width=1.5, legend_field="name"
        )
        dots = found.scatter(axis, "value", source=self._near_points, color="color", size=4)
        found.extra_y_ranges = {"score": self._scores}
        found.multi_line(
            axis,
            "value",
            source=self._far,
            color="color",
            line_width=1.5,
            line_dash="4 3",
            legend_field="score",
            y_range_name="score",
        )
        far_dots = found.scatter(
            axis, "value", source=self._far_points, color="color", size=4, y_range_name="score"
        )
        self._score_axis(found)
        found.vspan(x=axis, source=self._marks, color=LOST, line_dash="dashed", line_width=1.5)
        words_of_mark = found.scatter(
            axis, 0, source=self._marks, color=LOST, size=9, marker="inverted_triangle"
        )
        hover(found, (words, f"@{axis}"), ("loss", "@value{0.0000}"), renderers=[loss])
        hover(found, ("", "@name @value{0.0000}"), (words, f"@{axis}"), renderers=[dots, far_dots])
        hover(found, ("", "@text"), renderers=[words_of_mark])
        legend(found)
        return found

    def _score_axis(self, found: figure) -> None:
        axis = LinearAxis(
            y_range_name="score",
            axis_line_color=None,
            major_tick_line_color=None,
            minor_tick_line_color=None,
            major_label_text_color=SOFT_INK,
            major_label_text_font_size="11px",
            visible=False,
        )
        found.add_layout(axis, "right")
        self._far_axes.append(axis)

    def update(self, run: RunSnapshot) -> None:
        """Show a run."""
        points = run["losses"]
        put(self._losses, {k: [p[k] for p in points] for k in ("step", "seconds", "value")})
        near = [e for e in run["evaluations"] if _is_losslike(e)]
        far = [e for e in run["evaluations"] if not _is_losslike(e)]
        colours = {id(e): SERIES[n % len(SERIES)] for n, e in enumerate(run["evaluations"])}
        put(self._near, _lines(near, colours))
        # A legend groups by a column of one source: the other source needs another name for it.
        put(self._far, (lines := _lines(far, colours)) | {"score": lines["name"]})
        put(self._near_points, _points(near, colours))
        put(self._far_points, _points(far, colours))
        for axis in self._far_axes:
            axis.visible = bool(far)
        reached = [*points, *(p for e in run["evaluations"] for p in e["points"])]
        fit(self._across["step"], [0, *(p["step"] for p in reached)], 0.02)
        fit(self._across["seconds"], [0, *(p["seconds"] for p in reached)], 0.02)
        fit(
            self._up, [p["value"] for p in points] + [p["value"] for e in near for p in e["points"]]
        )
        fit(self._scores, [p["value"] for e in far for p in e["points"]])
        marks = run["marks"]
        put(
            self._marks,
            {
                "step": [m["step"] for m in marks],
                "seconds": [m["seconds"] for m in marks],
                "text": [m["text"] for m in marks],
            },
        )


def _is_losslike(evaluation: Evaluation) -> bool:
    return any(word in evaluation["metric"] for word in LOSSLIKE)


def _label(evaluation: Evaluation) -> str:
    return f"{evaluation['name']} {evaluation['metric']}"


def _lines(found: list[Evaluation], colours: dict[int, str]) -> dict[str, list[Any]]:
    return {
        "step": [[p["step"] for p in e["points"]] for e in found],
        "seconds": [[p["seconds"] for p in e["points"]] for e in found],
        "value": [[p["value"] for p in e["points"]] for e in found],
        "name": [_label(e) for e in found],
        "color": [colours[id(e)] for e in found],
    }


def _points(found: list[Evaluation], colours: dict[int, str]) -> dict[str, list[Any]]:
    rows = [(p, e) for e in found for p in e["points"]]
    return {
        "step": [p["step"] for p, _ in rows],
        "seconds": [p["seconds"] for p, _ in rows],
        "value": [p["value"] for p, _ in rows],
        "name": [_label(e) for _, e in rows],
        "color": [colours[id(e)] for _, e in rows],
    }
