"""A seeded simulator for the rule of promises: one run of random replicas a seed, any rule.

Replicas of random speeds, some with slow phases, read, deliver, and end early or die. After each
event everything that fires is written into a model of plain lists. The model computes for itself,
from semantics.md sections 1 and 3, what a read must see, what may fire and what must.

In the model a later promise starts when every live replica has finished the steps before it: then
all updates stamped before are applied. Until then a push is under its earlier promise, so that a
read that is still sync sees nothing of the steps after.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import lt
from types import ModuleType
from typing import Any

import numpy as np

from flowml.freshness import Promises
from flowml.protocol import promise_rule

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
    gates: tuple[Any, ...]
    reads: tuple[Any, ...]
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


def draw_gate(rng: random.Random, number: int, module: ModuleType) -> Any:
    """Return a gate that the compiler accepts."""
    promises, push = draw_promises(rng), rng.random() < 0.5
    loose = promises[-1][1] > 0
    every = rng.choice((1, 1, 2, 3, 5)) if push or not loose else 1
    table = f"t{number}" if push or rng.random() < 0.9 else ""
    return module.GateSpec(f"g{number}", promises, push, table, every)


def draw_reads(rng: random.Random, gate: Any, module: ModuleType) -> list[Any]:
    """Return reads of the table behind a gate: none tighter than the write, all sync or none."""
    if not gate.table:
        return []
    earlier, more, reads = rng.random() < 0.3, rng.choice((0, 0, 1, 3, math.inf)), []
    starts = sorted(rng.randint(0, start) if earlier else start for start, _ in gate.promises)
    pieces = zip(starts, gate.promises, strict=True)
    base = tuple({start: staleness + more for start, (_, staleness) in pieces}.items())
    for number in range(rng.choice((0, 1, 1, 1, 2))):
        wider = rng.choice((0, 2)) if number else 0
        promises = tuple((start, s + wider if s else s) for start, s in base)
        for step in range(30):
            assert promised(promises, step)[1] >= promised(gate.promises, step)[1]
        every = rng.choice((1, 1, 1, 2, 3, 10))
        reads.append(module.ReadSpec(gate.table, f"r{number}", promises, every))
    return reads


def draw(rng: random.Random, module: ModuleType = promise_rule, replicas: int = 0) -> Case:
    """Return a random case; of 1 to 6 replicas if it is not said."""
    replicas = replicas or rng.randint(1, 6)
    gates = tuple(draw_gate(rng, n, module) for n in range(rng.choice((1, 1, 2, 3))))
    reads = [r for g in gates for r in draw_reads(rng, g, module)]
    if rng.random() < 0.1:
        reads.append(module.ReadSpec("constant", "r", draw_promises(rng), 1))
    stays = rng.randrange(replicas)
    lasts, deaths = [NEVER] * replicas, [NEVER] * replicas
    for rank in range(replicas):
        how = rng.random()
        if rank != stays and how < 0.45:
            (lasts if how < 0.3 else deaths)[rank] = rng.randint(1, 40) * (1 if how < 0.3 else 5)
    speeds = tuple(rng.choice((1.0, 1.0, 2.0, 5.0, 20.0)) for _ in range(replicas))
    capacity = rng.choice((1, 2, 3, 4, 6, 22))
    return Case(replicas, gates, tuple(reads), capacity, speeds, tuple(lasts), tuple(deaths))


class Told:
    """The beginning of a message, put together when somebody is to see it."""

    def __init__(self, text: Callable[[], str]) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text()


@dataclass
class Gate:
    """What the model knows of a gate."""

    spec: Any
    every: int
    loose_from: int
    """The first step that is not sync."""
    due: list[int]
    """For each replica, the next contribution that has not been taken."""
    ring: list[list[int]]
    """For each replica, the stamps that its slots hold."""
    fired: int = 0
    version: int = 0
    updates: int = 0

    @property
    def wanted(self) -> int:
        """The stamp that a sync firing takes next."""
        return (self.fired + 1) * self.every - 1


@dataclass
class Simulation:
    """One run."""

    seed: int
    module: ModuleType = promise_rule
    case: Case | None = None
    length: int = EVENTS
    """Events before the last ones leave."""
    events: int = 0
    trace: list[tuple[Any, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        case = self.case = self.case or draw(self.rng, self.module)
        size = self.module.PromiseRule.size(case.replicas, len(case.gates))
        self.words = np.zeros(size, np.int64)
        self.processes = [
            self.module.PromiseRule(
                self.words, case.replicas, case.gates, case.reads, case.capacity
            )
            for _ in range(self.rng.randint(1, 3))
        ]
        self.rule = self.processes[0]
        self.rule.begin()
        self.clock = [0] * case.replicas
        self.live = list(range(case.replicas))
        self.reading = [False] * case.replicas
        self.waited = [0] * case.replicas
        self.left = False
        self.slowest = 0
        self.dying = sorted((d, r) for r, d in enumerate(case.deaths) if d < NEVER)
        self.gates = [self._gate(spec) for spec in case.gates]
        of_table = {g.spec.table: g for g in self.gates}
        self.reads = [(r, of_table[r.table]) for r in case.reads if r.table in of_table]
        self.known = [[0] * len(self.reads) for _ in range(case.replicas)]
        self.counts_all = all(r.every == 1 for r, _ in self.reads)

    def _gate(self, spec: Any) -> Gate:
        assert self.case is not None
        loose = min((start for start, s in spec.promises if s), default=NEVER)
        ranks = range(self.case.replicas)
        ring = [[-1] * self.case.capacity for _ in ranks]
        return Gate(spec, spec.every, loose, [spec.every - 1 for _ in ranks], ring)

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
        slow = [0.02 if self.rng.random() < 0.2 else 1.0 for _ in self.clock]
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
        raise Violation(f"replicas {self.live} at clocks {self.clock} wait for ever")

    def may_go(self, rank: int) -> bool:
        """Do the next event of a replica, in its process, unless it must wait."""
        self.rule = self.processes[rank % len(self.processes)]
        reading = self.reading[rank]
        waits = self.rule.room(rank) if reading else self.rule.missing(rank)
        if waits is not None:
            self.waited[rank] = waits.clock
            self.judge_wait(rank, waits)
            return False
        if self.waited[rank]:
            self.judge_release(rank)
        (self.deliver if reading else self.read)(rank)
        return True

    def held(self, rank: int) -> int:
        """Return the steps of a replica from the first on that a gate has not taken."""
        clock = self.clock[rank]
        return max(clock - min(g.due[rank], clock) for g in self.gates)

    # -- the events ----------------------------------------------------------------------------

    def read(self, rank: int) -> None:
        """Let a replica read; judge what it sees."""
        if self.counts_all:
            self.judge_staleness(rank)
        self.judge_number(self.rule.read())
        self.trace.append(("read", rank))
        self.reading[rank] = True
        step = self.clock[rank]
        for number, (read, gate) in enumerate(self.reads):
            if step % read.every == 0:
                self.judge_read(rank, step, read, gate)
                version = self.rule.version(read.table)
                if version != gate.version or version < self.known[rank][number]:
                    raise Violation(f"{read} shows {version}, not {gate.version}")
                self.known[rank][number] = version

    def deliver(self, rank: int) -> None:
        """Let a replica deliver; judge what fires."""
        assert self.case is not None
        stamp = self.clock[rank]
        for gate in self.gates:
            if (stamp + 1) % gate.every == 0:
                slots, at = gate.ring[rank], stamp % self.case.capacity
                if slots[at] >= gate.due[rank]:
                    raise Violation(f"{gate.spec.name}: {slots[at]} of {rank} is overwritten")
                slots[at] = stamp
        self.judge_number(self.rule.deliver(rank))
        self.trace.append(("deliver", rank))
        self.clock[rank], self.reading[rank] = stamp + 1, False
        self.fire()
        self.judge_lead(rank, stamp)
        if stamp + 1 == self.case.lasts[rank]:
            self.leave(rank)

    def leave(self, rank: int) -> None:
        """Let a replica end or die."""
        self.rule = self.processes[rank % len(self.processes)]
        self.judge_number(self.rule.leave(rank))
        self.trace.append(("leave", rank))
        self.live.remove(rank)
        self.left = True
        self.fire()

    def fire(self) -> None:
        """Take what fires; judge that nothing more had to."""
        self.slowest = min([self.clock[r] for r in self.live], default=NEVER)
        for firing in self.rule.firings():
            self.trace.append(firing)
            gate = self.gates[firing.gate]
            if firing.number != gate.fired or self.rule.fired(firing.gate) != gate.fired:
                raise Violation(f"{firing} is not firing {gate.fired}")
            self.judge_firing(gate, firing.taken)
            for rank, stamp in firing.taken:
                self.take(gate, rank, stamp)
            gate.fired += 1
            if gate.spec.table:
                self.rule.commit(gate.spec.table, len(firing.taken))
                gate.version += 1
                gate.updates += len(firing.taken)
        self.judge_rest()
        if self.live and self.rule.least() != self.slowest:
            raise Violation(f"the slowest is at {self.slowest}, not {self.rule.least()}")

    def take(self, gate: Gate, rank: int, stamp: int) -> None:
        """Take one contribution: each once, those of one replica in order."""
        if stamp != gate.due[rank] or stamp >= self.clock[rank]:
            raise Violation(f"{gate.spec.name} takes {stamp} of {rank}, due is {gate.due[rank]}")
        if gate.ring[rank][stamp % len(gate.ring[rank])] != stamp:
            raise Violation(f"{gate.spec.name}: the slot of {stamp} of {rank} holds another")
        gate.due[rank] += gate.every

    # -- the model -----------------------------------------------------------------------------

    def queued(self, gate: Gate) -> list[tuple[int, int]]:
        """Return (replica, stamp) of what a gate has not taken."""
        pairs = enumerate(zip(gate.due, self.clock, strict=True))
        return [(r, s) for r, (due, clock) in pairs for s in range(due, clock, gate.every)]

    def holds(self, gate: Gate) -> bool:
        """Tell whether a gate has anything that it has not taken."""
        return any(map(lt, gate.due, self.clock))

    def may_fire(self, gate: Gate) -> bool:
        """Tell whether the promise lets a gate take what is queued."""
        if gate.wanted < gate.loose_from:
            return self.slowest > gate.wanted
        if gate.spec.push:
            return self.slowest >= gate.loose_from
        return self.slowest > gate.fired - promised(gate.spec.promises, gate.fired)[1]

    def sees(self, gate: Gate, need: int) -> bool:
        """Tell whether everything stamped before ``need`` is in the table."""
        if gate.loose_from <= need and self.slowest < gate.loose_from and gate.spec.push:
            return False
        if gate.spec.push or gate.wanted < gate.loose_from:
            return all(gate.due[r] >= need for r in self.live)
        if gate.fired >= need:
            return True
        return self.left and self.slowest >= need and not self.holds(gate)

    def need(self, read: Any, step: int) -> int:
        """Return how many stamps a read must see."""
        start, staleness = promised(read.promises, step)
        return max(start, int(step - staleness) if staleness < NEVER else start)

    # -- judgements ----------------------------------------------------------------------------

    def judge_number(self, number: int) -> None:
        """Events are numbered without gaps."""
        if number != self.events or self.rule.events != self.events + 1:
            raise Violation(f"event {self.events} has number {number}")
        self.events += 1

    def judge_wait(self, rank: int, waits: Any) -> None:
        """Nobody is held back who may go on, and who is late is named."""
        assert self.case is not None
        if self.reading[rank]:
            if self.held(rank) < self.case.capacity:
                raise Violation(f"replica {rank} has room and is held back: {waits}")
            return
        step = self.clock[rank]
        if all(
            step % read.every or self.sees(gate, self.need(read, step)) for read, gate in self.reads
        ):
            raise Violation(f"replica {rank} may read step {step} and is held back: {waits}")
        late = tuple(r for r in self.live if self.clock[r] < waits.clock)
        if not late or waits.replicas != late:
            raise Violation(f"replica {rank} waits for {waits}, late are {late}")

    def judge_release(self, rank: int) -> None:
        """Who goes on after a wait could tell by the clock that it waited for."""
        reached, self.waited[rank] = self.waited[rank], 0
        if self.rule.most_complete() < reached:
            raise Violation(f"replica {rank} waited for {reached} and goes on before")

    def judge_staleness(self, rank: int) -> None:
        """The staleness that is told is within what is promised."""
        step = self.clock[rank]
        allowed = max((step - self.need(r, step) + g.every - 1 for r, g in self.reads), default=0)
        if self.rule.staleness(rank) > allowed:
            raise Violation(f"staleness {self.rule.staleness(rank)}, promised is {allowed}")

    def judge_read(self, rank: int, step: int, read: Any, gate: Gate) -> None:
        """A read sees what it must; a sync read nothing fresher; everyone its own pushes."""
        what = Told(lambda: f"{read} of replica {rank} in step {step}")
        need = self.need(read, step)
        if not self.sees(gate, need):
            raise Violation(f"{what} misses one of {need}: fired {gate.fired}, due {gate.due}")
        staleness = promised(read.promises, step)[1]
        if staleness == 0:
            if max(gate.due) - gate.every >= step or gate.fired != step // gate.every:
                raise Violation(f"{what} sees firing {gate.fired}, due {gate.due}")
            if any(d < min(step, c) for d, c in zip(gate.due, self.clock, strict=True)):
                raise Violation(f"{what} misses one: due {gate.due}")
        elif gate.spec.push:
            begun = self.slowest >= gate.loose_from
            if begun and gate.due[rank] < step:
                raise Violation(f"{what} misses its own push {gate.due[rank]}")
        elif gate.fired >= need and need > gate.loose_from:
            within = need - promised(gate.spec.promises, need - 1)[1]
            if any(gate.due[r] < within for r in self.live):
                raise Violation(f"{what} misses what firing {need - 1} takes: due {gate.due}")

    def judge_firing(self, gate: Gate, taken: tuple[tuple[int, int], ...]) -> None:
        """A firing is allowed, and takes what it must and no more."""
        what = Told(lambda: f"{gate.spec} fires {gate.fired} with {taken} at clocks {self.clock}")
        if not taken or not self.may_fire(gate):
            raise Violation(f"{what}: not allowed, the slowest is at {self.slowest}")
        queued = self.queued(gate)
        if gate.wanted < gate.loose_from:
            expected = tuple(q for q in queued if q[1] == gate.wanted)
            if taken != expected or not {r for r, _ in taken}.issuperset(self.live):
                raise Violation(f"{what}: a sync firing takes {expected}")
        elif gate.spec.push:
            if taken != (min(queued, key=lambda q: (q[1], q[0]), default=None),):
                raise Violation(f"{what}: queued is {queued}")
        elif taken != tuple(queued):
            raise Violation(f"{what}: it takes all of {queued}")

    def judge_rest(self) -> None:
        """Nothing stays that a gate must take."""
        for gate in self.gates:
            if self.holds(gate) and self.may_fire(gate):
                raise Violation(f"{gate.spec.name} must fire {gate.fired}: due {gate.due}")

    def judge_lead(self, rank: int, step: int) -> None:
        """Who reads every step leads by what its reads, periods and gates allow, and one step."""
        lead = step + 1 - self.slowest
        for read, gate in self.reads:
            bound = promised(read.promises, step)[1] + gate.every
            if not gate.spec.push:
                bound += promised(gate.spec.promises, step)[1]
            if read.every == 1 and self.live and lead > bound:
                raise Violation(f"replica {rank} leads by {lead} after step {step}: {read}")

    def judge_end(self) -> None:
        """When all have left, everything has been taken, and the rule knows it."""
        if self.rule.least() != max(self.clock):
            raise Violation(f"without live ones the clock is {self.rule.least()}")
        for number, gate in enumerate(self.gates):
            if self.queued(gate):
                raise Violation(f"{gate.spec} is left with {self.queued(gate)}")
            if self.rule.fired(number) != gate.fired:
                raise Violation(f"{gate.spec} has fired {gate.fired}")
            table = gate.spec.table
            if table and self.rule.updates(table) != gate.updates:
                raise Violation(f"{gate.spec}: {gate.updates} updates")
        for rank, clock in enumerate(self.clock):
            if self.rule.clock(rank) != clock or self.rule.is_live(rank):
                raise Violation(f"replica {rank} has left at clock {clock}")


def simulate(seed: int, module: ModuleType = promise_rule, **given: Any) -> Simulation:
    """Play one seed; a violation names the seed, which plays the same again."""
    simulation = Simulation(seed, module, **given)
    try:
        simulation.run()
    except Exception as error:
        told = f"seed {seed}, event {simulation.events}: {type(error).__name__}: {error}"
        raise Violation(told) from error
    return simulation
