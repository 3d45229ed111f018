"""From pairs of stretches to ratios with their spread, for dashboard.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

LIMITS = {"open / idle": 1.05, "idle / without": 1.01, "without / without": None}
"""Largest ratio that is to hold for each kind of pair."""


def _middle(values: Any) -> list[float]:
    """Return the ends of the middle 95 %."""
    return [float(end) for end in np.quantile(values, (0.025, 0.975))]


def _quiet(values: Any) -> Any:
    """Return the ratio of what the quietest fifth of each side comes up to."""
    sides = np.quantile(values, 0.2, axis=1)
    return sides[:, 0] / sides[:, 1]


def compared(pairs: Sequence[Any], limit: float | None, rng: np.random.Generator) -> dict[str, Any]:
    """Return the ratios of pairs with their spread, and what the scheduler takes of a core."""
    values = np.array(pairs)  # (pairs, 2 sides, 2 numbers)
    cpu = values[:, :, 0]
    drawn = cpu[rng.integers(0, len(cpu), (2000, len(cpu)))]  # (2000, pairs, 2 sides)
    quarter, half, three = np.quantile(cpu[:, 0] / cpu[:, 1], (0.25, 0.5, 0.75))
    return {
        "cpu_us_per_step": (1e6 * cpu).tolist(),
        "ratio": float(half),
        "quartiles": [float(quarter), float(three)],
        "interval": _middle(np.median(drawn[:, :, 0] / drawn[:, :, 1], axis=1)),
        "quiet_ratio": float(_quiet(cpu[None])[0]),
        "quiet_interval": _middle(_quiet(drawn)),
        "limit": limit,
        "scheduler_share": np.median(values[:, :, 1], axis=0).tolist(),
    }


def text(results: dict[str, Any]) -> str:
    """Return the comparisons of a graph in words."""
    lines = []
    for kind, r in results.items():
        (quarter, three), (low, high) = r["quartiles"], r["interval"]
        least, most = r["quiet_interval"]
        one, other = r["scheduler_share"]
        limit = f", limit {r['limit']:.2f}" if r["limit"] else ""
        lines.append(
            f"  {kind}: median {r['ratio']:.3f} (95 %: {low:.3f} to {high:.3f}{limit}), quartiles "
            f"{quarter:.3f} to {three:.3f}; quietest fifth {r['quiet_ratio']:.3f} (95 %: "
            f"{least:.3f} to {most:.3f}); scheduler {one:.2%} and {other:.2%} of a core"
        )
    return "\n".join(lines)
