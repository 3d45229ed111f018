"""Who may read, what fires: the rule of promises, without input, output or arithmetic.

Each replica has a *clock*: the steps whose contributions it has delivered. A *gate* stands where
contributions of replicas flow into something global: an aggregate, or a table that is pushed to.
It has a clock of its own, the number of its firings, and counts for each replica how many stamps
it has taken. Everything is a function of the order of two events, *read* and *deliver*, so a run
is replayed from that order alone.

All numbers are int64 words of one block. In a run they lie in memory that the processes of a host
share, and every method but the looks (``missing``, ``room``) is called by the one process that
holds the lock; in the serial executor and in the simulator they are private.

References
----------
Ho et al., "More Effective Distributed ML via a Stale Synchronous Parallel Parameter Server",
NeurIPS 2013, section 3: a reader at clock c sees all updates stamped <= c - s - 1. semantics.md
section 1 adds aggregates: firing c of a gate with promise stale(s) needs everything stamped
<= c - s, takes all that is queued, and async fires at each arrival.

A promise that starts at step n starts when every live replica has finished the steps before n.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from flowml.freshness import NEVER, Promises, loose_from, needed_before, staleness_at
from flowml.types import Array

_LINE = 8
"""Words of a cache line: what one replica writes often has a line of its own."""
_EVENTS, _STOP, _LEAST, _AT_LEAST = 0, 1, 2, 3
"""The first line; also the clock of the slowest live replica, and how many are at that clock."""
_CLOCK, _LIVE = 0, 1
_FIRED, _QUEUED, _VERSION, _UPDATES = 0, 1, 2, 3
"""A gate's own line. After it there is one for each replica: the first stamp that is not taken."""
NO_STOP, STOPPED, ENDED = 0, 1, 2
_FEW = 8
"""Up to so many replicas a loop is faster than NumPy."""


@dataclass(frozen=True)
class GateSpec:
    """What flows into something global.

    Attributes
    ----------
    name : str
        The aggregate, update or assign.
    promises : Promises
        Of the edge that the contributions come on.
    push : bool
        A table is pushed to: under a loose promise each contribution is applied by itself.
    table : str
        The table that is written behind it; "" if none.
    every : int
        Period of the edge, in steps.
    """

    name: str
    promises: Promises
    push: bool
    table: str
    every: int = 1

    def delivers(self, stamp: int) -> bool:
        """Tell whether a step has a contribution."""
        return (stamp + 1) % self.every == 0


@dataclass(frozen=True)
class ReadSpec:
    """One edge out of a table to an operator of a replica."""

    table: str
    reader: str
    promises: Promises
    every: int = 1


class Missing(NamedTuple):
    """What a wait is for.

    Attributes
    ----------
    edge : str
    replicas : tuple of int
        Who has not delivered.
    clock : int
        The steps that must be complete.
    """

    edge: str
    replicas: tuple[int, ...]
    clock: int


Taken: TypeAlias = tuple[tuple[int, int], ...]
"""(replica, stamp) of contributions, in the order of the sum."""


class Firing(NamedTuple):
    """One firing of a gate, and what it takes."""

    gate: int
    number: int
    taken: Taken


class PromiseRule:
    """The state of all gates of a run over a block of words.

    Parameters
    ----------
    words : ndarray of int64, shape (PromiseRule.size(...),)
        Zeroed before the first process opens it; ``begin`` is called once.
    replicas : int
    gates : sequence of GateSpec
    reads : sequence of ReadSpec
    capacity : int
        Stamps of one replica that a gate may hold and not have taken.

    Notes
    -----
    ``firings`` is to be used up after each ``deliver`` and each ``leave``, under the same lock:
    a look may count on what a delivery makes fire, since who then reads takes the lock first.
    """

    def __init__(
        self,
        words: Array,
        replicas: int,
        gates: tuple[GateSpec, ...],
        reads: tuple[ReadSpec, ...],
        capacity: int,
    ) -> None:
        self.gates = gates
        self.reads = reads
        self.capacity = capacity
        self._replicas = range(replicas)
        self._words: memoryview = words.view(np.int64).data
        lines = words.reshape(-1, _LINE)
        self._clocks, self._lives = (lines[1 : 1 + replicas, at] for at in (_CLOCK, _LIVE))
        first = [1 + replicas + number * (1 + replicas) for number in range(len(gates))]
        self._takens = [lines[at + 1 : at + 1 + replicas, 0] for at in first]
        self._at = [_LINE * at for at in first]
        self._loose_from = [loose_from(g.promises) for g in gates]
        self._of_table = {g.table: n for n, g in enumerate(gates) if g.table}
        self._waits = [(r, self._of_table[r.table]) for r in reads if r.table in self._of_table]
        self._arrived = 0
        """Who delivered last by this process: mostly the only one of whom anything is queued."""

    @staticmethod
    def size(replicas: int, gates: int) -> int:
        """Return how many words are needed."""
        return _LINE * (1 + replicas + gates * (1 + replicas))

    def begin(self) -> None:
        """Let every replica be live at clock 0."""
        for rank in self._replicas:
            self._words[self._rank(rank) + _LIVE] = 1
        self._find_least()

    # -- looks: without the lock ---------------------------------------------------------------

    def clock(self, rank: int) -> int:
        """Return the steps that a replica has delivered."""
        return self._words[self._rank(rank) + _CLOCK]

    def is_live(self, rank: int) -> bool:
        """Tell whether a replica will deliver more."""
        return self._words[self._rank(rank) + _LIVE] == 1

    def fired(self, gate: int) -> int:
        """Return how often a gate has fired."""
        return self._words[self._at[gate] + _FIRED]

    def version(self, table: str) -> int:
        """Return how often a table has changed for its readers."""
        gate = self._of_table.get(table)
        return 0 if gate is None else self._words[self._at[gate] + _VERSION]

    def updates(self, table: str) -> int:
        """Return how many updates a table has had; a synchronous push brings several at once."""
        return self._words[self._at[self._of_table[table]] + _UPDATES]

    @property
    def stop(self) -> int:
        """Whether somebody has asked to stop: NO_STOP, STOPPED, or ENDED by an ``until``."""
        return self._words[_STOP]

    @property
    def has_ended(self) -> bool:
        """Whether an end of the graph asked to stop."""
        return self.stop == ENDED

    @property
    def events(self) -> int:
        """Reads, deliveries and leaves so far."""
        return self._words[_EVENTS]

    def missing(self, rank: int) -> Missing | None:
        """Return what a replica must wait for before it reads for its next step, or None."""
        step = self._words[self._rank(rank) + _CLOCK]
        for read, gate in self._waits:
            if step % read.every:
                continue
            need = needed_before(read.promises, step)
            if need and self._complete(gate) < need:
                edge = f"{self.gates[gate].name} -> {read.table} -> {read.reader}"
                return Missing(edge, self._slower_than(need), need)
        return None

    def room(self, rank: int) -> Missing | None:
        """Return what a replica must wait for before it delivers, or None."""
        words, at = self._words, self._rank(rank)
        clock, full = words[at + _CLOCK], self.capacity
        for number, gate in enumerate(self._at):
            if clock - words[gate + at] >= full:
                late = tuple(r for r in self._slower_than(NEVER) if r != rank)
                return Missing(f"-> {self.gates[number].name}", late, self.fired(number) + 1)
        return None

    def staleness(self, rank: int) -> int:
        """Return how many steps late a read of a replica's next step is, over all its edges.

        Notes
        -----
        Behind a loose push it is the lead over the slowest, steps without a push included.
        """
        step, late = self.clock(rank), 0
        for _, gate in self._waits:
            is_lead = self.gates[gate].push and self._is_loose(gate)
            late = max(late, step - (self._words[_LEAST] if is_lead else self._complete(gate)))
        return late

    def least(self) -> int:
        """Return the least clock of the live replicas; the largest of all if none is live."""
        found = self._words[_LEAST]
        return int(self._clocks.max()) if found == NEVER else found

    def most_complete(self) -> int:
        """Return the largest clock that some gate has complete: what waits for more, waits on."""
        return max(map(self._complete, range(len(self.gates))), default=0)

    def _complete(self, gate: int) -> int:
        """Return the number of stamps that a table's writer has complete.

        Notes
        -----
        Behind a push the writers are the live replicas, and each is applied when it is delivered;
        behind an aggregate, and behind a synchronous push, it is one: the gate itself. A gate that
        takes several contributions of one replica at once fires less often than that replica
        steps. When then those that it waited for have left, it has nothing to fire, yet all that
        the live ones have delivered is in it: more cannot be waited for.

        The steps before the next contribution that a period lets exist count as complete, but not
        those of a promise that has not started.
        """
        words, every, start = self._words, self.gates[gate].every, self._loose_from[gate]
        fired, least = words[self._at[gate] + _FIRED], words[_LEAST]
        if not self._is_loose(gate):
            return (fired + 1) * every - 1
        if not self.gates[gate].push:
            return max(fired, least)
        return (least // every + 1) * every - 1 if least >= start else start - 1

    def _is_loose(self, gate: int) -> bool:
        """Tell whether a gate has done all its synchronous firings."""
        fired, every = self._words[self._at[gate] + _FIRED], self.gates[gate].every
        return (fired + 1) * every > self._loose_from[gate]

    def _slower_than(self, clock: int) -> tuple[int, ...]:
        """Return the live replicas that have not delivered so many steps."""
        if len(self._replicas) > _FEW:
            return tuple(np.flatnonzero((self._lives == 1) & (self._clocks < clock)).tolist())
        return tuple(r for r in self._replicas if self.is_live(r) and self.clock(r) < clock)

    # -- changes: under the lock ---------------------------------------------------------------

    def read(self) -> int:
        """Count a read; return its number among all events."""
        return self._count_event()

    def deliver(self, rank: int) -> int:
        """Count a replica's step as delivered to all gates; return its number among all events."""
        words, at = self._words, self._rank(rank)
        stamp = words[at + _CLOCK]
        words[at + _CLOCK] = stamp + 1
        for gate, spec in zip(self._at, self.gates, strict=True):
            if (stamp + 1) % spec.every == 0:
                words[gate + _QUEUED] += 1
            elif words[gate + at] == stamp:  # nothing to take from this step
                words[gate + at] = stamp + 1
        self._arrived = rank
        if stamp == words[_LEAST]:
            self._one_less_at_least()
        return self._count_event()

    def leave(self, rank: int) -> int:
        """Let a replica be no longer waited for; return its number among all events."""
        words, at = self._words, self._rank(rank)
        if words[at + _LIVE]:
            words[at + _LIVE] = 0
            if words[at + _CLOCK] == words[_LEAST]:
                self._one_less_at_least()
        return self._count_event()

    def request_stop(self, ended: bool) -> None:
        """Let every replica leave at its next step."""
        if self.stop == NO_STOP:
            self._words[_STOP] = ENDED if ended else STOPPED

    def commit(self, table: str, updates: int) -> None:
        """Let the next version of a table, so many updates later, be the one that is read."""
        gate = self._at[self._of_table[table]]
        self._words[gate + _UPDATES] += updates
        self._words[gate + _VERSION] += 1

    def firings(self) -> Iterator[Firing]:
        """Yield what fires now, gate by gate; each counts when the next one is asked for."""
        words = self._words
        for number, gate in enumerate(self._at):
            while words[gate + _QUEUED]:
                due = self._due(number)
                for taken in due:
                    firing = Firing(number, words[gate + _FIRED], taken)
                    yield firing
                    self._count(firing)
                if not due:
                    break

    def _due(self, gate: int) -> tuple[Taken, ...]:
        """Return what the next firings of a gate take; none if it must wait. Something is queued.

        Notes
        -----
        A push that gets loose waits for the slowest to come to that step: who reads for an
        earlier one reads sync.
        """
        spec, start, least = self.gates[gate], self._loose_from[gate], self._words[_LEAST]
        fired = self._words[self._at[gate] + _FIRED]
        wanted = (fired + 1) * spec.every - 1
        if wanted < start:
            return (self._stamped(gate, wanted),) if least > wanted else ()
        if not spec.push:
            late = least <= fired - staleness_at(spec.promises, fired)
            return () if late else (tuple(self._queued(gate)),)
        if least < start:
            return ()
        return tuple((q,) for q in sorted(self._queued(gate), key=lambda q: (q[1], q[0])))

    def _stamped(self, gate: int, stamp: int) -> Taken:
        """Return the contributions of one step; everything before it has been taken."""
        if len(self._replicas) > _FEW:
            ranks = np.flatnonzero(self._clocks > stamp).tolist()
        else:
            ranks = [r for r in self._replicas if self.clock(r) > stamp]
        return tuple((rank, stamp) for rank in ranks)

    def _queued(self, gate: int) -> list[tuple[int, int]]:
        """Return (replica, stamp) of all that a gate has not taken, replica by replica."""
        words, number, every = self._words, self._at[gate], self.gates[gate].every
        at = self._rank(self._arrived)
        clock, taken = words[at + _CLOCK], words[number + at]
        if clock // every - taken // every == words[number + _QUEUED]:
            ranks = [self._arrived]
        elif len(self._replicas) > _FEW:
            ranks = np.flatnonzero(self._clocks > self._takens[gate]).tolist()
        else:
            ranks = list(self._replicas)
        found = []
        for rank in ranks:
            at = self._rank(rank)
            taken = words[number + at]
            stamps = range(taken + every - 1 - taken % every, words[at + _CLOCK], every)
            found += [(rank, stamp) for stamp in stamps]
        return found

    def _count(self, firing: Firing) -> None:
        words, gate, every = self._words, self._at[firing.gate], self.gates[firing.gate].every
        words[gate + _QUEUED] -= len(firing.taken)
        for rank, stamp in firing.taken:
            at = self._rank(rank)
            words[gate + at] = min(stamp + every, words[at + _CLOCK])
        words[gate + _FIRED] += 1

    def _count_event(self) -> int:
        event = self._words[_EVENTS]
        self._words[_EVENTS] = event + 1
        return event

    def _one_less_at_least(self) -> None:
        """One of the slowest live replicas goes on or leaves."""
        self._words[_AT_LEAST] -= 1
        if not self._words[_AT_LEAST]:
            self._find_least()

    def _find_least(self) -> None:
        """Find the slowest live replicas; nobody is late when none is live."""
        clocks: list[int] = []
        if len(self._replicas) > _FEW:
            clocks = self._clocks[self._lives == 1].tolist()
        else:
            clocks = [self.clock(r) for r in self._replicas if self.is_live(r)]
        least = min(clocks, default=NEVER)
        self._words[_AT_LEAST] = clocks.count(least)
        self._words[_LEAST] = least

    def _rank(self, rank: int) -> int:
        """Return where the line of a replica begins, and how far its line is behind a gate's."""
        return _LINE * (1 + rank)
