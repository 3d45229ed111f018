"""What is known of one edge: how late it is, and what it carries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flowml.dashboard.contract import Edge

MOST_BARS = 64
"""Staleness beyond this counts as this: under async edges it has no bound."""


@dataclass
class EdgeState:
    """One edge of a run.

    Attributes
    ----------
    card : mapping
        As it was sent (card.EdgeCard).
    exact : bool
        ``staleness`` counts each read, from the history; else what is seen at each look.
    """

    card: Mapping[str, Any]
    exact: bool = False
    staleness: Counter[int] = field(default_factory=Counter)
    lags: dict[int, int] = field(default_factory=dict)
    sent: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Bytes before and after the codec so far, by worker."""

    def read(self, late: Mapping[int, int]) -> None:
        """Count the reads of a window by how late they were."""
        for steps, count in late.items():
            self.staleness[min(int(steps), MOST_BARS)] += int(count)

    def lag(self, replica: int, steps: int) -> None:
        """Take in how late the edge is for a replica now."""
        self.lags[replica] = steps
        if not self.exact:
            self.staleness[min(steps, MOST_BARS)] += 1

    def snapshot(self, steps: int, rate: float | None) -> Edge:
        """Return it as JSON.

        Parameters
        ----------
        steps : int
            Steps of the run so far.
        rate : float or None
            Steps a second; None once the run has ended.
        """
        card, total, per_step, ratio = self.card, None, self.card["step_bytes"], None
        if per_step is not None:
            total = per_step * steps
        if self.sent:
            raw, sent = (sum(n) for n in zip(*self.sent.values(), strict=True))
            ratio = raw / sent if sent else None
            total = float(sent)
            per_step = per_step / ratio if per_step is not None and ratio else None
        flowing = per_step * rate if per_step is not None and rate is not None else None
        return Edge(
            name=card["name"],
            source=card["source"],
            target=card["target"],
            promise=card["promise"],
            bound=card["bound"],
            words=card["words"],
            hover=card["hover"],
            loose=card["loose"],
            loop=card["loop"],
            crosses=card["step_bytes"] != 0.0,
            lag=max(self.lags.values(), default=None),
            lags={str(r): n for r, n in sorted(self.lags.items())},
            staleness={str(n): c for n, c in sorted(self.staleness.items())},
            exact=self.exact,
            bytes=total,
            bytes_per_second=flowing,
            ratio=ratio,
            line=card["line"],
            head=card["head"],
            label=card["label"],
        )
