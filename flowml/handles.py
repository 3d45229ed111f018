"""Handles: values of a graph that is being declared, and what they come from.

There is no graph yet: a handle knows what it is of, that knows its inputs, and
:func:`flowml.collect.collect` follows them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from flowml.actions import Action, Kind
from flowml.edges import Edge
from flowml.errors import GraphError
from flowml.types import Site, calling_site

_order = itertools.count()


@dataclass(frozen=True, eq=False)
class DeclaredTable:
    """A table as the user declared it; equal only to itself."""

    name: str
    init: Any
    scope: str
    on: int | None
    site: Site

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"table {self.name!r} ({self.site})"


@dataclass(frozen=True, eq=False)
class Declared:
    """An operator as the user declared it; equal only to itself."""

    kind: Kind
    action: Action
    inputs: tuple[Handle, ...]
    outputs: int
    name: str | None
    suggested: str
    site: Site
    writes: DeclaredTable | None = None
    order: int = field(default_factory=lambda: next(_order))

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"{self.kind} {self.name or self.suggested!r} ({self.site})"


@dataclass(frozen=True, eq=False)
class Handle:
    """A value of the graph, and what the edge to its next consumer promises.

    Edge methods return a new handle and chain: ``w.stale(4)``, ``grads.every(8, keep="sum")``.
    """

    of: Declared | DeclaredTable
    output: int = 0
    edge: Edge = field(default_factory=Edge)

    def sync(self, until: int | None = None) -> Handle:
        """Wait for exactly what the consumer's step needs, nothing fresher (BSP)."""
        return self._with(self.edge.sync(until=until))

    def stale(self, staleness: int, until: int | None = None) -> Handle:
        """Let the value lag by at most ``staleness`` steps (SSP, Ho et al. 2013)."""
        return self._with(self.edge.stale(staleness, until=until))

    def async_(self, until: int | None = None) -> Handle:
        """Take the newest value and never wait (ASP)."""
        return self._with(self.edge.async_(until=until))

    def every(self, steps: int, keep: Literal["sum", "mean", "last"] | None = None) -> Handle:
        """Fire every ``steps`` steps; ``keep`` says what the steps between become."""
        return self._with(self.edge.every(steps, keep=keep))

    def quorum(self, count: int, late: Literal["carry", "drop"] = "carry") -> Handle:
        """Go on with the first ``count`` contributions of a step."""
        return self._with(self.edge.quorum(count, late=late))

    def when(self, threshold: float) -> Handle:
        """Fire when the kept update exceeds ``threshold`` relative to the parameter."""
        return self._with(self.edge.when(threshold))

    def compress(self, codec: object) -> Handle:
        """Encode the value on this edge."""
        return self._with(self.edge.compress(codec))

    def at(self, ids: Handle) -> Handle:
        """Read, or write, the rows of a table named by ``ids``."""
        if not isinstance(ids, Handle):
            raise GraphError(
                f".at of {self.of.label} ({calling_site()})",
                "ids must be a handle",
                f"a {type(ids).__name__}",
                "Make them with fl.map or fl.load.",
            )
        return self._with(self.edge.at(ids))

    def _with(self, edge: Edge) -> Handle:
        return Handle(self.of, self.output, edge)

    def __iter__(self) -> Iterator[NoReturn]:
        """Refuse: how many values there are is said with ``outputs=`` at the declaration."""
        raise GraphError(
            self.of.label,
            "a handle is one value and cannot be unpacked",
            fix="Say how many values there are: fl.map(fn, ..., outputs=3).",
        )

    def __repr__(self) -> str:
        """Show what it is a handle of."""
        return f"<{self.of.label}>"
