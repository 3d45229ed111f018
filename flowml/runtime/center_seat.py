"""A replica at the memory that all share: each event, and its rows for the record.

Whoever drives it holds the lock, if there are others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flowml.protocol.promise_specs import Missing
from flowml.runtime.center import Center
from flowml.runtime.contributions import NOTHING, Contribution
from flowml.runtime.loose_rank import LooseRank, Row
from flowml.runtime.pulls import Pull


@dataclass
class CenterSeat:
    """One replica and the center."""

    replica: LooseRank
    center: Center

    # -- looks: without the lock ---------------------------------------------------------------

    def missing(self, step: int, due: list[Pull]) -> Missing | None:
        """Return what it waits for before it makes reads of a step, or None."""
        reads = self.replica.loose.reads
        return self.center.rule.missing([reads[pull.number] for pull in due], step)

    def full(self) -> Missing | None:
        """Return what keeps it from beginning a step, which it could not deliver, or None."""
        for team, member in self.replica.members.items():
            missing = self.center.rule.room(team, member)
            if missing is not None:
                return missing
        return None

    def behind(self) -> int:
        """Return how many steps it has missed the quorum of."""
        return self.center.rule.behind(self.replica.number)

    # -- events --------------------------------------------------------------------------------

    def read(self, step: int, due: list[Pull]) -> list[Row]:
        """Make reads, as one event."""
        return self.replica.take(self.center.reads, self.center.rule.read(), step, due)

    def deliver(self, step: int, team: int, made: Mapping[int, Contribution]) -> list[Row]:
        """Hand over what was given to the gates of a team, as one event."""
        replica = self.replica
        event = self.center.deliver(team, replica.members[team], made, replica.number)
        return replica.delivered(event, step, made)

    def skip(self, step: int) -> list[Row]:
        """Move over a step whose quorum went on without this replica."""
        replica, rows = self.replica, []
        for team, member in replica.members.items():
            made = dict.fromkeys(replica.expected(step, team), NOTHING)
            event = self.center.deliver(team, member, made, replica.number, skips=True)
            rows.append(replica.skipped(event, step))
        return rows

    def leave(self, step: int) -> list[Row]:
        """Be waited for no longer."""
        replica, rows = self.replica, []
        for kind, member in replica.seats:
            rows.append(replica.left(self.center.leave(kind, member, replica.number), step))
        return rows
