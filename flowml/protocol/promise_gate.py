"""Where contributions flow into something global: what is queued, what fires, what is complete.

Notes
-----
A promise that starts at step n starts when every live member has finished the steps before n.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flowml.freshness import loose_from, staleness_at
from flowml.protocol.promise_specs import Firing, GateSpec, Taken
from flowml.protocol.promise_team import FEW, Team
from flowml.protocol.promise_words import CLOCK, DROPPED, FIRED, LATE, LINE, QUEUED, Words


class Gate:
    """A gate over its words.

    Parameters
    ----------
    spec : GateSpec
    team : Team
        Who delivers to it.
    words : Words
    number : int
        Of the gate.
    """

    def __init__(self, spec: GateSpec, team: Team, words: Words, number: int) -> None:
        self.spec = spec
        self.team = team
        self.number = number
        self._raw = words.raw
        self._at = words.gates[number]
        self._takens = words.column(self._at, team.spec.members, 0)
        self._loose_from = loose_from(spec.promises)

    # -- looks ---------------------------------------------------------------------------------

    @property
    def fired(self) -> int:
        """How often it has fired."""
        return self._raw[self._at + FIRED]

    @property
    def queued(self) -> int:
        """How many contributions it holds."""
        return self._raw[self._at + QUEUED]

    @property
    def dropped(self) -> int:
        """How many contributions came too late for their quorum and were dropped."""
        return self._raw[self._at + DROPPED]

    @property
    def is_loose(self) -> bool:
        """Whether it has done all its synchronous firings."""
        return (self.fired + 1) * self.spec.every > self._loose_from

    def is_late(self, stamp: int) -> bool:
        """Tell whether a contribution has missed the firing that it was for: of a quorum only."""
        return self.spec.quorum > 0 and stamp // self.spec.every < self.fired

    def held(self, member: int) -> int:
        """Return the steps of a member from the first on that it has not taken."""
        return self.team.clock(member) - self._raw[self._at + LINE * (1 + member)]

    def complete(self) -> int:
        """Return the number of stamps that the writer of what is behind it has complete.

        Notes
        -----
        Behind a push the writers are the live members, and each is applied when it is delivered;
        behind an aggregate, and behind a synchronous push, it is one: the gate itself. A gate that
        takes several contributions of one member at once fires less often than that member
        steps. When then those that it waited for have left, it has nothing to fire, yet all that
        the live ones have delivered is in it: more cannot be waited for.

        The steps before the next contribution that a period lets exist count as complete, but not
        those of a promise that has not started.
        """
        every, fired, start = self.spec.every, self._raw[self._at + FIRED], self._loose_from
        if (fired + 1) * every <= start:
            return (fired + 1) * every - 1
        least = self.team.least
        if not self.spec.push:
            return max(fired, least)
        return (least // every + 1) * every - 1 if least >= start else start - 1

    def lateness(self, step: int) -> int:
        """Return how many steps late a read is that sees all stamps before ``step`` in time.

        Notes
        -----
        Behind a loose push it is the lead over the slowest, steps without a push included.
        """
        leads = self.spec.push and self.is_loose
        return max(0, step - (self.team.least if leads else self.complete()))

    # -- changes -------------------------------------------------------------------------------

    def arrive(self, member: int, stamp: int, *, skips: bool) -> None:
        """Take in that a member has delivered a step."""
        raw, behind, spec = self._raw, self._at + LINE * (1 + member), self.spec
        if not spec.delivers(stamp):
            if raw[behind] == stamp:  # nothing to take from this step
                raw[behind] = stamp + 1
        elif self.is_late(stamp):
            # At most one waits: who is late moves over to the newest step, and is late again only
            # if another firing took what waited.
            raw[behind] = stamp + 1
            if not skips and spec.carries:
                raw[behind + LATE] = stamp + 1
                raw[self._at + QUEUED] += 1
            elif not skips:
                raw[self._at + DROPPED] += 1
        else:
            raw[self._at + QUEUED] += 1

    def count(self, firing: Firing) -> None:
        """Count a firing, and what it took as taken."""
        raw, start = self._raw, self.team.at
        raw[self._at + QUEUED] -= len(firing.taken)
        for member, stamp in firing.taken:
            behind = LINE * (1 + member)
            if self.is_late(stamp):
                raw[self._at + behind + LATE] = 0
            else:
                raw[self._at + behind] = min(stamp + self.spec.every, raw[start + behind + CLOCK])
        raw[self._at + FIRED] += 1

    def due(self) -> tuple[Taken, ...]:
        """Return what the next firings take; none if it must wait. Something is queued.

        Notes
        -----
        A push that gets loose waits for the slowest to come to that step: who reads for an
        earlier one reads sync.
        """
        spec, start, least, fired = self.spec, self._loose_from, self.team.least, self.fired
        if spec.quorum:
            return self._quorum_due(fired)
        wanted = (fired + 1) * spec.every - 1
        if wanted < start:
            return (self._stamped(wanted),) if least > wanted else ()
        if not spec.push:
            late = least <= fired - staleness_at(spec.promises, fired)
            return () if late else (tuple(self._queue()),)
        if least < start:
            return ()
        found = self._queue()
        if len(found) > 1:
            found.sort(key=lambda q: (q[1], q[0]))
        return tuple([(q,) for q in found])

    def _quorum_due(self, fired: int) -> tuple[Taken, ...]:
        """Return the contributions that are on time, once they are enough, and those carried.

        Notes
        -----
        Enough is the quorum, or all who are on time and may still be. Where nobody may, what was
        carried is taken alone: at the end.
        """
        end = (fired + 1) * self.spec.every
        there, may_come = len(self.team.beyond(end - 1)), len(self.team.slower_than(end))
        if there < min(self.spec.quorum, there + may_come):
            return ()
        taken = []
        for member in self.team.members:
            at = self._at + LINE * (1 + member)
            if self._raw[at + LATE]:
                taken.append((member, self._raw[at + LATE] - 1))
            if self._raw[at] < end <= self.team.clock(member):
                taken.append((member, end - 1))
        return (tuple(taken),)

    def _stamped(self, stamp: int) -> Taken:
        """Return the contributions of one step; everything before it has been taken."""
        return tuple((member, stamp) for member in self.team.beyond(stamp))

    def _queue(self) -> list[tuple[int, int]]:
        """Return (member, stamp) of all that it has not taken, member by member."""
        raw, at, team, every = self._raw, self._at, self.team, self.spec.every
        members: Sequence[int] = [team.arrived]
        behind = LINE * (1 + team.arrived)
        clock, taken = raw[team.at + behind + CLOCK], raw[at + behind]
        if clock // every - taken // every != raw[at + QUEUED]:
            members = team.members
            if len(members) > FEW:
                members = np.flatnonzero(team.clocks > self._takens).tolist()
        found = []
        for member in members:
            behind = LINE * (1 + member)
            taken = raw[at + behind]
            first = taken + every - 1 - taken % every
            found += [(member, s) for s in range(first, raw[team.at + behind + CLOCK], every)]
        return found
