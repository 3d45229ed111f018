"""Sizes and durations in words."""

from __future__ import annotations

from dask.utils import format_bytes


def shown_bytes(count: float | None) -> str:
    """Return a size in words; "?" where it is not known.

    Examples
    --------
    >>> shown_bytes(0), shown_bytes(31400), shown_bytes(None)
    ('0', '30.66 kiB', '?')
    """
    if count is None:
        return "?"
    return format_bytes(round(count)) if count else "0"


def shown_seconds(seconds: float) -> str:
    """Return a duration with three digits.

    Examples
    --------
    >>> shown_seconds(0), shown_seconds(0.0000312), shown_seconds(0.0042), shown_seconds(1.5)
    ('0 us', '31.2 us', '4.2 ms', '1.5 s')
    """
    for unit, size in (("us", 1e-6), ("ms", 1e-3)):
        if seconds < 1000 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
