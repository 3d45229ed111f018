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
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flowml.freshness import Promises, needed_before, staleness_at
from flowml.types import Array

_LINE = 8
"""Words of a cache line: what one replica writes often has a line of its own."""
_EVENTS, _STOP = 0, 1
_CLOCK, _LIVE = 0, 1
_VERSION, _UPDATES = 2, 3
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


class Firing(NamedTuple):
    """One firing of a gate, and what it takes: (replica, stamp), in the order of the sum."""

    gate: int
    number: int
    taken: tuple[tuple[int, int], ...]


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
        ranks = words[_LINE : _LINE * (1 + replicas)].reshape(replicas, _LINE)
        self._clocks, self._lives = ranks[:, _CLOCK], ranks[:, _LIVE]
        self._takens = tuple(
            words[self._taken(n, 0) :][: _LINE * replicas].reshape(replicas, _LINE)[:, 0]
            for n in range(len(gates))
        )
        self._of_table = {g.table: n for n, g in enumerate(gates) if g.table}

    @staticmethod
    def size(replicas: int, gates: int) -> int:
        """Return how many words are needed."""
        return _LINE * (1 + replicas + gates * (1 + replicas))

    def begin(self) -> None:
        """Let every replica be live at clock 0."""
        for rank in self._replicas:
            self._words[self._rank(rank) + _LIVE] = 1

    # -- looks: without the lock ---------------------------------------------------------------

    def clock(self, rank: int) -> int:
        """Return the steps that a replica has delivered."""
        return self._words[self._rank(rank) + _CLOCK]

    def is_live(self, rank: int) -> bool:
        """Tell whether a replica will deliver more."""
        return self._words[self._rank(rank) + _LIVE] == 1

    def fired(self, gate: int) -> int:
        """Return how often a gate has fired."""
        return self._words[self._gate(gate)]

    def version(self, table: str) -> int:
        """Return how often a table has changed for its readers."""
        gate = self._of_table.get(table)
        return 0 if gate is None else self._words[self._gate(gate) + _VERSION]

    def updates(self, table: str) -> int:
        """Return how many updates a table has had; a synchronous push brings several at once."""
        return self._words[self._gate(self._of_table[table]) + _UPDATES]

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
        """Reads and deliveries so far."""
        return self._words[_EVENTS]

    def missing(self, rank: int) -> Missing | None:
        """Return what a replica must wait for before it reads for its next step, or None."""
        step = self.clock(rank)
        for read in self.reads:
            gate = self._of_table.get(read.table)
            if gate is None or step % read.every:
                continue
            need = needed_before(read.promises, step)
            if self._complete(gate) >= need:
                continue
            spec = self.gates[gate]
            late = [r for r in self._replicas if self.is_live(r) and self.clock(r) < need]
            return Missing(f"{spec.name} -> {read.table} -> {read.reader}", tuple(late), need)
        return None

    def room(self, rank: int) -> Missing | None:
        """Return what a replica must wait for before it delivers, or None."""
        for number, gate in enumerate(self.gates):
            held = self.clock(rank) - self._words[self._taken(number, rank)]
            if held >= self.capacity:
                late = [r for r in self._replicas if self.is_live(r) and r != rank]
                return Missing(f"-> {gate.name}", tuple(late), self.fired(number) + 1)
        return None

    def staleness(self, rank: int) -> int:
        """Return how many steps late a read of a replica's next step is, over all its edges."""
        step, worst = self.clock(rank), 0
        for read in self.reads:
            gate = self._of_table.get(read.table)
            if gate is not None:
                worst = max(worst, step - self._complete(gate))
        return worst

    def least(self) -> int:
        """Return the least clock of the live replicas; the largest of all if none is live."""
        found = self._least_clock()
        return int(self._clocks.max()) if found is None else found

    def most_complete(self) -> int:
        """Return the largest clock that some gate has complete: what waits for more, waits on."""
        return max((self._complete(n) for n in range(len(self.gates))), default=0)

    def _complete(self, gate: int) -> int:
        """Return the number of stamps that a table's writer has complete.

        Notes
        -----
        Behind a push the writers are the live replicas, and each is applied when it is delivered;
        behind an aggregate, and behind a synchronous push, it is one: the gate itself.
        """
        spec, fired = self.gates[gate], self.fired(gate)
        if spec.push and staleness_at(spec.promises, fired):
            least = self._least_clock()
            return int(self._clocks.max()) if least is None else least
        if staleness_at(spec.promises, fired):
            return fired
        return (fired + 1) * spec.every - 1  # the steps before the next firing have no values

    def _least_clock(self) -> int | None:
        """Return the clock of the live replica that is furthest behind; None if none is live."""
        if len(self._replicas) > _FEW:
            live = self._clocks[self._lives == 1]
            return int(live.min()) if len(live) else None
        return min((self.clock(r) for r in self._replicas if self.is_live(r)), default=None)

    def _queued_ranks(self, gate: int) -> list[int]:
        """Return the replicas of which a gate has stamps that it has not taken."""
        if len(self._replicas) > _FEW:
            return [int(r) for r in np.flatnonzero(self._clocks > self._takens[gate])]
        words = self._words
        return [r for r in self._replicas if words[self._taken(gate, r)] < self.clock(r)]

    # -- changes: under the lock ---------------------------------------------------------------

    def read(self) -> int:
        """Count a read; return its number among all events."""
        self._words[_EVENTS] += 1
        return self._words[_EVENTS] - 1

    def deliver(self, rank: int) -> int:
        """Count a replica's step as delivered to all gates; return its number among all events."""
        self._words[self._rank(rank) + _CLOCK] += 1
        self._words[_EVENTS] += 1
        return self._words[_EVENTS] - 1

    def leave(self, rank: int) -> int:
        """Let a replica be no longer waited for; return its number among all events."""
        self._words[self._rank(rank) + _LIVE] = 0
        self._words[_EVENTS] += 1
        return self._words[_EVENTS] - 1

    def request_stop(self, ended: bool) -> None:
        """Let every replica leave at its next step."""
        if self.stop == NO_STOP:
            self._words[_STOP] = ENDED if ended else STOPPED

    def commit(self, table: str, updates: int) -> None:
        """Let the next version of a table, so many updates later, be the one that is read."""
        gate = self._gate(self._of_table[table])
        self._words[gate + _UPDATES] += updates
        self._words[gate + _VERSION] += 1

    def firings(self) -> Iterator[Firing]:
        """Yield what fires now, gate by gate; each counts when the next one is asked for."""
        for number in range(len(self.gates)):
            while True:
                firing = self._next_firing(number)
                if firing is None:
                    break
                yield firing
                self._count(firing)

    def _next_firing(self, gate: int) -> Firing | None:
        spec, fired = self.gates[gate], self.fired(gate)
        staleness = staleness_at(spec.promises, fired)
        queued = [
            (rank, stamp) for rank in self._queued_ranks(gate) for stamp in self._stamps(gate, rank)
        ]
        if not queued:
            return None
        if spec.push and staleness:
            return Firing(gate, fired, (min(queued, key=lambda q: (q[1], q[0])),))
        least = self._least_clock()
        if staleness == 0:
            wanted = (fired + 1) * spec.every - 1
            if least is not None and least <= wanted:
                return None
            return Firing(gate, fired, tuple(q for q in queued if q[1] == wanted))
        if least is not None and least < fired - staleness + 1:
            return None
        return Firing(gate, fired, tuple(queued))

    def _stamps(self, gate: int, rank: int) -> list[int]:
        """Return what is queued of one replica; take the steps for which a period has nothing."""
        spec, at, words = self.gates[gate], self._taken(gate, rank), self._words
        while words[at] < self.clock(rank) and not spec.delivers(words[at]):
            words[at] += 1
        return [s for s in range(words[at], self.clock(rank)) if spec.delivers(s)]

    def _count(self, firing: Firing) -> None:
        self._words[self._gate(firing.gate)] += 1
        for rank, stamp in firing.taken:
            self._words[self._taken(firing.gate, rank)] = stamp + 1

    def _rank(self, rank: int) -> int:
        return _LINE * (1 + rank)

    def _gate(self, gate: int) -> int:
        return _LINE * (1 + len(self._replicas) + gate * (1 + len(self._replicas)))

    def _taken(self, gate: int, rank: int) -> int:
        return self._gate(gate) + _LINE * (1 + rank)
