"""Who may read, what fires: the rule of promises, without input, output or arithmetic.

Each member of a *team* (a replica, or a group of them) has a *clock*: the steps whose contributions
it has delivered. A *gate* stands where contributions flow into something global: an aggregate, or a
table that is pushed to. It has a clock of its own, the number of its firings, and counts for each
member how many stamps it has taken. Everything is a function of the order of two events, *read* and
*deliver*, so a run is replayed from that order alone.

All numbers are words of one block (promise_words.py). In a run it is shared, and every method but
the looks (``missing``, ``room``) is called by the one process that holds the lock.

References
----------
Ho et al., "More Effective Distributed ML via a Stale Synchronous Parallel Parameter Server",
NeurIPS 2013, section 3: a reader at clock c sees all updates stamped <= c - s - 1. semantics.md
section 1 adds aggregates: firing c of a gate with promise stale(s) needs everything stamped
<= c - s, takes all that is queued, and async fires at each arrival. Quorums are those of Chen et
al., "Revisiting Distributed Synchronous SGD", 2016, section 3.2 (backup workers), with a choice of
what becomes of who is late.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from flowml.freshness import NEVER, needed_before
from flowml.protocol.promise_gate import Gate
from flowml.protocol.promise_specs import Firing, GateSpec, Missing, ReadSpec, TeamSpec
from flowml.protocol.promise_team import Team
from flowml.protocol.promise_words import EVENTS, STOP, UPDATES, VERSION, Words, count_words
from flowml.types import Array

NO_STOP, STOPPED, ENDED = 0, 1, 2


class PromiseRule:
    """The state of all gates of a run over a block of words.

    Parameters
    ----------
    block : ndarray of int64, shape (PromiseRule.size(...),)
        Zeroed before the first process opens it; ``begin`` is called once.
    teams : sequence of TeamSpec
    gates : sequence of GateSpec
    tables : sequence of str
    capacity : int
        Stamps of one member that a gate may hold and not have taken.

    Notes
    -----
    ``firings`` is to be used up after each ``deliver`` and each ``leave``, under the same lock:
    a look may count on what a delivery makes fire, since who then reads takes the lock first.
    """

    def __init__(
        self,
        block: Array,
        teams: Sequence[TeamSpec],
        gates: Sequence[GateSpec],
        tables: Sequence[str],
        capacity: int,
    ) -> None:
        self.capacity = capacity
        members = tuple(team.members for team in teams)
        words = Words.over(block, members, tuple(g.team for g in gates), len(tables))
        self._raw = words.raw
        self.teams = tuple(Team(team, words, n) for n, team in enumerate(teams))
        self.gates = tuple(Gate(g, self.teams[g.team], words, n) for n, g in enumerate(gates))
        self._gates_of = [[g for g in self.gates if g.team is team] for team in self.teams]
        self._tables = dict(zip(tables, words.tables, strict=True))
        self._quorum = next((gate for gate in self.gates if gate.spec.quorum), None)

    @staticmethod
    def size(teams: Sequence[TeamSpec], gates: Sequence[GateSpec], tables: Sequence[str]) -> int:
        """Return how many words are needed."""
        members = tuple(team.members for team in teams)
        return count_words(members, tuple(g.team for g in gates), len(tables))

    def begin(self) -> None:
        """Let every member be live at clock 0."""
        for team in self.teams:
            team.begin()

    # -- looks: without the lock ---------------------------------------------------------------

    def version(self, table: str) -> int:
        """Return how often a table has changed for its readers."""
        return self._raw[self._tables[table] + VERSION]

    def updates(self, table: str) -> int:
        """Return how many updates a table has had; a synchronous push brings several at once."""
        return self._raw[self._tables[table] + UPDATES]

    @property
    def stop(self) -> int:
        """Whether somebody has asked to stop: NO_STOP, STOPPED, or ENDED by an ``until``."""
        return self._raw[STOP]

    @property
    def has_ended(self) -> bool:
        """Whether an end of the graph asked to stop."""
        return self.stop == ENDED

    @property
    def events(self) -> int:
        """Reads, deliveries and leaves so far."""
        return self._raw[EVENTS]

    def missing(self, reads: Iterable[ReadSpec], step: int) -> Missing | None:
        """Return what must be waited for before some reads of a step, or None."""
        for read in reads:
            if read.gate < 0:
                continue
            at = step + read.answer
            need, gate = needed_before(read.promises, at), self.gates[read.gate]
            if need and gate.complete() < need:
                edge = f"{gate.spec.name} -> {read.source} -> {read.reader}"
                return Missing(edge, gate.team.slower_than(need), need, gate.team.number)
        return None

    def room(self, team: int, member: int) -> Missing | None:
        """Return what a member must wait for before it delivers, or None."""
        for gate in self._gates_of[team]:
            if gate.held(member) >= self.capacity:
                late = tuple(m for m in self.teams[team].slower_than(NEVER) if m != member)
                return Missing(f"-> {gate.spec.name}", late, gate.fired + 1, team)
        return None

    def may_skip(self, team: int, member: int, steps: int) -> bool:
        """Tell whether there is room for a member's step behind some that it moves over.

        Notes
        -----
        The quorum that went on without those holds nothing of them.
        """
        others = [gate for gate in self._gates_of[team] if not gate.spec.quorum]
        return all(gate.held(member) + steps < self.capacity for gate in others)

    def behind(self, member: int) -> int:
        """Return how many steps a replica has missed the quorum of, and moves over."""
        if self._quorum is None:
            return 0
        done = self._quorum.fired * self._quorum.spec.every
        return max(0, done - self._quorum.team.clock(member))

    def lateness(self, read: ReadSpec, step: int) -> int:
        """Return how many steps late a read in a step is."""
        return 0 if read.gate < 0 else self.gates[read.gate].lateness(step + read.answer)

    def least(self, team: int) -> int:
        """Return the least clock of the live members; the largest of all if none is live."""
        found = self.teams[team].least
        return int(self.teams[team].clocks.max()) if found == NEVER else found

    def most_complete(self) -> int:
        """Return the largest clock that some gate has complete: what waits for more, waits on."""
        return max((gate.complete() for gate in self.gates), default=0)

    # -- changes: under the lock ---------------------------------------------------------------

    def read(self) -> int:
        """Count a read; return its number among all events."""
        return self._count_event()

    def deliver(self, team: int, member: int, *, skips: bool = False) -> int:
        """Count a member's step as delivered to its gates; return its number among all events.

        Parameters
        ----------
        skips : bool
            It has moved over the step: there is nothing in what it delivers.
        """
        stamp = self.teams[team].step(member)
        for gate in self._gates_of[team]:
            gate.arrive(member, stamp, skips=skips)
        return self._count_event()

    def leave(self, kind: str, member: int) -> int:
        """Let a member be no longer waited for by any gate; return the number of the event."""
        for team in self.teams:
            if team.spec.kind == kind:
                team.leave(member)
        return self._count_event()

    def request_stop(self, ended: bool) -> None:
        """Let every replica leave at its next step."""
        if self.stop == NO_STOP:
            self._raw[STOP] = ENDED if ended else STOPPED

    def commit(self, table: str, updates: int) -> None:
        """Let the next version of a table, so many updates later, be the one that is read."""
        at = self._tables[table]
        self._raw[at + UPDATES] += updates
        self._raw[at + VERSION] += 1

    def firings(self) -> Iterator[Firing]:
        """Yield what fires now, gate by gate; each counts when the next one is asked for."""
        for gate in self.gates:
            while gate.queued:
                due = gate.due()
                for taken in due:
                    firing = Firing(gate.number, gate.fired, taken)
                    yield firing
                    gate.count(firing)
                if not due:
                    break

    def _count_event(self) -> int:
        event: int = self._raw[EVENTS]
        self._raw[EVENTS] = event + 1
        return event
