"""From the replicas' time to the state and the share of each operator."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from flowml.dashboard.contract import Operator, OperatorState, Part, Share
from flowml.dashboard.replicas import Spent

VISIBLE = 0.01
"""A smaller part of the time does not make an operator run or wait."""


@dataclass(frozen=True)
class Shares:
    """Parts of the replicas' time by what it went into.

    Attributes
    ----------
    own : mapping of str to (part, share)
        By operator.
    waits : mapping of str to float
        By edge, "source -> target".
    elsewhere : mapping of str to float
        "transfer" and "scheduler".
    """

    own: Mapping[str, tuple[str, float]]
    waits: Mapping[str, float]
    elsewhere: Mapping[str, float]

    @classmethod
    def of(cls, replicas: Iterable[Spent]) -> Shares:
        """Return the mean over replicas; those of whom nothing is known are left out."""
        known = [spent for spent in replicas if spent]
        own: dict[str, tuple[str, float]] = {}
        waits: defaultdict[str, float] = defaultdict(float)
        elsewhere: defaultdict[str, float] = defaultdict(float)
        for (part, name), share in (item for spent in known for item in spent.items()):
            mean = share / len(known)
            if part == "wait":
                edges = name.split(", ")
                for edge in edges:  # one barrier may be for several
                    waits[edge] += mean / len(edges)
            elif name:
                own[name] = part, own.get(name, (part, 0.0))[1] + mean
            else:
                elsewhere[part] += mean
        return cls(own, dict(waits), dict(elsewhere))

    def parts(self, operator: str) -> list[Share]:
        """Return what belongs to an operator: its own work, and waits for what it reads."""
        found = []
        if operator in self.own:
            part, share = self.own[operator]
            found.append(Share(part=cast(Part, part), edge="", share=share))
        for edge, share in self.waits.items():
            if edge.rpartition(" -> ")[2] == operator:
                found.append(Share(part="wait", edge=edge, share=share))
        return found

    def others(self, names: Container[str]) -> list[Share]:
        """Return what belongs to no operator of those names.

        Notes
        -----
        Moving values, Dask between two windows, and waits at a barrier that is for no edge.
        """
        found = [Share(part=cast(Part, p), edge="", share=s) for p, s in self.elsewhere.items()]
        found += [
            Share(part="wait", edge="", share=share)
            for edge, share in self.waits.items()
            if edge.rpartition(" -> ")[2] not in names
        ]
        return sorted(found, key=lambda share: share["part"])


def operator_of(
    card: Mapping[str, Any], shares: Shares, loose: frozenset[str], fallen: str, *, over: bool
) -> Operator:
    """Return an operator or a table as JSON.

    Parameters
    ----------
    card : mapping
        As it was sent (card.VertexCard).
    loose : frozenset of str
        Names of the edges that are not sync.
    fallen : str
        The operator that failed, or "".
    over : bool
        The run has ended.
    """
    parts = shares.parts(card["name"])
    return Operator(
        name=card["name"],
        kind=card["kind"],
        scope=card["scope"],
        title=card["title"],
        detail=card["detail"],
        hover=card["hover"],
        state="failed" if card["name"] == fallen else "ended" if over else state_of(parts, loose),
        share=sum(p["share"] for p in parts) if parts else None,
        parts=parts,
        left=card["left"],
        top=card["top"],
        width=card["width"],
    )


def state_of(parts: list[Share], loose: frozenset[str]) -> OperatorState:
    """Return the state that an operator is in for the most part.

    Examples
    --------
    >>> own = Share(part="compute", edge="", share=0.2)
    >>> wait = Share(part="wait", edge="w -> gradient", share=0.5)
    >>> state_of([own], frozenset()), state_of([own, wait], frozenset())
    ('running', 'waiting')
    >>> state_of([own, wait], frozenset({"w -> gradient"}))
    'blocked'
    """
    own = sum(p["share"] for p in parts if p["part"] != "wait")
    waits = {p["edge"]: p["share"] for p in parts if p["part"] == "wait"}
    if sum(waits.values()) > max(own, VISIBLE):
        longest = max(waits, key=lambda edge: waits[edge])
        return "blocked" if longest in loose else "waiting"
    return "running" if own > 0 else "idle"
