"""A curve of bounded size over a run of unknown length."""

from __future__ import annotations

from flowml.dashboard.contract import Point

MOST_POINTS = 400


class Series:
    """Points of a curve, evenly thinned: the first and the last one are always there.

    Notes
    -----
    When ``MOST_POINTS`` are reached every second one goes, and from then on only every second new
    one stays: of a run of any length between 200 and 400 points are kept, over all of it.

    Examples
    --------
    >>> curve = Series()
    >>> for step in range(1000):
    ...     curve.add(step, step / 10, 0.5)
    >>> found = curve.points()
    >>> len(found) <= MOST_POINTS, found[0]["step"], found[-1]["step"]
    (True, 0, 999)
    """

    def __init__(self) -> None:
        self._kept: list[Point] = []
        self._stride = 1
        self._added = 0
        self._last: Point | None = None

    def add(self, step: int, seconds: float, value: float) -> None:
        """Add a point behind all others."""
        self._last = Point(step=step, seconds=seconds, value=value)
        if self._added % self._stride == 0:
            self._kept.append(self._last)
        self._added += 1
        if len(self._kept) >= MOST_POINTS:
            del self._kept[1::2]
            self._stride *= 2

    def points(self) -> list[Point]:
        """Return the points in their order."""
        if self._last is None or self._last is self._kept[-1]:
            return list(self._kept)
        return [*self._kept, self._last]
