"""A table as one rank sees it: one set of buffers more than it has writes a step.

The table at the start of a step is version ``now``; the k-th write that fires in the step goes to
version ``now + k`` (cyclically), so nobody writes what another rank may still read. The step is
committed by moving ``now`` on, after the last barrier: a death before it leaves the old version.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from flowml.layout import Layout
from flowml.runtime.tablestate import RuleState
from flowml.runtime.values import Value
from flowml.types import Array, Pytree


@dataclass
class RankTable:
    """Versions of one table instance, and the rules that this rank applies to it."""

    layout: Layout
    versions: list[tuple[Array, ...]]
    now: int = 0
    rules: dict[str, RuleState] = field(default_factory=dict)
    values: list[Value] = field(default_factory=list)
    """Each version as a read-only value."""

    def __post_init__(self) -> None:
        """Make the views once."""
        self.values = [Value(self.layout.views(v, writeable=False), None) for v in self.versions]

    def value(self, writes: int = 0) -> Value:
        """Return the table after ``writes`` of this step's writes."""
        return self.values[(self.now + writes) % len(self.values)]

    def buffers(self, writes: int = 0) -> tuple[Array, ...]:
        """Return its flat buffers after ``writes`` of this step's writes."""
        return self.versions[(self.now + writes) % len(self.versions)]

    def commit(self, writes: int) -> None:
        """Let the step's last write be the table from now on."""
        self.now = (self.now + writes) % len(self.versions)

    def copy(self) -> Pytree:
        """Return a private copy of the committed table."""
        fresh = self.layout.allocate()
        for source, target in zip(self.buffers(), fresh, strict=True):
            target[...] = source
        return self.layout.views(fresh)
