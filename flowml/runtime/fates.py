"""What became of each contribution of a recorded run: its events, given to the rule once more.

The rule of promises is a function of the order of events, and a record is that order, so nothing
of this has to be written down while a run goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np

from flowml.plan import Plan
from flowml.protocol.promise_rule import PromiseRule
from flowml.protocol.promise_specs import GateSpec
from flowml.runtime.loose_plan import LoosePlan, split
from flowml.runtime.loose_rank import DELIVER, LEAVE, NO_EDGE, READ, SKIP, members_of, seats_of
from flowml.types import Array

FATES = ("", "empty", "taken", "carried", "dropped", "queued", "unknown")
NO_FATE, EMPTY, TAKEN, CARRIED, DROPPED, QUEUED, UNKNOWN = range(len(FATES))
"""Of a row: it is no contribution; it had nothing in it; a firing took it; it missed its quorum and
the next firing took it, or nobody did; no firing has taken it; events of the record are missing."""
NO_TEAM = -1


class _Event(NamedTuple):
    """One event of a record: its rows are those from ``first`` up to ``end``."""

    kind: int
    replica: int
    clock: int
    first: int
    end: int


class Fates:
    """What became of the contributions of a record, worked out when it is first asked for.

    Parameters
    ----------
    plan : Plan
    record : ndarray of loose_rank.EVENT
        All events of a run, in their order.

    Attributes
    ----------
    loose : LoosePlan
    """

    def __init__(self, plan: Plan, record: Array) -> None:
        self.loose = split(plan)
        self._record = record

    @property
    def whole(self) -> bool:
        """Whether no event is missing: of a run that failed, the last ones of some replicas are."""
        numbers = self._record["event"]
        return len(numbers) == 0 or bool(numbers[0] == 0 and np.diff(numbers).max(initial=0) <= 1)

    @property
    def gates(self) -> tuple[GateSpec, ...]:
        """The gates, in the order of their edges, which come after those of the reads."""
        return tuple(gate.spec for gate in self.loose.gates)

    @cached_property
    def teams(self) -> Array:
        """For each row, whose step is delivered or moved over in it; NO_TEAM for the others.

        Returns
        -------
        ndarray of int16, shape (rows,)
        """
        order = [sorted(members_of(self.loose, rank)) for rank in range(self.loose.plan.replicas)]
        found = np.full(len(self._record), NO_TEAM, np.int16)
        done = [(-1, 0)] * len(order)
        for kind, replica, clock, first, end in _events(self._record):
            if kind in (DELIVER, SKIP):
                before = done[replica][1] if done[replica][0] == clock else 0
                found[first:end] = order[replica][before]
                done[replica] = clock, before + 1
        return found

    @cached_property
    def fates(self) -> Array:
        """For each row, its number in FATES.

        Returns
        -------
        ndarray of uint8, shape (rows,)
        """
        record = self._record
        delivers = (record["kind"] == DELIVER) & (record["edge"] != NO_EDGE)
        found = np.where(delivers, UNKNOWN, NO_FATE).astype(np.uint8)
        if self.whole:
            _Retold(self.loose, found, self.teams).tell(record)
        found[delivers & (record["bytes"] == 0)] = EMPTY
        return found


class _Retold:
    """The rule of a run, and the rows of the contributions that its gates hold."""

    def __init__(self, loose: LoosePlan, fates: Array, teams: Array) -> None:
        specs = tuple(gate.spec for gate in loose.gates)
        words = np.zeros(PromiseRule.size(loose.teams, specs, loose.tables), np.int64)
        self._rule = PromiseRule(words, loose.teams, specs, loose.tables, loose.queue)
        self._rule.begin()
        self._fates = fates
        self._teams = teams
        self._reads = len(loose.reads)
        self._members = [members_of(loose, rank) for rank in range(loose.plan.replicas)]
        self._seats = [seats_of(loose, members) for members in self._members]
        self._left = [0] * len(self._seats)
        self._held: dict[tuple[int, int, int], tuple[int, int]] = {}
        """(gate, member, stamp) -> row, and what it is when a firing takes it."""

    def tell(self, record: Array) -> None:
        """Go through the events in their order."""
        edges = record["edge"].tolist()
        for event in _events(record):
            if event.kind == READ:
                continue
            if event.kind == LEAVE:
                self._leave(event.replica)
            else:
                self._deliver(event, edges)
            self._take_what_fires()

    def _leave(self, replica: int) -> None:
        """Let the next of a replica's seats be empty: it leaves each by an event of its own."""
        seats = self._seats[replica]
        self._rule.leave(*seats[self._left[replica] % len(seats)])
        self._left[replica] += 1

    def _deliver(self, event: _Event, edges: list[int]) -> None:
        team = int(self._teams[event.first])
        member = self._members[event.replica][team]
        stamp = self._rule.teams[team].clock(member)
        for row in range(event.first, event.end):
            if edges[row] != NO_EDGE:
                self._hold(row, edges[row] - self._reads, member, stamp)
        self._rule.deliver(team, member, skips=event.kind == SKIP)

    def _hold(self, row: int, number: int, member: int, stamp: int) -> None:
        gate = self._rule.gates[number]
        late = gate.is_late(stamp)
        if late and not gate.spec.carries:
            self._fates[row] = DROPPED
            return
        self._fates[row] = QUEUED
        self._held[number, member, stamp] = row, CARRIED if late else TAKEN

    def _take_what_fires(self) -> None:
        for firing in self._rule.firings():
            for member, stamp in firing.taken:
                # None: a step that was moved over, of a gate without a quorum; there is no row.
                held = self._held.pop((firing.gate, member, stamp), None)
                if held is not None:
                    row, fate = held
                    self._fates[row] = fate


def _events(record: Array) -> Iterator[_Event]:
    """Yield the events of a record; its rows are in their order."""
    starts = np.flatnonzero(np.diff(record["event"].astype(np.int64), prepend=-1))
    ends = [*starts[1:].tolist(), len(record)]
    columns = (record[name][starts].tolist() for name in ("kind", "replica", "clock"))
    yield from map(_Event, *columns, starts.tolist(), ends)
