"""A graph as the text of a Mermaid flowchart, which many pages draw."""

from __future__ import annotations

from flowml.actions import GLOBAL, REPLICA
from flowml.drawing.words import Arrow, Promises, Vertex, picture
from flowml.graph import LogicalGraph

CLASSES = {
    REPLICA: "fill:#eaf1fd,stroke:#4472b8,color:#1b2a41",
    "group": "fill:#e7f6ec,stroke:#3d8b5f,color:#1b2a41",
    GLOBAL: "fill:#fdf1de,stroke:#c17f24,color:#1b2a41",
    "driver": "fill:#f1f1f4,stroke:#85858f,color:#1b2a41",
}


def as_mermaid(graph: LogicalGraph, promises: Promises | None = None) -> str:
    """Return a graph as a Mermaid flowchart: dotted is not sync, thick closes the loop.

    Parameters
    ----------
    promises : mapping of (operator, number of the input) to Promise, optional
        The promises taken by unmarked edges, named where they are not sync.
    """
    drawn = picture(graph, promises)
    names = {v.name: f"n{i}" for i, v in enumerate(drawn.vertices)}
    lines = ["flowchart TD"]
    lines += [f"  {names[v.name]}{_box(v)}:::{_class(v)}" for v in drawn.vertices]
    lines += [f"  {names[a.source]} {_link(a)} {names[a.target]}" for a in drawn.arrows]
    used = {_class(v) for v in drawn.vertices}
    styles = ((f"{name}_", style) for name, style in CLASSES.items())
    lines += [f"  classDef {name} {style}" for name, style in styles if name in used]
    return "\n".join(lines) + "\n"


def _class(vertex: Vertex) -> str:
    # the underscore keeps clear of words that Mermaid reserves
    return f"{vertex.scope if vertex.scope in CLASSES else 'group'}_"


def _box(vertex: Vertex) -> str:
    text = _escaped(vertex.name) + "<br/>" + _escaped(f"{vertex.kind}: {vertex.detail}")
    return f'[("{text}")]' if vertex.kind == "table" else f'["{text}"]'


def _link(arrow: Arrow) -> str:
    link = "==>" if arrow.loop else "-.->" if arrow.loose else "-->"
    return f'{link}|"{_escaped(arrow.label)}"|' if arrow.label else link


def _escaped(text: str) -> str:
    for sign, entity in (("#", "#35;"), ('"', "#quot;"), ("<", "#lt;"), (">", "#gt;")):
        text = text.replace(sign, entity)
    return " ".join(text.split())
