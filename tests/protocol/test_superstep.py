"""The superstep barrier: its rules one by one, thousands of schedules, and planted faults."""

from __future__ import annotations

import inspect
import sys
from types import ModuleType

import pytest

from flowml.errors import StaleRunError, WorkerLostError
from flowml.protocol import superstep
from flowml.protocol.arrival import Arrival
from flowml.protocol.failures import Aborted, PeerLost, ProtocolError
from flowml.protocol.superstep import SuperstepBarrier, Verdict
from tests.protocol.simulate_superstep import RUN, Violation, simulate

SEEDS = 5_000


def barrier(me: int = 0, members: tuple[int, ...] = (0, 1, 2)) -> SuperstepBarrier:
    """Return a fresh member of incarnation 4."""
    return SuperstepBarrier(me, members, RUN, 4)


def arrival(sender: int, n: int = 0, **changes: object) -> Arrival:
    """Return an arrival for ``barrier``."""
    return Arrival(RUN, changes.pop("incarnation", 4), n, sender, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("packed", [False, True])
def test_thousands_of_schedules_keep_every_invariant(packed: bool) -> None:
    """The simulator raises with the seed on the first violation."""
    completed = faulty = 0
    for seed in range(SEEDS if not packed else SEEDS // 5):
        simulation = simulate(seed, packed=packed)
        completed += len(simulation.verdicts)
        faulty += bool(simulation.faults)
    assert completed > SEEDS // 5
    assert faulty > SEEDS // 50


def test_a_seed_replays_identically() -> None:
    assert simulate(17).trace == simulate(17).trace


def planted(monkeypatch: pytest.MonkeyPatch, right: str, wrong: str) -> ModuleType:
    """Return the module with one line of its source made wrong."""
    source = inspect.getsource(superstep)
    assert source.count(right) == 1, f"the guard is no longer written as {right!r}"
    module = ModuleType("flowml.protocol.superstep_planted")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(source.replace(right, wrong), module.__name__, "exec"), module.__dict__)
    return module


def seeds_until_caught(module: ModuleType, seeds: int = 2_000) -> int:
    """Return how many seeds it took to see a violation."""
    for seed in range(seeds):
        try:
            simulate(seed, module)
        except Violation:
            return seed + 1
    return 0


PLANTED = {
    "repeats of completed supersteps are counted": (
        "if ahead < 0:",
        "if ahead < -2:",
    ),
    "an arrival that came early is dropped": (
        "self._count(superstep, bit, bool(flags & STOP), flip)",
        "if not ahead: self._count(superstep, bit, bool(flags & STOP), flip)",
    ),
    "the incarnation is not checked": (
        'fence("arrival", self.run, self.incarnation, arrival.run, arrival.incarnation)',
        "pass",
    ),
    "stop is taken from the member's own flag": (
        "        if stop:\n            self._stop[slot] = True",
        "        if bit == self._me_bit:\n            self._stop[slot] = stop",
    ),
    "stop is not cleared for the superstep after next": (
        "self._stop[other] = False",
        "pass",
    ),
    "the slot is not cleared for the superstep after next": (
        "self._arrived[other] = 0",
        "pass",
    ),
    "a departure fails members that do not miss it": (
        "elif self.missing & self._gone:\n"
        '            self._fail(self._member(self.missing & self._gone), True, "")',
        'if self._gone:\n            self._fail(self._member(self._gone), True, "")',
    ),
    "a departure goes unnoticed": (
        "elif self.missing & self._gone:",
        "elif False:",
    ),
    "an abort is ignored": (
        "if flags & ABORT:",
        "if False:",
    ),
    "the one that passes an abort on is blamed": (
        "origin if origin in self._bits else sender",
        "sender",
    ),
    "one member is not waited for": (
        "if not self.missing:",
        "if not self.missing & (self.missing - 1):",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = planted(monkeypatch, *PLANTED[name])
    assert 0 < seeds_until_caught(module) <= 2_000


def test_completes_when_all_have_arrived() -> None:
    mine = barrier()
    sends = mine.arrive(flip=3)
    assert [send.to for send in sends] == [1, 2]
    mine.receive(arrival(2, flip=3, stop=True))
    assert mine.verdict is None
    assert mine.absent() == (1,)
    mine.receive(arrival(1, flip=3))
    assert mine.verdict == Verdict(0, True, 3)


def test_alone_it_completes_at_once() -> None:
    mine = barrier(members=(0,))
    assert mine.arrive(stop=True, flip=9) == ()
    assert mine.verdict == Verdict(0, True, 9)


def test_frames_and_values_are_the_same_transitions() -> None:
    one, two = barrier(0, (0, 1)), barrier(1, (0, 1))
    for n in range(4):
        assert one.enter(n == 3, n) is None
        frame = one.pack(n == 3, n)
        assert frame == arrival(0, n, flip=n, stop=n == 3).encode()
        assert two.receive_packed(frame) == two.verdict
        assert two.enter(False, n) == Verdict(n, n == 3, n)
        assert one.receive_packed(two.pack(False, n)) == Verdict(n, n == 3, n)
    with pytest.raises(ProtocolError, match="a frame has 64 bytes, got 63"):
        one.receive_packed(frame[:63])


def test_entering_twice_is_a_fault() -> None:
    mine = barrier()
    mine.arrive()
    with pytest.raises(ProtocolError, match="must complete superstep 0 first"):
        mine.arrive()


def test_two_ahead_is_a_fault() -> None:
    mine = barrier()
    mine.arrive()
    mine.receive(arrival(1, 1))
    with pytest.raises(ProtocolError, match="at most one superstep ahead of 0, got 2"):
        mine.receive(arrival(1, 2))


def test_a_stranger_is_a_fault() -> None:
    with pytest.raises(ProtocolError, match=r"one of \(1, 2\), got 7"):
        barrier().receive(arrival(7))
    with pytest.raises(ProtocolError, match="members that include this one"):
        barrier(me=7)


@pytest.mark.parametrize("mine_first", [False, True])
def test_flips_that_differ_are_named(mine_first: bool) -> None:
    mine = barrier(members=(0, 1))

    def both() -> None:
        if mine_first:
            mine.arrive(flip=1)
        mine.receive(arrival(1, flip=2))
        mine.arrive(flip=1)

    with pytest.raises(ProtocolError, match=r"must commit the same step, .* report it"):
        both()
    assert mine.failed


def test_stale_and_newer_incarnations_are_told_apart() -> None:
    mine = barrier()
    with pytest.raises(StaleRunError, match=r"incarnation 4 .* got incarnation 3") as old:
        mine.receive(arrival(1, incarnation=3))
    with pytest.raises(StaleRunError, match="receiver is out of date") as new:
        mine.receive_packed(arrival(1, incarnation=5).encode())
    assert (old.value.fields["newer"], new.value.fields["newer"]) == (False, True)
    assert not mine.failed


def test_who_arrived_and_left_harms_nobody_until_it_is_missed() -> None:
    mine = barrier()
    mine.arrive()
    mine.receive(arrival(1))
    mine.lost(1)
    assert mine.verdict is None
    mine.receive(arrival(2))
    assert mine.verdict == Verdict(0, False, 0)
    mine.arrive()
    with pytest.raises(PeerLost, match="member 1 of this host has gone") as lost:
        _ = mine.verdict
    assert isinstance(lost.value, WorkerLostError)
    assert lost.value.kind == "worker"


def test_an_abort_after_completion_leaves_the_verdict() -> None:
    mine = barrier(members=(0, 1))
    mine.arrive()
    mine.receive(arrival(1))
    mine.receive(arrival(1, abort=True, origin=1))
    assert mine.verdict == Verdict(0, False, 0)
    with pytest.raises(Aborted) as aborted:
        mine.arrive()
    assert aborted.value.member == 1


def test_nothing_completes_after_a_failure() -> None:
    mine = barrier(members=(0, 1))
    mine.arrive()
    mine.lost(1)
    mine.receive(arrival(1))
    with pytest.raises(PeerLost):
        _ = mine.verdict


def test_abort_is_told_once_and_says_why_at_home() -> None:
    mine = barrier()
    mine.arrive()
    first = mine.abort("operator 'gradient' raised")
    assert [send.arrival.origin for send in first] == [0, 0]
    assert mine.abort("again") == ()
    with pytest.raises(Aborted, match="operator 'gradient' raised"):
        _ = mine.verdict


def test_what_is_passed_on_names_the_first_cause() -> None:
    mine = barrier()
    mine.arrive()
    mine.lost(2)
    passed = mine.abort()
    assert all(send.arrival.origin == 2 and send.arrival.lost for send in passed)
    other = barrier(1)
    other.receive(passed[0].arrival)
    with pytest.raises(PeerLost) as lost:
        other.arrive()
    assert lost.value.member == 2
