"""The page of a comparison: the table, the curves to the target, speed-up, and generalisation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from typing import Any

import numpy as np

from flowml.compare.rows import NUMPY, Row, cells_of, header_of, named, verdict_of
from flowml.compare.trial import Trial
from flowml.report.figures import (
    ACCENT,
    PALETTE,
    SOFT,
    WARN,
    Figure,
    add_tips,
    axis_of,
    plain,
    source_of,
)
from flowml.report.page import Section, render, table, verdict
from flowml.report.writing import version_section

DASHES = ("solid", "dashed", "dotted", "dotdash", "dashdot")
"""Of the numbers of replicas, in their order."""


def comparison_page(
    rows: Sequence[Row],
    trials: Sequence[Trial],
    target: float,
    words: str,
    *,
    score: str,
    drawings: Mapping[str, str],
    virtual: bool,
) -> str:
    """Return the page as HTML.

    Parameters
    ----------
    drawings : mapping of str to SVG
        Of each graph.
    """
    colours = _colours(rows)
    seconds = "virtual seconds" if virtual else "seconds"
    sections = [
        Section(
            "Result",
            table(header_of(score, virtual=virtual), [cells_of(row, score) for row in rows]),
            note=_note(words),
        ),
        _convergence(trials, target, colours, seconds),
        _speed(rows, colours),
        _generalisation(rows, score, colours),
        _graphs(drawings),
        version_section(),
    ]
    subtitle = f"{len(rows)} rows, {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"
    return render("Comparison", subtitle, verdict(verdict_of(rows)), sections)


def _note(words: str) -> str:
    return (
        f"{words[0].upper()}{words[1:]}, over the same training examples for all rows. Speed-up is "
        "against the same graph on one replica, to the same loss; x NumPy is against a plain NumPy "
        f"loop of the same model and rule in one process ({NUMPY}). The gap is what the score of "
        "the training examples is above that of the test examples."
    )


def _colours(rows: Sequence[Row]) -> dict[str, str]:
    graphs = [name for name in dict.fromkeys(row.graph for row in rows) if name != NUMPY]
    found = {name: PALETTE[number % len(PALETTE)] for number, name in enumerate(graphs)}
    return found | {NUMPY: SOFT}


def _convergence(
    trials: Sequence[Trial], target: float, colours: Mapping[str, str], seconds: str
) -> Section:
    counts = sorted({t.replicas for t in trials})
    losses = np.concatenate([t.curve.losses for t in trials] or [np.zeros(0)])
    figures: dict[str, Any] = {}
    for label in (seconds, "examples"):
        drawn = plain(f"training loss, by {label}", label, "loss", y_axis_type=axis_of(losses))
        drawn.height = 420
        for trial in trials:
            _curve(drawn, trial, label, colours, DASHES[counts.index(trial.replicas) % len(DASHES)])
        drawn.hspan(y=target, line_color=WARN, line_dash="dashed", line_width=1.5)
        drawn.legend.click_policy = "hide"
        drawn.legend.label_text_font_size = "11px"
        drawn.legend.background_fill_alpha = 0.8
        drawn.legend.border_line_color = None
        figures[label] = drawn
    note = "The dashed red line is the target. A click on a name hides it."
    return Section("Convergence", figures=figures, note=note)


def _curve(drawn: Figure, trial: Trial, label: str, colours: Mapping[str, str], dash: str) -> None:
    curve, name = trial.curve, named(trial.name, trial.replicas)
    known = np.isfinite(curve.losses)
    source = source_of(
        {
            "x": (curve.examples if label == "examples" else curve.seconds)[known],
            "loss": curve.losses[known],
            "step": curve.steps[known],
        }
    )
    colour = colours[trial.name]
    drawn.line("x", "loss", source=source, color=colour, line_dash=dash, width=2, legend_label=name)
    points = drawn.scatter("x", "loss", source=source, color=colour, size=5, legend_label=name)
    tips = [("", name), (label, "@x{0,0.[000]}"), ("loss", "@loss"), ("step", "@step{0,0}")]
    add_tips(drawn, points, tips)


def _speed(rows: Sequence[Row], colours: Mapping[str, str]) -> Section:
    graphs = [name for name in colours if name != NUMPY]
    counts = sorted({row.replicas for row in rows})
    drawn = plain("speed-up to the target", "replicas", "against one replica")
    drawn.line(counts, counts, color=SOFT, line_dash="dotted", legend_label="as many times")
    for name in graphs:
        mine = [r for r in rows if r.graph == name and not math.isnan(r.speedup)]
        if mine:
            x, y = [r.replicas for r in mine], [r.speedup for r in mine]
            drawn.line(x, y, color=colours[name], width=2, legend_label=name)
            drawn.scatter(x, y, color=colours[name], size=8, legend_label=name)
    drawn.xaxis.ticker = counts
    drawn.add_layout(drawn.legend[0], "right")
    drawn.legend.border_line_color = None
    there = [row for row in rows if row.reached]
    names = [row.name for row in there]
    bars = plain("time to the target", "seconds", "", y_range=list(reversed(names)))
    bars.height = 110 + 24 * max(3, len(names))
    bars.hbar(
        y=names,
        right=[row.target_seconds for row in there],
        height=0.7,
        color=[colours[row.graph] for row in there],
    )
    bars.x_range.start = 0
    return Section("Speed", figures={"speed-up": drawn, "time": bars})


def _generalisation(rows: Sequence[Row], score: str, colours: Mapping[str, str]) -> Section:
    """Return train and test of each row as two points, the gap between them as a line."""
    known = [
        (row, *((row.train_score, row.test_score) if score else (row.train_loss, row.test_loss)))
        for row in rows
    ]
    known = [found for found in known if not any(map(math.isnan, found[1:]))]
    if not known:
        return Section("Generalisation", note="There are no test examples.")
    names = [row.name for row, _, _ in known]
    measure = score or "loss"
    drawn = plain(f"{measure} of training and test", measure, "", y_range=list(reversed(names)))
    drawn.height = 110 + 24 * max(3, len(names))
    columns = {
        "row": names,
        "train": [train for _, train, _ in known],
        "test": [test for _, _, test in known],
        "gap": [row.gap for row, _, _ in known],
    }
    source = source_of(columns)
    drawn.segment(
        x0="train", x1="test", y0="row", y1="row", source=source, color=SOFT, line_width=2
    )
    drawn.scatter("train", "row", source=source, color=ACCENT, size=9, legend_label="training")
    points = drawn.scatter(
        "test", "row", source=source, color=WARN, size=9, marker="diamond", legend_label="test"
    )
    tips = [("", "@row"), ("training", "@train"), ("test", "@test"), ("gap", "@gap")]
    add_tips(drawn, points, tips)
    drawn.legend.orientation = "horizontal"
    drawn.add_layout(drawn.legend[0], "above")
    drawn.legend.border_line_color = None
    moved = [row for row in rows if row.reached and row.moved_bytes > 0]
    figures = {"scores": drawn}
    if moved:
        figures["bytes"] = _bytes_figure(moved, colours)
    return Section("Generalisation and communication", figures=figures)


def _bytes_figure(rows: Sequence[Row], colours: Mapping[str, str]) -> Figure:
    drawn = plain("bytes and time", "MiB between replicas", "seconds to the target")
    source = source_of(
        {
            "x": [row.moved_bytes / 2**20 for row in rows],
            "y": [row.target_seconds for row in rows],
            "row": [row.name for row in rows],
            "colour": [colours[row.graph] for row in rows],
        }
    )
    points = drawn.scatter("x", "y", source=source, color="colour", size=10)
    drawn.text("x", "y", "row", source=source, text_font_size="11px", x_offset=8, y_offset=4)
    drawn.x_range.range_padding, drawn.y_range.range_padding = 0.4, 0.2
    tips = [("", "@row"), ("MiB", "@x{0.00}"), ("seconds", "@y{0.000}")]
    add_tips(drawn, points, tips)
    return drawn


def _graphs(drawings: Mapping[str, str]) -> Section:
    parts = (
        f'<div class="drawing"><h3>{escape(name)}</h3>{drawing}</div>'
        for name, drawing in drawings.items()
    )
    return Section("Graphs", f'<div class="side">{"".join(parts)}</div>')
