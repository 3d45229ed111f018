"""A seeded simulator of lines to tables: replicas, shards, and a network that loses what it can.

Each replica reads from every shard, computes for a while, and pushes to every shard, with the code
that a run uses (TableClient, TableServer, frames as bytes, the rule of promises). Frames are late,
lost, repeated, overtaken and damaged; replicas and shards die, and then all begin again from the
last snapshot in a new incarnation, while frames of the old one are still under way. After a number
of frames the faults end, and all must come to their last step.

What is judged, by a model that knows everything:

- a read misses nothing that its promise lets it count on, nor the reader's own pushes, shows a
  prefix of each writer's pushes, and never goes back within an incarnation;
- in the end each push is in each shard once, whatever was repeated or lost;
- who copies a table without its lock, while pushes are applied, gets all of it of one version;
- nobody waits for ever, and where nothing is lost, nobody needs to ask twice.
"""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flowml.errors import StaleRunError
from flowml.freshness import Promises
from flowml.protocol import one_version, promise_rule, table_client, table_server
from flowml.protocol.failures import ProtocolError
from flowml.protocol.promise_specs import GateSpec, ReadSpec, TeamSpec
from flowml.protocol.table_wire import DELIVER, LEAVE, READ, Act, Frame, Item

RUN = b"r" * 16
LIMIT = 1 << 20
FRAMES = 200
"""Frames that are sent while there are faults."""
PATIENCE = 10_000
"""Events after the faults within which all must be at their last step."""
TEAMS, TABLES = "replica", ("w",)


class Violation(AssertionError):
    """An invariant does not hold."""


@dataclass(frozen=True)
class Case:
    """What a seed plays."""

    replicas: int
    shards: int
    promises: Promises
    every: int
    lasts: tuple[int, ...]
    """Steps of each replica."""
    next_read: str
    """How the read after a push is asked for: "merged" with it in one request, "ahead" before it
    is answered, "after" that."""
    loss: float
    repeats: float
    damage: float
    crashes: float
    """Crashes of anybody, a frame."""
    snapshots: float
    speeds: tuple[float, ...]
    """Seconds of a step."""
    watches: float
    """Copies without the lock, a frame."""
    capacity: int
    """Pushes of a replica that a gate may hold."""
    patience: float
    """Seconds after which a replica asks again; infinite where nothing is lost."""


def draw(rng: random.Random) -> Case:
    """Return a random case."""
    replicas, shards = rng.randint(1, 4), rng.randint(1, 3)
    least = math.ceil(FRAMES / (2 * replicas * shards))
    staleness = rng.choice((0.0, 0.0, 1.0, 3.0, 10.0, math.inf))
    promises: Promises = ((0, staleness),)
    if rng.random() < 0.2:
        promises = ((0, 0.0), (rng.randint(1, 12), staleness)) if staleness else promises
    quiet = rng.random() < 0.2
    crashes = 0.0 if rng.random() < 0.4 else rng.choice((0.002, 0.005, 0.02))
    loss = 0.0 if quiet else rng.choice((0.02, 0.1, 0.3))
    return Case(
        replicas,
        shards,
        promises,
        rng.choice((1, 1, 1, 2, 3)),
        tuple(least + rng.randint(0, 5) for _ in range(replicas)),
        rng.choice(("merged", "ahead", "after")),
        loss,
        0.0 if quiet else rng.choice((0.0, 0.1, 0.5)),
        0.0 if quiet else rng.choice((0.0, 0.02)),
        0.0 if quiet else crashes,
        rng.choice((0.01, 0.05)),
        tuple(rng.choice((0.5, 1.0, 1.0, 5.0, 20.0)) for _ in range(replicas)),
        rng.choice((0.0, 0.05)),
        rng.choice((3, 10_000)),
        math.inf if quiet else rng.choice((5.0, 20.0)),
    )


@dataclass
class Shard:
    """One shard: the rule of promises, and which pushes are in it."""

    case: Case
    number: int
    words: Any = None
    pushed: list[list[int]] = field(default_factory=list)
    """Of each replica, the steps whose push was applied, in order."""
    places: list[list[int]] = field(default_factory=lambda: [[0, 0], [0, 0]])
    """Two places for versions; both words of a place say which one is there."""

    def __post_init__(self) -> None:
        case = self.case
        teams = (TeamSpec(TEAMS, case.replicas),)
        gates = (GateSpec("push", case.promises, True, TABLES, case.every),)
        fresh = self.words is None
        if fresh:
            self.words = np.zeros(promise_rule.PromiseRule.size(teams, gates, TABLES), np.int64)
            self.pushed = [[] for _ in range(case.replicas)]
        self.rule = promise_rule.PromiseRule(self.words, teams, gates, TABLES, self.case.capacity)
        self.read = ReadSpec("w", "g", case.promises, 1, 0)
        if fresh:
            self.rule.begin()

    @property
    def stop(self) -> int:
        return 0

    def may(self, writer: int, act: Act) -> bool:
        if act.kind == DELIVER:
            return self.rule.room(0, writer) is None
        return act.kind != READ or self.rule.missing([self.read], act.step) is None

    def apply(self, writer: int, act: Act) -> Act:
        if act.kind == READ:
            seen = [np.array(steps, np.int64) for steps in self.pushed]
            late = self.rule.lateness(self.read, act.step)
            item = Item(0, self.rule.version("w"), late, arrays=tuple(seen))
            return Act(READ, act.step, 0, self.rule.read(), (item,))
        if act.kind == LEAVE:
            event = self.rule.leave(TEAMS, writer)
        else:
            if self.rule.teams[0].clock(writer) != act.step:
                raise Violation(f"replica {writer} pushes step {act.step} out of turn")
            event = self.rule.deliver(0, writer)
        for firing in self.rule.firings():
            for rank, stamp in firing.taken:
                self.pushed[rank].append(stamp)
            version = self.rule.version("w") + 1
            self.places[version % 2][:] = version, version
            self.rule.commit("w", len(firing.taken))
        return Act(act.kind, act.step, 0, event)

    def copy(self) -> Shard:
        """Return what a snapshot keeps."""
        return Shard(
            self.case,
            self.number,
            self.words.copy(),
            [list(steps) for steps in self.pushed],
            [list(words) for words in self.places],
        )


@dataclass
class Replica:
    """One replica and where it is."""

    number: int
    clients: list[table_client.TableClient]
    step: int = 0
    state: str = "read"
    """What it does next: read, wait, compute, push, leave, gone."""
    seen: dict[int, Item] = field(default_factory=dict)
    """What each shard has answered to the read of this step."""
    known: list[list[int]] = field(default_factory=list)
    """For each shard, how many pushes of each writer were seen: it never goes back."""
    asked: int = 0
    """Counts what it asks, to tell a new wait from an old one."""


@dataclass(frozen=True)
class Snapshot:
    """A cut: all replicas stand between two steps, and all that they asked is answered."""

    shards: tuple[Shard, ...]
    done: tuple[dict[int, int], ...]
    """Of each shard, the last request of each writer."""
    steps: tuple[int, ...]
    asked: tuple[tuple[int, ...], ...]
    """Of each replica, its last request to each shard."""
    gone: tuple[bool, ...]


@dataclass
class Simulation:
    """One run."""

    seed: int
    case: Case | None = None
    now: float = 0.0
    incarnation: int = 1
    sent: int = 0
    events: int = 0
    faults: bool = True
    pause: float = math.inf
    """The step before whose read all are to pause for a snapshot; infinite: none is wanted."""
    trace: list[tuple[Any, ...]] = field(default_factory=list)
    queue: list[tuple[float, int, str, Any]] = field(default_factory=list)
    _made: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.case = self.case or draw(self.rng)
        count = range(self.case.replicas)
        fresh = tuple(Shard(self.case, number) for number in range(self.case.shards))
        zeros = tuple(0 for _ in fresh)
        self.snapshot = Snapshot(
            fresh, tuple({} for _ in fresh), tuple(0 for _ in count), tuple(zeros for _ in count),
            tuple(False for _ in count),
        )  # fmt: skip
        self.left: set[int] = set()
        """Replicas that are not there any more, whatever happens."""
        self.begin()

    # -- incarnations ----------------------------------------------------------------------------

    def begin(self) -> None:
        """Let all begin from the last snapshot."""
        assert self.case is not None
        cut, case = self.snapshot, self.case
        self.shards = [shard.copy() for shard in cut.shards]
        self.servers = [
            table_server.TableServer(RUN, self.incarnation, shard, range(case.replicas), done)
            for shard, done in zip(self.shards, cut.done, strict=True)
        ]
        self.replicas = [
            Replica(
                number,
                [
                    table_client.TableClient(RUN, self.incarnation, number, done)
                    for done in cut.asked[number]
                ],
                cut.steps[number],
                "gone" if cut.gone[number] else "read",
                known=[[0] * case.replicas for _ in self.shards],
            )
            for number in range(case.replicas)
        ]
        self.pause = math.inf
        for replica in self.replicas:
            if replica.number not in self.left:
                self.at(self.rng.random(), "go", (self.incarnation, replica.number))

    def crash(self) -> None:
        """Let somebody die: all that was not in the last snapshot is lost."""
        self.incarnation += 1
        self.trace.append(("crash", self.incarnation))
        self.begin()

    def take_snapshot(self) -> None:
        """Keep what is there: everybody stands between two steps, and is answered."""
        self.snapshot = Snapshot(
            tuple(shard.copy() for shard in self.shards),
            tuple(server.done() for server in self.servers),
            tuple(replica.step for replica in self.replicas),
            tuple(tuple(c.done for c in replica.clients) for replica in self.replicas),
            tuple(replica.state == "gone" for replica in self.replicas),
        )
        self.left |= {r.number for r in self.replicas if r.state == "gone"}
        self.pause = math.inf
        for replica in self.replicas:
            self.at(0.0, "go", (self.incarnation, replica.number))

    # -- time ------------------------------------------------------------------------------------

    def at(self, delay: float, what: str, about: Any) -> None:
        heapq.heappush(self.queue, (self.now + delay, self._made, what, about))
        self._made += 1

    def run(self) -> None:
        """Play it to the end."""
        assert self.case is not None
        healed = 0
        while not self.is_over():
            if not self.queue:
                raise Violation(f"nothing happens any more: {self.places()}")
            self.happen()
            if self.faults and self.sent >= FRAMES:
                self.faults = False
            if not self.faults:
                healed += 1
                if healed > PATIENCE:
                    raise Violation(f"not at the last step after the faults: {self.places()}")
        self.judge_end()

    def happen(self) -> None:
        """Let the next thing happen."""
        self.now, _, what, about = heapq.heappop(self.queue)
        self.events += 1
        {"frame": self.arrive, "go": self.go, "again": self.again, "watch": self.watch}[what](about)

    def is_over(self) -> bool:
        """Tell whether all have made their last step, and enough has been sent."""
        return all(r.state == "gone" for r in self.replicas)

    def places(self) -> list[tuple[int, int, str]]:
        return [(r.number, r.step, r.state) for r in self.replicas]

    # -- the network -----------------------------------------------------------------------------

    def send(self, shard: int, frame: Frame) -> None:
        """Give a frame to the network: bytes, which come late, twice, damaged or not at all."""
        assert self.case is not None
        self.sent += 1
        copies = 1
        if self.faults:
            if self.rng.random() < self.case.loss:
                copies = 0
            elif self.rng.random() < self.case.repeats:
                copies = 2
            if self.rng.random() < self.case.crashes:
                self.at(self.rng.random(), "go", (self.incarnation, -1))
        if self.rng.random() < self.case.watches:
            self.at(self.rng.random(), "watch", shard)
        content = frame.encode()
        for _ in range(copies):
            if self.faults and self.rng.random() < self.case.damage:
                at = self.rng.randrange(len(content))
                damaged = bytearray(content)
                damaged[at] ^= 1 << self.rng.randrange(8)
                content = bytes(damaged)
            delay = self.rng.choice((0.1, 0.1, 0.3, 2.0, 30.0 if self.faults else 0.3))
            self.at(delay * self.rng.random(), "frame", (shard, content))

    def arrive(self, about: tuple[int, bytes]) -> None:
        """Let a frame arrive at a shard or at a replica."""
        shard, content = about
        try:
            frame = Frame.decode(content, LIMIT)
        except ProtocolError:
            return
        try:
            if frame.kind == 1:
                for reply in self.servers[shard].receive(frame):
                    self.send(shard, reply)
            else:
                replica = self.replicas[frame.writer]
                acts = replica.clients[shard].receive(frame)
                if acts is not None:
                    self.answered(replica, shard, acts)
        except StaleRunError:
            self.trace.append(("stale", frame.seq))
        except ProtocolError as error:
            raise Violation(f"somebody honest is refused: {error}") from error

    # -- a replica -------------------------------------------------------------------------------

    def go(self, about: tuple[int, int]) -> None:
        """Let a replica do what comes next; -1: let somebody die."""
        incarnation, number = about
        if incarnation != self.incarnation:
            return
        if number < 0:
            self.crash()
            return
        replica = self.replicas[number]
        if number in self.left or replica.state in ("gone", "wait"):
            return
        if replica.state == "read":
            self.begin_step(replica)
        elif replica.state == "push":
            self.push(replica)

    def begin_step(self, replica: Replica) -> None:
        """Read for the next step, or leave after the last, unless all are to pause before it.

        The step of a pause is one that nobody has begun, so that those who wait for others to
        reach their own step are not kept waiting by it.
        """
        assert self.case is not None
        if self.pause == math.inf and self.faults and self.rng.random() < self.case.snapshots:
            self.pause = 1 + max(r.step for r in self.replicas if r.state != "gone")
        if replica.step >= self.pause:
            if all(self.rests(r) for r in self.replicas):
                self.take_snapshot()
            return
        replica.seen = {}
        if replica.step == self.case.lasts[replica.number]:
            self.ask(replica, [Act(LEAVE, replica.step)], "wait")
        else:
            self.ask(replica, [Act(READ, replica.step)], "wait")

    def rests(self, replica: Replica) -> bool:
        """Tell whether a replica has come to the pause and all that it asked is answered."""
        still = replica.state == "gone" or (replica.state == "read" and replica.step >= self.pause)
        return still and all(client.drained for client in replica.clients)

    def ask(self, replica: Replica, acts: list[Act], state: str) -> None:
        """Send a request to every shard."""
        replica.state, replica.asked = state, replica.asked + 1
        for shard, client in enumerate(replica.clients):
            if not client.has_room:
                raise Violation(f"replica {replica.number} goes on without answers")
            self.send(shard, client.ask(*acts))
        self.wait(replica)

    def wait(self, replica: Replica) -> None:
        assert self.case is not None
        if self.case.patience < math.inf:
            about = (self.incarnation, replica.number, replica.asked)
            self.at(self.case.patience, "again", about)

    def again(self, about: tuple[int, int, int]) -> None:
        """Ask again for what has not been answered."""
        incarnation, number, asked = about
        if incarnation != self.incarnation or number in self.left:
            return
        replica = self.replicas[number]
        unanswered = [(s, f) for s, c in enumerate(replica.clients) for f in c.unanswered()]
        if replica.asked == asked and unanswered:
            for shard, frame in unanswered:
                self.send(shard, frame)
            self.wait(replica)

    def answered(self, replica: Replica, shard: int, acts: tuple[Act, ...]) -> None:
        """Take in what a shard has answered."""
        for act in acts:
            if act.kind == READ:
                self.judge_read(replica, shard, act)
                replica.seen[shard] = act.items[0]
        if not all(client.drained for client in replica.clients):
            return
        if acts[-1].kind == LEAVE:
            replica.state = "gone"
        elif len(replica.seen) == len(self.shards):
            replica.state = "push"
            assert self.case is not None
            spent = self.case.speeds[replica.number] * self.rng.random()
            self.at(spent, "go", (self.incarnation, replica.number))
        else:
            replica.state = "read"
            self.at(0.0, "go", (self.incarnation, replica.number))
        if self.pause < math.inf and all(self.rests(r) for r in self.replicas):
            self.take_snapshot()

    def push(self, replica: Replica) -> None:
        """Push what was computed; perhaps with the next read in one request."""
        assert self.case is not None
        acts = [Act(DELIVER, replica.step)]
        replica.step += 1
        replica.seen = {}
        more = replica.step < self.case.lasts[replica.number]
        reads = more and replica.step < self.pause
        if reads and self.case.next_read == "merged":
            acts.append(Act(READ, replica.step))
        self.ask(replica, acts, "wait")
        if reads and self.case.next_read == "ahead":
            self.ask(replica, [Act(READ, replica.step)], "wait")

    def watch(self, number: int) -> None:
        """Copy a table without its lock, while other things happen."""
        shard = self.shards[number]

        def copy(version: int) -> tuple[int, int]:
            place = shard.places[version % 2]
            first = place[0]
            for _ in range(self.rng.choice((0, 1, 5, 40))):
                if self.queue:
                    self.happen()
            return first, place[1]

        first, second = one_version.copy_one_version(lambda: shard.rule.version("w"), copy)
        if first != second:
            raise Violation(f"shard {number} shows version {first} and {second} in one copy")

    # -- judgements ------------------------------------------------------------------------------

    def judge_read(self, replica: Replica, shard: int, act: Act) -> None:
        """Judge what a read shows: prefixes, what must be there, own pushes, never back."""
        assert self.case is not None
        (item,) = act.items
        case, step = self.case, act.step
        start, staleness = [p for p in case.promises if p[0] <= step][-1]
        need = max(start, int(step - staleness) if staleness < math.inf else start)
        for writer, pushed in enumerate(item.arrays):
            steps = pushed.tolist()
            wanted = list(range(case.every - 1, case.lasts[writer], case.every))
            reader = f"replica {replica.number} in step {step}"
            what = f"shard {shard} shows {reader} {steps} of {writer}"
            if steps != wanted[: len(steps)]:
                raise Violation(f"{what}: no prefix")
            must = [s for s in wanted if s < need]
            if len(steps) < len(must):
                raise Violation(f"{what}: {must} must be there")
            if writer == replica.number and loose_at(case.promises, step):
                own = [s for s in wanted if s < step]
                if staleness and len(steps) < len(own):
                    raise Violation(f"{what}: its own {own} must be there")
            if len(steps) < replica.known[shard][writer]:
                raise Violation(f"{what}: {replica.known[shard][writer]} were there before")
            replica.known[shard][writer] = len(steps)

    def judge_end(self) -> None:
        """Each push is in each shard once, in its order."""
        assert self.case is not None
        for number, shard in enumerate(self.shards):
            for writer, last in enumerate(self.case.lasts):
                wanted = list(range(self.case.every - 1, last, self.case.every))
                if shard.pushed[writer] != wanted:
                    raise Violation(f"shard {number} has {shard.pushed[writer]} of {writer}")


def loose_at(promises: Promises, step: int) -> bool:
    """Tell whether the promise that holds in a step is a loose one since long."""
    start, staleness = [p for p in promises if p[0] <= step][-1]
    return staleness > 0 and start == 0


def simulate(seed: int, **given: Any) -> Simulation:
    """Play one seed; a violation names the seed, which plays the same again."""
    simulation = Simulation(seed, **given)
    try:
        simulation.run()
    except Exception as error:
        told = f"seed {seed}, frame {simulation.sent}: {type(error).__name__}: {error}"
        raise Violation(told) from error
    return simulation
