"""Shapes of a drawing as SVG: boxes, cylinders, and ways from one point to another."""

from __future__ import annotations

from collections.abc import Sequence

BOX_HEIGHT = 46.0
"""Pixels."""

Point = tuple[float, float]


def rectangle(x: float, y: float, width: float, fill: str, stroke: str) -> str:
    """Return a box."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{BOX_HEIGHT:.1f}" rx="7" '
        f'fill="{fill}" stroke="{stroke}" stroke-width="1.2"/>'
    )


def bar(x: float, y: float, width: float, share: float, colour: str) -> str:
    """Return a bar along the bottom of a box, as long as a share of it."""
    room, bottom = width - 16, y + BOX_HEIGHT - 7
    return (
        f'<rect x="{x + 8:.1f}" y="{bottom:.1f}" width="{room:.1f}" height="3" rx="1.5" '
        f'fill="{colour}" fill-opacity="0.18"/><rect class="share" x="{x + 8:.1f}" '
        f'y="{bottom:.1f}" width="{room * min(share, 1.0):.1f}" height="3" rx="1.5" '
        f'fill="{colour}"/>'
    )


def cylinder(x: float, y: float, width: float, fill: str, stroke: str) -> str:
    """Return the box of a table."""
    bottom, right, flat = y + BOX_HEIGHT - 5, x + width, f"{width / 2:.1f} 5"
    return (
        f'<path d="M{x:.1f} {y + 5:.1f}A{flat} 0 0 1 {right:.1f} {y + 5:.1f}V{bottom:.1f}'
        f'A{flat} 0 0 1 {x:.1f} {bottom:.1f}Z" fill="{fill}" stroke="{stroke}" '
        f'stroke-width="1.2"/><path d="M{x:.1f} {y + 5:.1f}A{flat} 0 0 0 {right:.1f} {y + 5:.1f}" '
        f'fill="none" stroke="{stroke}" stroke-width="1.2"/>'
    )


def bent(start: Point, end: Point) -> str:
    """Return the part of a path that leaves and arrives going down."""
    middle = (start[1] + end[1]) / 2
    return f"C{start[0]:.1f} {middle:.1f} {end[0]:.1f} {middle:.1f} {end[0]:.1f} {end[1]:.1f}"


def rounded(points: Sequence[Point], radius: float = 8.0) -> str:
    """Return a path along right angles with rounded corners."""
    out = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        a, b = _toward(corner, before, radius), _toward(corner, after, radius)
        out += f"L{a[0]:.1f} {a[1]:.1f}Q{corner[0]:.1f} {corner[1]:.1f} {b[0]:.1f} {b[1]:.1f}"
    return f"{out}L{points[-1][0]:.1f} {points[-1][1]:.1f}"


def _toward(start: Point, end: Point, distance: float) -> Point:
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = abs(dx) + abs(dy)
    part = min(distance, length / 2) / length if length else 0.0
    return start[0] + dx * part, start[1] + dy * part
