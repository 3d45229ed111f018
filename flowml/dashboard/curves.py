"""Loss and evaluations against steps and against seconds, with marks where a worker was lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bokeh.models import ColumnDataSource, LinearAxis, Range1d
from bokeh.plotting import figure

from flowml.dashboard.contract import Evaluation, Point, RunSnapshot
from flowml.dashboard.looks import (
    LOST,
    SERIES,
    SOFT_INK,
    Changes,
    Rows,
    chart,
    fit,
    hover,
    legend,
    rows,
    source,
    span,
)

AXES = ("step", "seconds")
WORDS = {"step": "steps", "seconds": "seconds"}
LOSSLIKE = ("loss", "error", "norm")
"""Metrics whose name has one of these words share the axis of the loss."""
COLUMNS = ("step", "seconds", "value", "name", "color")


def charts() -> dict[str, figure]:
    """Return two charts over the same data."""
    sources = {
        "losses": source("losses", "step", "seconds", "value"),
        "near": source("evaluations", *COLUMNS),
        "far": source("scores", *COLUMNS, "score"),
        "near points": source("evaluation points", *COLUMNS),
        "far points": source("score points", *COLUMNS),
        "marks": source("marks", "step", "seconds", "text"),
    }
    up, scores = span("losses up"), span("scores up")
    return {f"curve_{axis}": _chart(axis, sources, up, scores) for axis in AXES}


def _chart(
    axis: str, sources: Mapping[str, ColumnDataSource], up: Range1d, scores: Range1d
) -> figure:
    found = chart(x_range=span(f"{axis} across"), y_range=up, x_axis_label=WORDS[axis])
    loss = found.line(
        axis,
        "value",
        source=sources["losses"],
        color="#4472b8",
        line_width=2,
        legend_label="loss",
    )
    found.scatter(axis, "value", source=sources["losses"], color="#4472b8", size=3)
    found.extra_y_ranges = {"score": scores}
    # A legend groups by a column of one source: the other source needs another name for it.
    for kind, legend_field, scale, dashes in (
        ("near", "name", "default", "solid"),
        ("far", "score", "score", "4 3"),
    ):
        found.multi_line(
            axis,
            "value",
            source=sources[kind],
            color="color",
            line_width=1.5,
            line_dash=dashes,
            legend_field=legend_field,
            y_range_name=scale,
        )
    dots = [
        found.scatter(
            axis,
            "value",
            source=sources[f"{kind} points"],
            color="color",
            size=4,
            y_range_name=scale,
        )
        for kind, scale in (("near", "default"), ("far", "score"))
    ]
    found.add_layout(_score_axis(axis), "right")
    marks = found.vspan(
        x=axis, source=sources["marks"], color=LOST, line_dash="dashed", line_width=1.5
    )
    hover(found, (WORDS[axis], f"@{axis}"), ("loss", "@value{0.0000}"), renderers=[loss])
    hover(found, ("", "@name @value{0.0000}"), (WORDS[axis], f"@{axis}"), renderers=dots)
    hover(found, ("", "@text"), renderers=[marks])
    legend(found)
    return found


def _score_axis(axis: str) -> LinearAxis:
    return LinearAxis(
        name=f"{axis} score axis",
        y_range_name="score",
        axis_line_color=None,
        major_tick_line_color=None,
        minor_tick_line_color=None,
        major_label_text_color=SOFT_INK,
        major_label_text_font_size="11px",
        visible=False,
    )


def changes(run: RunSnapshot) -> Changes:
    """Return what shows a run."""
    losses, evaluations, marks = run["losses"], run["evaluations"], run["marks"]
    colours = [SERIES[n % len(SERIES)] for n in range(len(evaluations))]
    both = list(zip(evaluations, colours, strict=True))
    near = [(e, c) for e, c in both if _is_losslike(e)]
    far = [(e, c) for e, c in both if not _is_losslike(e)]
    scores = _lines(far)
    reached = [*losses, *(p for e in evaluations for p in e["points"])]
    found = (
        rows("losses", _columns(losses))
        | rows("evaluations", _lines(near))
        | rows("scores", scores | {"score": scores["name"]})
        | rows("evaluation points", _points(near))
        | rows("score points", _points(far))
        | rows("marks", {k: [m[k] for m in marks] for k in ("step", "seconds", "text")})
        | fit("losses up", [*_values(losses), *(v for e, _ in near for v in _values(e["points"]))])
        | fit("scores up", [v for e, _ in far for v in _values(e["points"])])
        | fit("step across", [0, *(p["step"] for p in reached)], 0.02)
        | fit("seconds across", [0, *(p["seconds"] for p in reached)], 0.02)
    )
    return found | {f"{axis} score axis": {"visible": bool(far)} for axis in AXES}


def _is_losslike(evaluation: Evaluation) -> bool:
    return any(word in evaluation["metric"] for word in LOSSLIKE)


def _values(points: Sequence[Point]) -> list[float]:
    return [p["value"] for p in points]


def _columns(points: Sequence[Point]) -> Rows:
    return {
        "step": [p["step"] for p in points],
        "seconds": [p["seconds"] for p in points],
        "value": _values(points),
    }


def _lines(found: Sequence[tuple[Evaluation, str]]) -> Rows:
    """Return a row a curve."""
    curves = [_columns(e["points"]) for e, _ in found]
    return {
        **{k: [c[k] for c in curves] for k in ("step", "seconds", "value")},
        "name": [f"{e['name']} {e['metric']}" for e, _ in found],
        "color": [colour for _, colour in found],
    }


def _points(found: Sequence[tuple[Evaluation, str]]) -> Rows:
    """Return a row a point."""
    all_points = [p for e, _ in found for p in e["points"]]
    return {
        **_columns(all_points),
        "name": [f"{e['name']} {e['metric']}" for e, _ in found for _ in e["points"]],
        "color": [colour for e, colour in found for _ in e["points"]],
    }
