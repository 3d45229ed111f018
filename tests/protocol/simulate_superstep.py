"""A seeded simulator for the superstep barrier: one schedule a seed, any barrier class.

Messages lie in a bag and come out in random order, some twice; members take their steps in
random order too. A seed may also plan that a member aborts, dies or speaks for an earlier
incarnation. What a real link guarantees is kept: the end of a connection is seen after all that
was sent over it.
"""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from flowml.errors import StaleRunError
from flowml.protocol import superstep
from flowml.protocol.arrival import Arrival
from flowml.protocol.failures import Aborted, PeerLost

RUN = bytes(range(16))
OTHER_RUN = bytes(16)
LAST_SUPERSTEP = 5


class Violation(AssertionError):
    """An invariant does not hold."""


@dataclass
class Member:
    """One simulated member and what the judge knows of it."""

    barrier: Any
    entered: int = -1
    completed: int = -1
    state: str = "running"  # then: finished, failed, dead


@dataclass
class Simulation:
    """One schedule."""

    seed: int
    module: ModuleType = superstep
    packed: bool = False
    members: dict[int, Member] = field(default_factory=dict)
    bag: list[tuple[str, int, Any]] = field(default_factory=list)
    faults: list[tuple[str, int]] = field(default_factory=list)
    stops: dict[int, bool] = field(default_factory=dict)
    verdicts: dict[int, Any] = field(default_factory=dict)
    pending: dict[tuple[int, int], int] = field(default_factory=dict)
    trace: list[tuple[Any, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        numbers = self.rng.sample(range(20), self.rng.randint(1, 6))
        self.incarnation = self.rng.randint(1, 3)
        self.repeats = self.rng.choice([0.0, 0.1, 0.4])
        self.stale = self.rng.choice([0.0, 0.05, 0.2])
        self.stop_rate = self.rng.choice([0.0, 0.05, 0.3])
        self.fault_rate = self.rng.choice([0.0, 0.0, 0.02, 0.08])
        self.stop_ends = self.rng.random() < 0.7  # else a stop cuts a window and all go on
        for number in numbers:
            barrier = self.module.SuperstepBarrier(number, numbers, RUN, self.incarnation)
            self.members[number] = Member(barrier)
            self.bag.append(("step", number, None))

    def run(self) -> None:
        """Play the schedule to its end and judge it."""
        for _ in range(20_000):
            if not self.bag:
                return self.judge_end()
            at = self.rng.randrange(len(self.bag))
            kind, to, what = self.bag[at]
            if kind == "end" and self.pending.get((what, to), 0):
                continue  # the end of a connection comes after what was sent over it
            self.bag[at] = self.bag[-1]
            self.bag.pop()
            if self.members[to].state == "running":
                self.trace.append((kind, to, what))
                getattr(self, "on_" + kind)(to, what)
            elif kind == "message":
                self.pending[(what.sender, to)] -= 1
        raise Violation("the schedule does not end")

    def on_step(self, number: int, _: None) -> None:
        """A running member enters its next superstep, or fails on purpose."""
        member = self.members[number]
        if self.rng.random() < self.fault_rate:
            return self.fault(number, self.rng.choice(["aborted", "lost"]))
        stop = self.rng.random() < self.stop_rate
        try:
            sends = member.barrier.arrive(stop, (member.entered + 1) // 2)
        except (Aborted, PeerLost) as failure:
            return self.leave(number, failure)
        member.entered += 1
        self.stops[member.entered] = self.stops.get(member.entered, False) or stop
        self.post(number, sends)
        self.look(number)

    def on_message(self, number: int, arrival: Arrival) -> None:
        """A message arrives, perhaps not for the last time, perhaps after one of old times."""
        if self.rng.random() < self.stale:
            self.send_stale(number, arrival)
        if self.rng.random() < self.repeats:
            self.bag.append(("message", number, arrival))
        else:
            self.pending[(arrival.sender, number)] -= 1
        self.give(number, arrival)
        self.look(number)

    def on_end(self, number: int, peer: int) -> None:
        """A connection ends."""
        self.members[number].barrier.lost(peer)
        self.look(number)

    def give(self, number: int, arrival: Arrival) -> None:
        """Hand over an arrival as a value or as a frame."""
        barrier = self.members[number].barrier
        if self.packed:
            barrier.receive_packed(arrival.encode())
        else:
            barrier.receive(arrival)

    def send_stale(self, number: int, arrival: Arrival) -> None:
        """Give what another run or incarnation could have sent: it must be refused."""
        ahead = self.rng.choice([0, 1])
        late = self.members[number].barrier.superstep + ahead
        old = dataclasses.replace(
            arrival,
            superstep=max(late, 0),
            flip=max(late, 0) // 2,
            run=self.rng.choice([RUN, OTHER_RUN]),
            incarnation=self.incarnation + self.rng.choice([-1, 1]),
        )
        try:
            self.give(number, old)
        except StaleRunError:
            return
        self.look(number)

    def look(self, number: int) -> None:
        """See whether a member has completed its superstep or must leave."""
        member = self.members[number]
        try:
            verdict = member.barrier.verdict
        except (Aborted, PeerLost) as failure:
            return self.leave(number, failure)
        if verdict is None or verdict.superstep == member.completed:
            return
        self.judge(number, verdict)
        member.completed = verdict.superstep
        if (verdict.stop and self.stop_ends) or verdict.superstep == LAST_SUPERSTEP:
            self.depart(number, "finished")
        else:
            self.bag.append(("step", number, None))

    def fault(self, number: int, kind: str) -> None:
        """A member aborts, or dies with part of what it sent still unsent."""
        self.faults.append((kind, number))
        if kind == "aborted":
            self.post(number, self.members[number].barrier.abort("planned"))
            return self.depart(number, "failed")
        kept = []
        for entry in self.bag:
            mine = entry[0] == "message" and entry[2].sender == number
            if mine and self.rng.random() < 0.3:
                self.pending[(number, entry[1])] -= 1
            else:
                kept.append(entry)
        self.bag = kept
        self.depart(number, "dead")

    def leave(self, number: int, failure: Aborted | PeerLost) -> None:
        """A member has learnt of a failure: it passes it on and goes."""
        kind = "lost" if isinstance(failure, PeerLost) else "aborted"
        if (kind, failure.member) not in self.faults:
            raise Violation(f"member {number} blames {kind} {failure.member}, not {self.faults}")
        self.post(number, self.members[number].barrier.abort())
        self.depart(number, "failed")

    def depart(self, number: int, state: str) -> None:
        """Close the connections of a member."""
        self.members[number].state = state
        for peer in self.members:
            if peer != number:
                self.bag.append(("end", peer, number))

    def post(self, number: int, sends: tuple[Any, ...]) -> None:
        """Put messages into the bag."""
        for send in sends:
            self.bag.append(("message", send.to, send.arrival))
            pair = (number, send.to)
            self.pending[pair] = self.pending.get(pair, 0) + 1

    def judge(self, number: int, verdict: Any) -> None:
        """Invariants of a completed superstep."""
        n = verdict.superstep
        if n != self.members[number].completed + 1:
            raise Violation(f"member {number} completed {n} out of order")
        behind = [m for m, other in self.members.items() if other.entered < n]
        if behind:
            raise Violation(f"member {number} completed {n} before {behind} entered it")
        if verdict.stop != self.stops[n] or verdict.flip != n // 2:
            raise Violation(f"member {number} got {verdict}, stop should be {self.stops[n]}")
        if self.verdicts.setdefault(n, verdict) != verdict:
            raise Violation(f"member {number} got {verdict}, another {self.verdicts[n]}")

    def judge_end(self) -> None:
        """Invariants once nothing is under way: nobody is left waiting."""
        waiting = [number for number, member in self.members.items() if member.state == "running"]
        if waiting:
            raise Violation(f"{waiting} wait for ever; faults: {self.faults}")
        if not self.faults and any(m.state != "finished" for m in self.members.values()):
            raise Violation("a member failed without a fault")


def simulate(seed: int, module: ModuleType = superstep, packed: bool = False) -> Simulation:
    """Play one seed; a violation names the seed."""
    simulation = Simulation(seed, module, packed)
    try:
        simulation.run()
    except Exception as error:
        raise Violation(f"seed {seed}: {type(error).__name__}: {error}") from error
    return simulation
