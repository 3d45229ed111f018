"""An HTML page in one file: sections of text, tables and Bokeh figures, and the script they need.

The file holds all of BokehJS (1.3 MB), so that it opens from a disk with no network; it asks for
nothing from anywhere. Bokeh is imported where a page is made: see figures.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

STYLE = """
:root { --ink: #1b2a41; --soft: #56657c; --line: #dde3ec; --accent: #4472b8; --warn: #b0306a }
* { box-sizing: border-box }
body { margin: 0; color: var(--ink); background: #f5f7fa;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif }
main { max-width: 1240px; margin: 0 auto; padding: 24px }
h1 { font-size: 26px; margin: 0 } h2 { font-size: 18px; margin: 0 0 10px }
h3 { font-size: 15px; margin: 0 0 6px; color: var(--soft) }
header p { margin: 4px 0 0; color: var(--soft) }
nav { margin: 12px 0 0 } nav a { color: var(--accent); margin-right: 14px; text-decoration: none }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px;
  padding: 18px 20px; margin: 18px 0 }
.note { color: var(--soft); margin: 0 0 10px; max-width: 80ch }
.facts { display: flex; flex-wrap: wrap; gap: 10px 34px; margin: 14px 0 0 }
.facts dt { color: var(--soft); font-size: 13px } .facts dd { margin: 0; font-size: 20px }
.verdict { border-left: 4px solid var(--accent); padding: 8px 14px; margin: 14px 0 0;
  background: #eef3fb } .verdict.warn { border-color: var(--warn); background: #fbeef4 }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 16px }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } .wide { overflow-x: auto }
th, td { text-align: left; padding: 4px 16px 4px 0; border-bottom: 1px solid var(--line);
  white-space: nowrap } th { color: var(--soft); font-weight: 500; font-size: 13px }
td.number, th.number { text-align: right } tr.warn td { color: var(--warn); font-weight: 600 }
pre { overflow-x: auto; background: #f5f7fa; border-radius: 6px; padding: 12px; font-size: 13px;
  line-height: 1.45; margin: 0 }
.drawing svg { display: block; margin: 0 auto }
@media print { body { background: #fff } section { break-inside: avoid } nav { display: none } }
"""


NO_NUMBER = ("", "?", "-", "not reached", "diverged", "failed")
"""What stands in a column of numbers where there is none."""


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes
    ----------
    title : str
    body : str
        HTML.
    figures : mapping of str to figure
        Bokeh figures by name, drawn side by side under the body.
    note : str
        What to know to read it, as plain text.
    """

    title: str
    body: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def anchor(self) -> str:
        """Where a link to it goes."""
        return "".join(c if c.isalnum() else "-" for c in self.title.lower())


def render(title: str, subtitle: str, head: str, sections: Sequence[Section]) -> str:
    """Return a page as HTML.

    Parameters
    ----------
    title, subtitle : str
        Plain text.
    head : str
        HTML under the title: the facts that count.
    sections : sequence of Section
    """
    figures = {f"{s.anchor}/{name}": f for s in sections for name, f in s.figures.items()}
    library, script, places = _embedded(figures) if figures else ("", "", {})
    links = "".join(f'<a href="#{s.anchor}">{escape(s.title)}</a>' for s in sections)
    parts = "".join(_section(section, places) for section in sections)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        '</title><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><style>{STYLE}</style>{library}</head><body><main>'
        f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p><nav>{links}</nav>{head}"
        f"</header>{parts}<p class='note'>made by flowml {version('flowml')}</p></main>{script}"
        "</body></html>"
    )


def _embedded(figures: Mapping[str, Any]) -> tuple[str, str, Mapping[str, Any]]:
    """Return BokehJS, the script of some figures, and the place of each."""
    from bokeh.embed import components
    from bokeh.resources import Resources

    script, places = components(dict(figures))
    return Resources(mode="inline", components=["bokeh"]).render_js(), script, places


def write(path: str | Path, page: str) -> Path:
    """Write a page; return its path."""
    target = Path(path)
    target.write_text(page, encoding="utf-8")
    return target


def _section(section: Section, places: Mapping[str, Any]) -> str:
    note = f'<p class="note">{escape(section.note)}</p>' if section.note else ""
    drawn = "".join(
        f'<div class="figure">{places[f"{section.anchor}/{name}"]}</div>'
        for name in section.figures
    )
    figures = f'<div class="side">{drawn}</div>' if drawn else ""
    return (
        f'<section id="{section.anchor}"><h2>{escape(section.title)}</h2>{note}{section.body}'
        f"{figures}</section>"
    )


def facts(values: Mapping[str, str]) -> str:
    """Return a row of numbers with their names."""
    items = (f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in values.items() if v)
    return f'<dl class="facts">{"".join(items)}</dl>'


def verdict(words: str, *, warns: bool = False) -> str:
    """Return a sentence that stands out."""
    return f'<p class="verdict{" warn" if warns else ""}">{escape(words)}</p>'


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, marked: Sequence[int] = ()
) -> str:
    """Return a table without its empty columns; columns of numbers are aligned to the right.

    Parameters
    ----------
    marked : sequence of int
        Numbers of rows that stand out.
    """
    filled = [n for n in range(len(header)) if not rows or any(row[n] for row in rows)]
    header, rows = [header[n] for n in filled], [[row[n] for n in filled] for row in rows]
    numbers = [bool(rows) and all(_is_number(row[n]) for row in rows) for n in range(len(header))]
    classes = [' class="number"' if number else "" for number in numbers]
    top = "".join(f"<th{c}>{escape(h)}</th>" for h, c in zip(header, classes, strict=True))
    lines = (
        f"<tr{' class=warn' if n in marked else ''}>"
        + "".join(f"<td{c}>{escape(cell)}</td>" for cell, c in zip(row, classes, strict=True))
        + "</tr>"
        for n, row in enumerate(rows)
    )
    return (
        f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody>'
        "</table></div>"
    )


def _is_number(cell: str) -> bool:
    """Tell whether a cell begins as a number does, or says why there is none."""
    return cell in NO_NUMBER or cell.lstrip("+-").startswith(tuple("0123456789"))
