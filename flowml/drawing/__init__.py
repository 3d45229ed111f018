"""A graph as text for a terminal, as SVG for a notebook, and as Mermaid for a page.

All three say the same: operators with their scope, what they read and what the edges promise, and
where the loop goes through a table. A graph that was checked has its scopes filled in.
"""

from __future__ import annotations

from flowml.drawing.mermaid import as_mermaid
from flowml.drawing.svg import as_svg
from flowml.drawing.text import as_text
from flowml.drawing.words import Promises
from flowml.graph import LogicalGraph

__all__ = ["as_mermaid", "as_svg", "as_text", "mimebundle"]


def mimebundle(graph: LogicalGraph, promises: Promises | None = None) -> dict[str, str]:
    """Return what a notebook shows, by MIME type.

    Parameters
    ----------
    promises : mapping of (operator, number of the input) to Promise, optional
        The promises taken by unmarked edges; without them only what was marked is drawn.

    Returns
    -------
    dict of str
        ``text/plain``, ``text/html`` (inline SVG) and ``text/vnd.mermaid``.
    """
    return {
        "text/plain": as_text(graph, promises),
        "text/html": f'<div style="overflow-x:auto">{as_svg(graph, promises)}</div>',
        "text/vnd.mermaid": as_mermaid(graph, promises),
    }
