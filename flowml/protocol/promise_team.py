"""Those who deliver at the same point of a step: their clocks, and who is slowest."""

from __future__ import annotations

import numpy as np

from flowml.freshness import NEVER
from flowml.protocol.promise_specs import TeamSpec
from flowml.protocol.promise_words import AT_LEAST, CLOCK, LEAST, LINE, LIVE, Words

FEW = 8
"""Up to so many members a loop is faster than NumPy."""


class Team:
    """A team over its words.

    Parameters
    ----------
    spec : TeamSpec
    words : Words
    number : int
        Of the team.

    Attributes
    ----------
    arrived : int
        Who delivered last by this process: mostly the only one of whom anything is queued.
    """

    def __init__(self, spec: TeamSpec, words: Words, number: int) -> None:
        self.spec = spec
        self.number = number
        self.arrived = 0
        self.raw = words.raw
        self.at = words.teams[number]
        self.clocks = words.column(self.at, spec.members, CLOCK)
        self.members = range(spec.members)
        self._lives = words.column(self.at, spec.members, LIVE)

    def begin(self) -> None:
        """Let every member be live at clock 0."""
        for member in self.members:
            self.raw[self.at + LINE * (1 + member) + LIVE] = 1
        self._find_least()

    def clock(self, member: int) -> int:
        """Return the steps that a member has delivered."""
        return self.raw[self.at + LINE * (1 + member) + CLOCK]

    def is_live(self, member: int) -> bool:
        """Tell whether a member will deliver more."""
        return self.raw[self.at + LINE * (1 + member) + LIVE] == 1

    @property
    def least(self) -> int:
        """The clock of the slowest live member; NEVER if none is live."""
        return self.raw[self.at + LEAST]

    def slower_than(self, clock: int) -> tuple[int, ...]:
        """Return the live members that have not delivered so many steps."""
        if len(self.members) > FEW:
            return tuple(np.flatnonzero((self._lives == 1) & (self.clocks < clock)).tolist())
        return tuple(m for m in self.members if self.is_live(m) and self.clock(m) < clock)

    def beyond(self, clock: int) -> list[int]:
        """Return the members, live or not, that have delivered more than so many steps."""
        if len(self.members) > FEW:
            found: list[int] = np.flatnonzero(self.clocks > clock).tolist()
            return found
        return [m for m in self.members if self.clock(m) > clock]

    def step(self, member: int) -> int:
        """Count a step of a member as delivered; return its stamp."""
        at = self.at + LINE * (1 + member)
        stamp = self.raw[at + CLOCK]
        self.raw[at + CLOCK] = stamp + 1
        self.arrived = member
        if stamp == self.raw[self.at + LEAST]:
            self._one_less_at_least()
        return stamp

    def leave(self, member: int) -> None:
        """Let a member be waited for no longer; harmless when repeated."""
        at = self.at + LINE * (1 + member)
        if self.raw[at + LIVE]:
            self.raw[at + LIVE] = 0
            if self.raw[at + CLOCK] == self.raw[self.at + LEAST]:
                self._one_less_at_least()

    def _one_less_at_least(self) -> None:
        """One of the slowest live members goes on or leaves."""
        self.raw[self.at + AT_LEAST] -= 1
        if not self.raw[self.at + AT_LEAST]:
            self._find_least()

    def _find_least(self) -> None:
        """Find the slowest live members; nobody is late when none is live."""
        clocks: list[int] = []
        if len(self.members) > FEW:
            clocks = self.clocks[self._lives == 1].tolist()
        else:
            raw, first = self.raw, self.at + LINE
            lines = range(first, first + LINE * len(self.members), LINE)
            clocks = [raw[line + CLOCK] for line in lines if raw[line + LIVE]]
        least = min(clocks, default=NEVER)
        self.raw[self.at + AT_LEAST] = clocks.count(least)
        self.raw[self.at + LEAST] = least
