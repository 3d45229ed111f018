"""A seeded simulator for the rule of promises: one run of random replicas a seed, any rule.

Replicas of random speeds, some with slow phases, read, deliver at one or two points of a step, wait
for what that came to, miss quorums, and end early or die. After each event everything that fires is
written into a model of plain lists. The model computes for itself, from semantics.md sections 1 and
3, what a read must see, what may fire and what must.

In the model a later promise starts when every live replica has finished the steps before it: then
all updates stamped before are applied. Until then a push is under its earlier promise, so that a
read that is still sync sees nothing of the steps after.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flowml.freshness import Promises
from flowml.protocol import promise_rule
from flowml.protocol.promise_specs import GateSpec, ReadSpec, TeamSpec

EVENTS = 200
NEVER = 1 << 40
PHASE = 40
"""Picks between two changes of speed."""


class Violation(AssertionError):
    """An invariant does not hold."""


def promised(promises: Promises, step: int) -> tuple[int, float]:
    """Return the start and the staleness of the promise that holds in a step."""
    found = promises[0]
    for piece in promises:
        if piece[0] <= step:
            found = piece
    return found


@dataclass(frozen=True)
class Case:
    """What a seed plays."""

    replicas: int
    teams: tuple[TeamSpec, ...]
    gates: tuple[GateSpec, ...]
    reads: tuple[ReadSpec, ...]
    capacity: int
    speeds: tuple[float, ...]
    lasts: tuple[int, ...]
    """Steps after which a replica ends."""
    deaths: tuple[int, ...]
    """Picks at which a replica dies, be it between a read and its delivery."""


def draw_promises(rng: random.Random) -> Promises:
    """Return sync, stale, async, or a schedule that gets looser."""
    pieces = rng.choice((1, 1, 1, 2, 2, 3))
    values = sorted(rng.choices((0.0, 0.0, 1.0, 2.0, 4.0, rng.randint(0, 10), math.inf), k=pieces))
    starts = sorted(rng.sample(range(1, 25), pieces - 1))
    return tuple(zip((0, *starts), map(float, values), strict=True))


def draw_gate(rng: random.Random, number: int, team: int) -> GateSpec:
    """Return a gate that the compiler accepts."""
    promises, push = draw_promises(rng), rng.random() < 0.5
    loose = promises[-1][1] > 0
    every = rng.choice((1, 1, 2, 3, 5)) if push or not loose else 1
    tables = (f"t{number}",) if push or rng.random() < 0.9 else ()
    return GateSpec(f"g{number}", promises, push, tables, every, team)


def draw_quorum(rng: random.Random, number: int, team: int) -> GateSpec:
    """Return a gate with a quorum."""
    tables = (f"t{number}",) if rng.random() < 0.9 else ()
    every, count = rng.choice((1, 1, 1, 2, 3)), rng.randint(1, 4)
    sync: Promises = ((0, 0.0),)
    return GateSpec(f"g{number}", sync, False, tables, every, team, count, rng.random() < 0.5)


def draw_reads(rng: random.Random, gate: GateSpec, number: int) -> list[ReadSpec]:
    """Return reads of the table behind a gate: none tighter than the write, all sync or none."""
    if not gate.tables:
        return []
    earlier, more, reads = rng.random() < 0.3, rng.choice((0, 0, 1, 3, math.inf)), []
    more = 0 if gate.quorum else more
    starts = sorted(rng.randint(0, start) if earlier else start for start, _ in gate.promises)
    pieces = zip(starts, gate.promises, strict=True)
    base = tuple({start: staleness + more for start, (_, staleness) in pieces}.items())
    for reader in range(rng.choice((0, 1, 1, 1, 2)) or bool(gate.quorum)):
        wider = rng.choice((0, 2)) if reader else 0
        promises = tuple((start, s + wider if s else s) for start, s in base)
        for step in range(30):
            assert promised(promises, step)[1] >= promised(gate.promises, step)[1]
        every = 1 if gate.quorum else rng.choice((1, 1, 1, 2, 3, 10))
        reads.append(ReadSpec(gate.tables[0], f"r{reader}", promises, every, number))
    return reads


def draw_answers(rng: random.Random, gate: GateSpec, number: int) -> list[ReadSpec]:
    """Return a read of what the step's own contribution came to, or none."""
    if rng.random() < 0.7:
        return []
    more = 0 if gate.quorum else rng.choice((0, 0, 2, math.inf))
    promises = tuple({start: s + more for start, s in gate.promises}.items())
    spec = ReadSpec(gate.name, "a", promises, gate.every, number, gate.team + 1, answer=True)
    return [spec]


def draw(rng: random.Random, replicas: int = 0) -> Case:
    """Return a random case; of 1 to 6 replicas if it is not said."""
    replicas = replicas or rng.randint(1, 6)
    teams = tuple(TeamSpec("replica", replicas, 1 + t) for t in range(rng.choice((1, 1, 1, 2))))
    gates = [draw_gate(rng, n, rng.randrange(len(teams))) for n in range(rng.choice((1, 1, 2, 3)))]
    if rng.random() < 0.25:
        gates[0] = draw_quorum(rng, 0, gates[0].team)
    reads = [r for n, g in enumerate(gates) for r in draw_reads(rng, g, n)]
    reads += [r for n, g in enumerate(gates) for r in draw_answers(rng, g, n)]
    if rng.random() < 0.1:
        reads.append(ReadSpec("constant", "r", draw_promises(rng), 1))
    stays = rng.randrange(replicas)
    lasts, deaths = [NEVER] * replicas, [NEVER] * replicas
    for rank in range(replicas):
        how = rng.random()
        if rank != stays and how < 0.45:
            (lasts if how < 0.3 else deaths)[rank] = rng.randint(1, 40) * (1 if how < 0.3 else 5)
    speeds = tuple(rng.choice((1.0, 1.0, 2.0, 5.0, 20.0)) for _ in range(replicas))
    capacity = rng.choice((1, 2, 3, 4, 6, 22))
    capacity = max(capacity, *(g.every for g in gates))
    return Case(
        replicas, teams, tuple(gates), tuple(reads), capacity, speeds, tuple(lasts), tuple(deaths)
    )


class Told:
    """The beginning of a message, put together when somebody is to see it."""

    def __init__(self, text: Callable[[], str]) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text()


@dataclass
class Gate:
    """What the model knows of a gate."""

    spec: GateSpec
    every: int
    loose_from: int
    """The first step that is not sync."""
    clock: list[int]
    """Of each replica in its team; shared with it."""
    held: list[list[int]]
    """For each replica, the stamps that have been delivered and neither taken nor dropped."""
    ring: list[list[int]]
    """For each replica, the stamps that its slots hold."""
    late: list[list[int]]
    """For each replica, the stamp that missed its quorum and waits for the next."""
    taken: list[int]
    """For each replica, the first stamp after those that are taken or dropped."""
    fired: int = 0
    version: int = 0
    updates: int = 0
    dropped: int = 0

    @property
    def wanted(self) -> int:
        """The stamp that a sync firing takes next."""
        return (self.fired + 1) * self.every - 1

    @property
    def due(self) -> list[int]:
        """For each replica, the next contribution that is to be taken."""
        every = self.every
        return [t + every - 1 - t % every for t in self.taken]


@dataclass
class Simulation:
    """One run."""

    seed: int
    case: Case | None = None
    length: int = EVENTS
    """Events before the last ones leave."""
    events: int = 0
    trace: list[tuple[Any, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        case = self.case = self.case or draw(self.rng)
        tables = sorted({t for g in case.gates for t in g.tables})
        rule = promise_rule.PromiseRule
        self.words = np.zeros(rule.size(case.teams, case.gates, tables), np.int64)
        self.processes = [
            rule(self.words, case.teams, case.gates, tables, case.capacity)
            for _ in range(self.rng.randint(1, 3))
        ]
        self.rule = self.processes[0]
        self.rule.begin()
        self.clocks = [[0] * case.replicas for _ in case.teams]
        self.step = [0] * case.replicas
        self.live = list(range(case.replicas))
        self.stage = [0] * case.replicas
        """How many actions of its step each replica has done."""
        self.waited = [0] * case.replicas
        self.left = False
        self.slowest = [0 for _ in case.teams]
        self.dying = sorted((d, r) for r, d in enumerate(case.deaths) if d < NEVER)
        self.gates = [self._gate(spec) for spec in case.gates]
        self.reads = [(r, self.gates[r.gate]) for r in case.reads if r.gate >= 0]
        self.known = [[0] * len(self.reads) for _ in range(case.replicas)]
        self.actions: list[tuple[str, int]] = [("read", 0)]
        for team in range(len(case.teams)):
            self.actions += [("deliver", team), ("answer", team)]

    def _gate(self, spec: GateSpec) -> Gate:
        assert self.case is not None
        loose = min((start for start, s in spec.promises if s), default=NEVER)
        ranks = range(self.case.replicas)
        ring = [[-1] * self.case.capacity for _ in ranks]
        return Gate(
            spec,
            spec.every,
            loose,
            self.clocks[spec.team],
            [[] for _ in ranks],
            ring,
            [[] for _ in ranks],
            [0 for _ in ranks],
        )

    # -- the run -------------------------------------------------------------------------------

    def run(self) -> None:
        """Play it to the end."""
        picks = 0
        while self.events < self.length:
            for rank in self.picks():
                picks += 1
                self.die(picks)
                self.go(rank)
        order = self.live[:]
        self.rng.shuffle(order)
        for rank in order:
            if rank in self.live:
                self.leave(rank)
            for other in self.picks()[: self.rng.randint(0, 4)]:
                self.go(other)
        self.judge_end()

    def picks(self) -> list[int]:
        """Return who wants to go on next, by speed."""
        assert self.case is not None
        slow = [0.02 if self.rng.random() < 0.2 else 1.0 for _ in self.step]
        weights = [a * b for a, b in zip(self.case.speeds, slow, strict=True)]
        return self.rng.choices(range(len(weights)), weights, k=PHASE)

    def die(self, picks: int) -> None:
        """Let those leave whose time has come."""
        while self.dying and self.dying[0][0] <= picks:
            self.leave(self.dying.pop(0)[1])

    def go(self, rank: int) -> None:
        """Let a replica go on; if it must wait, another; if all must, they wait for ever."""
        if not self.live or (rank in self.live and self.may_go(rank)):
            return
        start = self.rng.randrange(len(self.live))
        for other in self.live[start:] + self.live[:start]:
            if self.may_go(other):
                return
        raise Violation(f"replicas {self.live} at clocks {self.clocks} wait for ever")

    def may_go(self, rank: int) -> bool:
        """Do the next event of a replica, in its process, unless it must wait."""
        self.rule = self.processes[rank % len(self.processes)]
        if self.stage[rank] == 0 and self.rule.behind(rank) and not self.no_room(rank):
            self.skip(rank)
            return True
        action, team = self.actions[self.stage[rank]]
        reads = self.reads_of(rank, action, team)
        waits = self.rule.missing([r for r, _ in reads], self.step[rank])
        if self.stage[rank] == 0:
            waits = waits or self.no_room(rank)
        if waits is not None:
            self.waited[rank] = waits.clock
            self.judge_wait(rank, waits, reads)
            return False
        if self.waited[rank]:
            self.judge_release(rank)
        if action == "deliver":
            self.deliver(rank, team)
        else:
            self.read(rank, reads)
        self.stage[rank] += 1
        if self.stage[rank] == len(self.actions):
            self.finish(rank)
        return True

    def no_room(self, rank: int) -> Any:
        """Return what keeps a replica from beginning a step, or None."""
        teams = range(len(self.clocks))
        return next((m for t in teams if (m := self.rule.room(t, rank)) is not None), None)

    def reads_of(self, rank: int, action: str, team: int) -> list[tuple[ReadSpec, Gate]]:
        """Return the reads of an action that are due."""
        step = self.step[rank]
        return [
            (r, g)
            for r, g in self.reads
            if action == ("answer" if r.answer else "read")
            and (not r.answer or r.turn == team + 1)
            and r.is_due(step)
        ]

    def held(self, rank: int) -> int:
        """Return the steps of a replica from the first on that a gate has not taken."""
        return max(g.clock[rank] - g.taken[rank] for g in self.gates)

    # -- the events ----------------------------------------------------------------------------

    def read(self, rank: int, reads: list[tuple[ReadSpec, Gate]]) -> None:
        """Let a replica read; judge what it sees."""
        assert self.case is not None
        step = self.step[rank]
        self.judge_staleness(rank, reads)
        self.judge_number(self.rule.read())
        self.trace.append(("read", rank))
        for read, gate in reads:
            self.judge_read(rank, step, read, gate)
            if not read.answer:
                number = next(n for n, (r, _) in enumerate(self.reads) if r is read)
                version = self.rule.version(read.source)
                if version != gate.version or version < self.known[rank][number]:
                    raise Violation(f"{read} shows {version}, not {gate.version}")
                self.known[rank][number] = version

    def deliver(self, rank: int, team: int, *, skips: bool = False) -> None:
        """Let a replica deliver; judge what fires."""
        assert self.case is not None
        stamp = self.clocks[team][rank]
        for gate in self.gates:
            if gate.spec.team == team:
                self.bring(gate, rank, stamp, skips=skips)
        self.judge_number(self.rule.deliver(team, rank, skips=skips))
        self.trace.append(("deliver", rank, team))
        self.clocks[team][rank] = stamp + 1
        self.fire()
        if not skips:
            self.judge_lead(rank, team, stamp)

    def bring(self, gate: Gate, rank: int, stamp: int, *, skips: bool) -> None:
        """Note a contribution in the model."""
        spec = gate.spec
        if (stamp + 1) % gate.every:
            if not gate.held[rank]:
                gate.taken[rank] = stamp + 1
            return
        if spec.quorum and stamp // gate.every < gate.fired:
            gate.taken[rank] = stamp + 1
            if skips:
                return
            if not spec.carries:
                gate.dropped += 1
            elif gate.late[rank]:
                raise Violation(f"{spec.name}: {gate.late[rank]} of {rank} is overwritten")
            else:
                gate.late[rank].append(stamp)
            return
        slots, at = gate.ring[rank], stamp % len(gate.ring[rank])
        if slots[at] in gate.held[rank]:
            raise Violation(f"{spec.name}: {slots[at]} of {rank} is overwritten")
        slots[at] = stamp
        gate.held[rank].append(stamp)

    def skip(self, rank: int) -> None:
        """Let a replica move over a step whose quorum went on."""
        gate = next(g for g in self.gates if g.spec.quorum)
        if self.step[rank] >= gate.fired * gate.every:
            raise Violation(f"replica {rank} moves over step {self.step[rank]}: {gate.fired}")
        for team in range(len(self.clocks)):
            self.deliver(rank, team, skips=True)
        self.finish(rank)

    def finish(self, rank: int) -> None:
        """Count a step; let the replica leave after its last."""
        assert self.case is not None
        self.step[rank], self.stage[rank] = self.step[rank] + 1, 0
        if self.step[rank] == self.case.lasts[rank]:
            self.leave(rank)

    def leave(self, rank: int) -> None:
        """Let a replica end or die."""
        self.rule = self.processes[rank % len(self.processes)]
        self.judge_number(self.rule.leave("replica", rank))
        self.trace.append(("leave", rank))
        self.live.remove(rank)
        self.left = True
        self.fire()

    def fire(self) -> None:
        """Take what fires; judge that nothing more had to."""
        self.slowest = [min([c[r] for r in self.live], default=NEVER) for c in self.clocks]
        for firing in self.rule.firings():
            self.trace.append(firing)
            gate = self.gates[firing.gate]
            if firing.number != gate.fired or self.rule.gates[firing.gate].fired != gate.fired:
                raise Violation(f"{firing} is not firing {gate.fired}")
            self.judge_firing(gate, firing.taken)
            for rank, stamp in firing.taken:
                self.take(gate, rank, stamp)
            gate.fired += 1
            for table in gate.spec.tables:
                self.rule.commit(table, len(firing.taken))
                gate.version += 1
                gate.updates += len(firing.taken)
        self.judge_rest()
        for team, slowest in enumerate(self.slowest):
            if self.live and self.rule.least(team) != slowest:
                raise Violation(f"the slowest is at {slowest}, not {self.rule.least(team)}")

    def take(self, gate: Gate, rank: int, stamp: int) -> None:
        """Take one contribution: each once, those of one replica in order."""
        if stamp in gate.late[rank]:
            gate.late[rank].remove(stamp)
            return
        if not gate.held[rank] or stamp != gate.held[rank][0] or stamp >= gate.clock[rank]:
            raise Violation(f"{gate.spec.name} takes {stamp} of {rank}, held is {gate.held[rank]}")
        if gate.ring[rank][stamp % len(gate.ring[rank])] != stamp:
            raise Violation(f"{gate.spec.name}: the slot of {stamp} of {rank} holds another")
        gate.held[rank].pop(0)
        gate.taken[rank] = min(stamp + gate.every, gate.clock[rank])

    # -- the model -----------------------------------------------------------------------------

    def queued(self, gate: Gate) -> list[tuple[int, int]]:
        """Return (replica, stamp) of what a gate has not taken."""
        pairs = enumerate(zip(gate.late, gate.held, strict=True))
        return [(r, stamp) for r, (late, held) in pairs for stamp in (*late, *held)]

    def slowest_of(self, gate: Gate) -> int:
        """Return the clock of the slowest live replica in a gate's team."""
        return self.slowest[gate.spec.team]

    def may_fire(self, gate: Gate) -> bool:
        """Tell whether the promise lets a gate take what is queued."""
        if gate.spec.quorum:
            end = gate.wanted
            there = sum(clock > end for clock in gate.clock)
            may_come = sum(gate.clock[r] <= end for r in self.live)
            return there >= min(gate.spec.quorum, there + may_come)
        if gate.wanted < gate.loose_from:
            return self.slowest_of(gate) > gate.wanted
        if gate.spec.push:
            return self.slowest_of(gate) >= gate.loose_from
        late = gate.fired - promised(gate.spec.promises, gate.fired)[1]
        return self.slowest_of(gate) > late

    def sees(self, gate: Gate, need: int) -> bool:
        """Tell whether everything stamped before ``need`` is in the table."""
        if gate.spec.quorum:
            return gate.wanted >= need
        slowest = self.slowest_of(gate)
        if gate.loose_from <= need and slowest < gate.loose_from and gate.spec.push:
            return False
        if gate.spec.push or gate.wanted < gate.loose_from:
            return all(gate.due[r] >= need for r in self.live)
        if gate.fired >= need:
            return True
        return self.left and slowest >= need and not self.queued(gate)

    def need(self, read: ReadSpec, step: int) -> int:
        """Return how many stamps a read must see."""
        at = step + read.answer
        start, staleness = promised(read.promises, at)
        return max(start, int(at - staleness) if staleness < NEVER else start)

    # -- judgements ----------------------------------------------------------------------------

    def judge_number(self, number: int) -> None:
        """Events are numbered without gaps."""
        if number != self.events or self.rule.events != self.events + 1:
            raise Violation(f"event {self.events} has number {number}")
        self.events += 1

    def judge_wait(self, rank: int, waits: Any, reads: list[tuple[ReadSpec, Gate]]) -> None:
        """Nobody is held back who may go on, and who is late is named."""
        assert self.case is not None
        step = self.step[rank]
        full = self.stage[rank] == 0 and self.held(rank) >= self.case.capacity
        if full and all(self.sees(gate, self.need(read, step)) for read, gate in reads):
            return
        if all(self.sees(gate, self.need(read, step)) for read, gate in reads):
            raise Violation(f"replica {rank} may go on in step {step} and is held back: {waits}")
        clock = self.clocks[waits.team]
        late = tuple(r for r in self.live if clock[r] < waits.clock)
        if not late or waits.members != late:
            raise Violation(f"replica {rank} waits for {waits}, late are {late}")

    def judge_release(self, rank: int) -> None:
        """Who goes on after a wait could tell by the clock that it waited for."""
        reached, self.waited[rank] = self.waited[rank], 0
        if self.rule.most_complete() < reached:
            raise Violation(f"replica {rank} waited for {reached} and goes on before")

    def judge_staleness(self, rank: int, reads: list[tuple[ReadSpec, Gate]]) -> None:
        """The staleness that is told is within what is promised."""
        step = self.step[rank]
        for read, gate in reads:
            allowed = step + read.answer - self.need(read, step) + gate.every - 1
            late = self.rule.lateness(read, step)
            if late > allowed:
                raise Violation(f"{read}: staleness {late}, promised is {allowed}")

    def judge_read(self, rank: int, step: int, read: ReadSpec, gate: Gate) -> None:
        """A read sees what it must; a sync read nothing fresher; everyone its own pushes."""
        what = Told(lambda: f"{read} of replica {rank} in step {step}")
        need = self.need(read, step)
        if not self.sees(gate, need):
            raise Violation(f"{what} misses one of {need}: fired {gate.fired}, due {gate.due}")
        at = step + read.answer
        staleness = promised(read.promises, at)[1]
        if gate.spec.quorum:
            if not read.answer and gate.fired != step // gate.every:
                raise Violation(f"{what} sees firing {gate.fired}")
        elif staleness == 0:
            if max(gate.due) - gate.every >= at or gate.fired != at // gate.every:
                raise Violation(f"{what} sees firing {gate.fired}, due {gate.due}")
            if any(d < min(at, c) for d, c in zip(gate.due, gate.clock, strict=True)):
                raise Violation(f"{what} misses one: due {gate.due}")
        elif gate.spec.push:
            begun = self.slowest_of(gate) >= gate.loose_from
            if begun and gate.due[rank] < at:
                raise Violation(f"{what} misses its own push {gate.due[rank]}")
        elif gate.fired >= need and need > gate.loose_from:
            within = need - promised(gate.spec.promises, need - 1)[1]
            if any(gate.due[r] < within for r in self.live):
                raise Violation(f"{what} misses what firing {need - 1} takes: due {gate.due}")

    def judge_firing(self, gate: Gate, taken: tuple[tuple[int, int], ...]) -> None:
        """A firing is allowed, and takes what it must and no more."""
        what = Told(lambda: f"{gate.spec} fires {gate.fired} with {taken} at clocks {gate.clock}")
        if not taken or not self.may_fire(gate):
            raise Violation(f"{what}: not allowed, the slowest is at {self.slowest_of(gate)}")
        queued = self.queued(gate)
        if gate.spec.quorum:
            expected = tuple(q for q in queued if q[1] <= gate.wanted)
            if taken != expected:
                raise Violation(f"{what}: a quorum takes {expected}")
        elif gate.wanted < gate.loose_from:
            expected = tuple(q for q in queued if q[1] == gate.wanted)
            if taken != expected or not {r for r, _ in taken}.issuperset(self.live):
                raise Violation(f"{what}: a sync firing takes {expected}")
        elif gate.spec.push:
            if taken != (min(queued, key=lambda q: (q[1], q[0]), default=None),):
                raise Violation(f"{what}: queued is {queued}")
        elif taken != tuple(queued):
            raise Violation(f"{what}: it takes all of {queued}")

    def judge_rest(self) -> None:
        """Nothing stays that a gate must take, and what was dropped is counted."""
        for number, gate in enumerate(self.gates):
            if self.queued(gate) and self.may_fire(gate):
                raise Violation(f"{gate.spec.name} must fire {gate.fired}: due {gate.due}")
            if self.rule.gates[number].dropped != gate.dropped:
                raise Violation(f"{gate.spec.name}: {gate.dropped} were dropped")

    def judge_lead(self, rank: int, team: int, step: int) -> None:
        """Who reads every step leads by what its reads, periods and gates allow, and one step."""
        lead = step + 1 - self.slowest[team]
        for read, gate in self.reads:
            if read.answer or gate.spec.team != team or gate.spec.quorum:
                continue
            bound = promised(read.promises, step)[1] + gate.every
            if not gate.spec.push:
                bound += promised(gate.spec.promises, step)[1]
            if read.every == 1 and self.live and lead > bound:
                raise Violation(f"replica {rank} leads by {lead} after step {step}: {read}")

    def judge_end(self) -> None:
        """When all have left, everything has been taken, and the rule knows it."""
        for team, clock in enumerate(self.clocks):
            if self.rule.least(team) != max(clock):
                raise Violation(f"without live ones the clock is {self.rule.least(team)}")
            for rank, steps in enumerate(clock):
                found = self.rule.teams[team]
                if found.clock(rank) != steps or found.is_live(rank):
                    raise Violation(f"replica {rank} has left at clock {clock}")
        for number, gate in enumerate(self.gates):
            if self.queued(gate):
                raise Violation(f"{gate.spec} is left with {self.queued(gate)}")
            if self.rule.gates[number].fired != gate.fired:
                raise Violation(f"{gate.spec} has fired {gate.fired}")
            for table in gate.spec.tables:
                if self.rule.updates(table) != gate.updates:
                    raise Violation(f"{gate.spec}: {gate.updates} updates")


def simulate(seed: int, **given: Any) -> Simulation:
    """Play one seed; a violation names the seed, which plays the same again."""
    simulation = Simulation(seed, **given)
    try:
        simulation.run()
    except Exception as error:
        told = f"seed {seed}, event {simulation.events}: {type(error).__name__}: {error}"
        raise Violation(told) from error
    return simulation
