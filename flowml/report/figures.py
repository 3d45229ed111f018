"""The figures of a report, as Bokeh models over columns of a run.

Bokeh is imported where a figure is made: it takes a second, and every worker imports flowml.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flowml.types import Array

HEIGHT = 300
INK, SOFT, ACCENT, WARN = "#1b2a41", "#56657c", "#4472b8", "#b0306a"
BUSY, WAITS = "#4472b8", "#f3cf96"
PALETTE = (
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd",
    "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf",
)  # fmt: skip
SMOOTHED_OVER = 50
"""A loss is smoothed over this part of its points."""
LOG_FROM = 5.0
"""A positive value that changes by so much is drawn on a logarithmic axis."""

Figure = Any
"""A ``bokeh.plotting.figure``, whose calls are not typed."""


def plain(title: str, x: str, y: str, **options: Any) -> Figure:
    """Return an empty figure in the look of the page."""
    from bokeh.plotting import figure

    made: Figure = figure(
        title=title,
        height=HEIGHT,
        sizing_mode="stretch_width",
        tools="pan,box_zoom,xwheel_zoom,reset,save",
        x_axis_label=x,
        y_axis_label=y,
        **options,
    )
    made.toolbar.logo = None
    made.toolbar.autohide = True
    made.title.text_color = INK
    made.outline_line_color = None
    made.grid.grid_line_color = "#e8edf4"
    made.axis.axis_label_text_font_style = "normal"
    made.axis.axis_label_text_color = made.axis.major_label_text_color = SOFT
    return made


def source_of(columns: Mapping[str, Any]) -> Any:
    """Return columns as a figure takes them."""
    from bokeh.models import ColumnDataSource

    return ColumnDataSource(dict(columns))


def add_tips(drawn: Figure, shapes: Any, tips: Sequence[tuple[str, str]]) -> None:
    """Show facts where the pointer is over shapes of a figure."""
    from bokeh.models import HoverTool

    drawn.add_tools(HoverTool(renderers=[shapes], tooltips=list(tips)))


def axis_of(values: Array) -> str:
    """Return "log" for positive values that change much, else "linear"."""
    known = values[np.isfinite(values)]
    spread = len(known) > 1 and known.min() > 0 and known.max() > LOG_FROM * known.min()
    return "log" if spread else "linear"


def smoothed(values: Array) -> Array:
    """Return a running mean over a part of the values, shorter at both ends.

    Examples
    --------
    >>> smoothed(np.array([1.0, 3.0, 5.0])).tolist()
    [1.0, 3.0, 5.0]
    """
    reach = len(values) // (2 * SMOOTHED_OVER)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    first, last = np.maximum(0, at - reach), np.minimum(len(values), at + reach + 1)
    return np.asarray((sums[last] - sums[first]) / (last - first))


def loss_figure(
    x: Array, loss: Array, label: str, evaluated: Mapping[str, tuple[Array, Array]]
) -> Figure:
    """Return the loss against steps or seconds, with what evaluations say of it.

    Parameters
    ----------
    x, loss : ndarray, shape (n,)
    label : str
        What ``x`` is.
    evaluated : mapping of name to (x, loss)
    """
    drawn = plain(f"loss, by {label}", label, "loss", y_axis_type=axis_of(loss))
    source = source_of({"x": x, "loss": loss, "mean": smoothed(loss)})
    drawn.line("x", "loss", source=source, color=ACCENT, alpha=0.3, legend_label="of the batches")
    shown = drawn.line("x", "mean", source=source, color=ACCENT, width=2, legend_label="smoothed")
    add_tips(drawn, shown, [(label, "@x{0,0.[000]}"), ("loss", "@mean")])
    for number, (name, (at, found)) in enumerate(evaluated.items(), 1):
        colour = PALETTE[number % len(PALETTE)]
        drawn.line(at, found, color=colour, width=1.5, legend_label=name)
        drawn.scatter(at, found, color=colour, size=6, legend_label=name)
    drawn.legend.label_text_font_size = "12px"
    drawn.legend.background_fill_alpha = 0.8
    drawn.legend.border_line_color = None
    return drawn


def metric_figure(name: str, x: Array, values: Array, label: str) -> Figure:
    """Return one metric of an evaluation."""
    drawn = plain(name, label, name.rpartition(" ")[2])
    drawn.line(x, values, color=PALETTE[2], width=1.5)
    points = drawn.scatter(x, values, color=PALETTE[2], size=6)
    add_tips(drawn, points, [(label, "@x"), (name, "@y")])
    return drawn


def staleness_figure(staleness: Array, bound: float) -> Figure:
    """Return a histogram of the steps that reads were late, with the bound as a line."""
    values, counts = np.unique(staleness, return_counts=True)
    drawn = plain("staleness of the reads", "steps late", "share of the steps")
    shares = counts / counts.sum()
    bars = drawn.vbar(x=values, top=shares, width=0.8, color=ACCENT, alpha=0.85)
    add_tips(drawn, bars, [("late", "@x"), ("share", "@top{0.0%}")])
    drawn.y_range.start = 0
    if np.isfinite(bound):
        drawn.vspan(x=bound + 0.5, line_color=WARN, line_dash="dashed", line_width=2)
        drawn.x_range.start, drawn.x_range.end = -0.6, max(bound, float(values.max())) + 1
    return drawn


def height_of(rows: Sequence[str]) -> int:
    """Return the height of a figure with a strip for each of these rows. Unit: pixels."""
    return 110 + 24 * max(len(rows), 3)


def waits_figure(rows: Sequence[str], edges: Array, waits: Array) -> Figure:
    """Return how much each replica waited over the run: a strip a replica.

    Parameters
    ----------
    rows : sequence of str
        Names of the replicas, top to bottom.
    edges : ndarray, shape (n + 1,)
        Seconds.
    waits : ndarray, shape (len(rows), n)
        Part of the time that a replica waited; NaN where it did nothing that is kept.
    """
    drawn = plain("waiting over the run", "seconds", "", y_range=list(reversed(rows)))
    drawn.height = height_of(rows)
    row, at = np.nonzero(np.isfinite(waits))
    share = waits[row, at]
    source = source_of(
        {
            "replica": [rows[number] for number in row.tolist()],
            "left": edges[at],
            "right": edges[at + 1],
            "share": share,
            "colour": [_between(BUSY, WAITS, float(s)) for s in share],
        }
    )
    strips = drawn.hbar(
        y="replica", left="left", right="right", height=0.8, color="colour", source=source
    )
    tips = [("", "@replica"), ("seconds", "@left{0.000} to @right{0.000}"), ("waits", "@share{0%}")]
    add_tips(drawn, strips, tips)
    drawn.ygrid.visible = False
    return drawn


def steps_figure(rows: Sequence[str], steps: Mapping[str, Sequence[Any]]) -> Figure:
    """Return single steps of each replica: what it computed, and what it waited.

    Parameters
    ----------
    rows : sequence of str
    steps : mapping
        Columns ``replica`` (its name), ``step``, ``left``, ``right``, ``what``.
    """
    first, last = min(steps["step"]), max(steps["step"])
    drawn = plain(f"steps {first} to {last}", "seconds", "", y_range=list(reversed(rows)))
    drawn.height = height_of(rows)
    colours = {"computes": BUSY, "waits": WAITS}
    for what, colour in colours.items():
        mine = [n for n, found in enumerate(steps["what"]) if found == what]
        if not mine:
            continue
        columns = {name: [column[n] for n in mine] for name, column in steps.items()}
        bars = drawn.hbar(
            y="replica",
            left="left",
            right="right",
            height=0.8,
            color=colour,
            line_color="#ffffff",
            source=source_of(columns),
            legend_label=what,
        )
        tips = [
            ("", "@replica"),
            ("step", "@step"),
            ("", "@what from @left{0.0000} to @right{0.0000}"),
        ]
        add_tips(drawn, bars, tips)
    drawn.legend.orientation = "horizontal"
    drawn.add_layout(drawn.legend[0], "above")
    drawn.legend.border_line_color = None
    drawn.ygrid.visible = False
    return drawn


def _between(first: str, last: str, share: float) -> str:
    """Return a colour between two, as ``#rrggbb``."""
    pairs = zip(_channels(first), _channels(last), strict=True)
    mixed = (round(a + (b - a) * min(max(share, 0.0), 1.0)) for a, b in pairs)
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def _channels(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))
