"""What the charts of the page share: colours, sizes, and how they are changed.

A chart is built once for each viewer and has no data. What it shows comes as *changes*: properties
by the name of a Bokeh model, which the browser sets. All charts are changed by one message, since
each property that Python sets is a message by itself and costs the scheduler a millisecond.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

from bokeh.models import ColumnDataSource, HoverTool, Range1d
from bokeh.plotting import figure

Changes: TypeAlias = dict[str, dict[str, Any]]
"""Name of a model -> property -> value."""
Rows: TypeAlias = dict[str, list[Any]]
"""Columns of a chart's data."""

INK, SOFT_INK, LINE = "#1b2a41", "#56657c", "#d5dbe5"
PARTS = {
    "compute": "#4472b8",
    "apply": "#3d8b5f",
    "wait": "#e0a030",
    "transfer": "#8a63b0",
    "scheduler": "#9aa3b2",
}
"""Colour of each part of a step's time."""
SERIES = ("#b0306a", "#c17f24", "#2a8c8c", "#6b4fa0", "#7a8a1f", "#8a4b2a")
"""Colours of what is several and has no colour of its own."""
LOST = "#c0392b"


def chart(**options: Any) -> figure:
    """Return a chart without data, as wide and high as its place on the page."""
    found = figure(
        sizing_mode="stretch_both",
        toolbar_location=None,
        tools="",
        min_border_left=8,
        min_border_right=12,
        min_border_top=6,
        min_border_bottom=6,
        outline_line_color=None,
        **options,
    )
    found.background_fill_color = found.border_fill_color = "#ffffff"
    found.grid.grid_line_color = "#eef1f5"
    for axis in found.axis:
        axis.axis_line_color = LINE
        axis.major_tick_line_color = LINE
        axis.minor_tick_line_color = None
        axis.major_label_text_color = SOFT_INK
        axis.major_label_text_font_size = "11px"
        axis.axis_label_text_color = SOFT_INK
        axis.axis_label_text_font_size = "11px"
        axis.axis_label_text_font_style = "normal"
    return found


def legend(found: figure) -> None:
    """Set the legend of a chart: one small line above it."""
    found.legend.label_text_font_size = "11px"
    found.legend.label_text_color = INK
    found.legend.background_fill_alpha = 0.0
    found.legend.border_line_color = None
    found.legend.orientation = "horizontal"
    found.legend.margin = 0
    found.legend.spacing = 12
    found.legend.glyph_height = 12
    found.legend.glyph_width = 16
    found.legend.label_standoff = 4
    found.add_layout(found.legend[0], "above")


def hover(found: figure, *lines: tuple[str, str], renderers: Any = "auto") -> None:
    """Let a chart tell of the data under the pointer."""
    found.add_tools(HoverTool(tooltips=list(lines), renderers=renderers))


def source(name: str, *columns: str) -> ColumnDataSource:
    """Return a source without rows, which ``rows`` fills by its name."""
    return ColumnDataSource({column: [] for column in columns}, name=f"rows of {name}")


def rows(name: str, found: Rows) -> Changes:
    """Return the change that fills a source."""
    return {f"rows of {name}": {"data": found}}


def span(name: str, start: float = 0.0, end: float = 1.0) -> Range1d:
    """Return the range of an axis, which ``fit`` and ``reach`` change by its name."""
    return Range1d(start=start, end=end, name=name)


def reach(name: str, start: float, end: float) -> Changes:
    """Return the change that lets an axis go from one value to another."""
    return {name: {"start": start, "end": end}}


def fit(name: str, values: Iterable[float], padding: float = 0.04) -> Changes:
    """Return the change that lets an axis show all values, and a little more.

    Notes
    -----
    Bokeh's DataRange1d does that by itself, but complains in the console without data.
    """
    found = list(values)
    low, high = (min(found), max(found)) if found and any(found) else (0.0, 1.0)
    more = (high - low or abs(high)) * padding
    return reach(name, low - more, high + more)
