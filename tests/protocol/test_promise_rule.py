"""The rule of promises: tables of its numbers, thousands of seeds, and planted faults."""

from __future__ import annotations

import inspect
import math
import random
import sys
import time
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowml.freshness import NEVER, Promises, loose_from, needed_before, staleness_at
from flowml.protocol import promise_rule
from flowml.protocol.promise_rule import (
    ENDED,
    NO_STOP,
    STOPPED,
    Firing,
    GateSpec,
    Missing,
    PromiseRule,
    ReadSpec,
)
from tests.protocol.simulate_promises import EVENTS, Simulation, Violation, draw, simulate

SYNC: Promises = ((0, 0.0),)
ASYNC: Promises = ((0, math.inf),)
LINE = 8


def rule_of(
    replicas: int, gate: GateSpec, read: ReadSpec | None = None, capacity: int = 8
) -> PromiseRule:
    """Return a rule that has begun, with one gate."""
    words = np.zeros(PromiseRule.size(replicas, 1), np.int64)
    rule = PromiseRule(words, replicas, (gate,), (read,) if read else (), capacity)
    rule.begin()
    return rule


def delivered(rule: PromiseRule, rank: int) -> list[Firing]:
    """Return what a delivery makes fire."""
    rule.deliver(rank)
    return list(rule.firings())


def left(rule: PromiseRule, rank: int) -> list[Firing]:
    """Return what a leave makes fire."""
    rule.leave(rank)
    return list(rule.firings())


# -- thousands of seeds ------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_thousands_of_seeds_keep_every_invariant(seeds: int) -> None:
    """The simulator raises with the seed on the first violation: ``simulate(seed)`` repeats it."""
    began, events = time.perf_counter(), 0
    for seed in range(seeds):
        events += simulate(seed).events
    seconds = time.perf_counter() - began
    print(f"\n{seeds} seeds, {events} events, {events / seconds:.0f} events/s, {seconds:.1f} s")
    assert events >= seeds * EVENTS


def test_a_seed_replays_identically() -> None:
    one, two = simulate(17), simulate(17)
    assert one.trace == two.trace
    assert one.words.tolist() == two.words.tolist()


@pytest.mark.parametrize("replicas", [1, 2, 8, 9, 40])
def test_loops_and_numpy_agree_event_by_event(
    replicas: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(12):
        case = draw(random.Random(seed), replicas=replicas)
        found = []
        for few in (0, replicas):
            monkeypatch.setattr(promise_rule, "_FEW", few)
            found.append(simulate(seed, case=case, length=max(EVENTS, 25 * replicas)))
        assert found[0].trace == found[1].trace, f"seed {seed}"
        assert found[0].words.tolist() == found[1].words.tolist(), f"seed {seed}"


# -- planted faults ----------------------------------------------------------------------------

PLANTED = {
    "a read may be one step later": (
        "self._complete(gate) < need:",
        "self._complete(gate) < need - 1:",
    ),
    "a stale sum fires one step early": (
        "late = least <= fired - staleness_at",
        "late = least < fired - staleness_at",
    ),
    "a sync gate fires one step early": (
        "if least > wanted else ()",
        "if least >= wanted else ()",
    ),
    "a finished replica is waited for": (
        "if words[at + _CLOCK] == words[_LEAST]:",
        "if False:",
    ),
    "what a finished replica left is not taken": (
        "ranks = [r for r in self._replicas if self.clock(r) > stamp]",
        "ranks = [r for r in self._replicas if self.clock(r) > stamp and self.is_live(r)]",
    ),
    "a contribution is taken twice": (
        "min(stamp + every, words[at + _CLOCK])",
        "min(stamp + every * (stamp % 16 != 15), words[at + _CLOCK])",
    ),
    "a contribution is lost when a period skips": (
        "elif words[gate + at] == stamp:",
        "else:",
    ),
    "a sync firing takes a later stamp": (
        "tuple((rank, stamp) for rank in ranks)",
        "tuple((rank, self.clock(rank) - 1) for rank in ranks)",
    ),
    "own pushes are applied with the next one's": (
        "return tuple((q,) for q in sorted(self._queued(gate), key=lambda q: (q[1], q[0])))",
        "return tuple((q,) for q in sorted(self._queued(gate)) if q[0] != self._arrived)",
    ),
    "a stale sum leaves some of what is queued": (
        "return () if late else (tuple(self._queued(gate)),)",
        "return () if late else (tuple(self._queued(gate)[:4]),)",
    ),
    "the later promise of a write starts a step early": (
        "if wanted < start:",
        "if wanted < start - 1:",
    ),
    "the later promise of a push starts before the slowest is there": (
        "        if least < start:\n            return ()\n",
        "",
    ),
    "the later promise of a read starts before its updates are applied": (
        "need = needed_before(read.promises, step)",
        "need = step - int(min(staleness_at(read.promises, step), step))",
    ),
    "a read forgets that a push is not loose yet": (
        "if least >= start else start - 1",
        "",
    ),
    "back-pressure is one step short": (
        "if clock - words[gate + at] >= full:",
        "if clock - words[gate + at] > full:",
    ),
    "a reader waits for firings that cannot come": (
        "return max(fired, least)",
        "return fired",
    ),
    "a reader waits for steps that a period skips": (
        "return (least // every + 1) * every - 1 if",
        "return least if",
    ),
    "the slowest is not found again": (
        "if not self._words[_AT_LEAST]:",
        "if not self._words[_AT_LEAST] and self._words[_LEAST] % 16 != 15:",
    ),
    "only what arrived last is looked at": (
        "clock // every - taken // every == words[number + _QUEUED]",
        "clock // every - taken // every > 0",
    ),
    "the wrong replicas are named": (
        "self._slower_than(need)",
        "self._slower_than(need + 1)",
    ),
}


def planted(monkeypatch: pytest.MonkeyPatch, right: str, wrong: str) -> ModuleType:
    """Return the module with one line of its source made wrong."""
    source = inspect.getsource(promise_rule)
    assert source.count(right) == 1, f"the guard is no longer written as {right!r}"
    module = ModuleType("flowml.protocol.promise_rule_planted")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(source.replace(right, wrong), module.__name__, "exec"), module.__dict__)
    return module


def first_violation(module: ModuleType, seeds: int = 10_000) -> str:
    """Return the first violation; it begins with its seed."""
    for seed in range(seeds):
        try:
            simulate(seed, module)
        except Violation as violation:
            return str(violation)
    return ""


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    violation = first_violation(planted(monkeypatch, *PLANTED[name]))
    print(f"\n{name}: {violation[:150]}")
    assert violation.startswith("seed "), "not caught"
    assert ": Violation: " in violation, "it broke something else than an invariant"


SEEN_BY_READERS = [
    "a read may be one step later",
    "a sync gate fires one step early",
    "own pushes are applied with the next one's",
    "the later promise of a push starts before the slowest is there",
    "the later promise of a read starts before its updates are applied",
]


@pytest.mark.parametrize("name", SEEN_BY_READERS)
def test_what_readers_see_is_judged_by_itself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every firing pass: the reads that follow are wrong all the same."""
    monkeypatch.setattr(Simulation, "judge_firing", lambda *_: None)
    monkeypatch.setattr(Simulation, "judge_rest", lambda _: None)
    violation = first_violation(planted(monkeypatch, *PLANTED[name]))
    print(f"\n{name}: {violation[:300]}")
    assert ": Violation: ReadSpec(" in violation


# -- numbers -----------------------------------------------------------------------------------

PROMISES = st.lists(
    st.tuples(st.integers(1, 30), st.sampled_from([0.0, 1.0, 2.0, 10.0, math.inf])), max_size=4
).map(lambda more: _schedule([(0, 0.0), *more]))


def _schedule(pieces: list[tuple[int, float]]) -> Promises:
    starts = sorted({start for start, _ in pieces})
    values = sorted(s for _, s in pieces)
    return tuple(zip(starts, values, strict=False))


@given(PROMISES, st.integers(0, 60))
@settings(max_examples=300)
def test_needed_before_by_definition(promises: Promises, step: int) -> None:
    """All stamps before the promise started, and all that are <= step - 1 - s."""
    holds = [(start, s) for start, s in promises if start <= step][-1]
    must = {t for t in range(step) if t < holds[0] or t <= step - 1 - holds[1]}
    assert needed_before(promises, step) == len(must)
    assert must == set(range(len(must)))
    assert staleness_at(promises, step) == holds[1]
    assert (staleness_at(promises, step) > 0) == (loose_from(promises) <= step)


@pytest.mark.parametrize(
    ("promises", "needed"),
    [
        (SYNC, [0, 1, 2, 3, 4, 5]),
        (((0, 1.0),), [0, 0, 1, 2, 3, 4]),
        (((0, 10.0),), [0, 0, 0, 0, 0, 0]),
        (ASYNC, [0, 0, 0, 0, 0, 0]),
        (((0, 0.0), (2, 2.0)), [0, 1, 2, 2, 2, 3]),
        (((0, 0.0), (2, math.inf)), [0, 1, 2, 2, 2, 2]),
        (((0, 1.0), (3, 4.0), (5, math.inf)), [0, 0, 1, 3, 3, 5]),
    ],
)
def test_needed_before(promises: Promises, needed: list[int]) -> None:
    assert [needed_before(promises, step) for step in range(6)] == needed


def test_a_schedule_begins_at_step_zero() -> None:
    with pytest.raises(ValueError, match="must begin at step 0"):
        staleness_at(((3, 1.0),), 2)
    assert loose_from(SYNC) == NEVER


# -- layout ------------------------------------------------------------------------------------


@pytest.mark.parametrize("replicas", [1, 2, 8, 9, 40])
def test_what_a_delivery_writes(replicas: int) -> None:
    """The first line, those of the gates, and for the replica one of its own and one a gate."""
    gates = (GateSpec("a", SYNC, False, "t"), GateSpec("b", ASYNC, True, "u", 2))
    words = np.zeros(PromiseRule.size(replicas, 2), np.int64)
    assert len(words) == LINE * (1 + replicas + 2 * (1 + replicas))
    rule = PromiseRule(words, replicas, gates, (), 8)
    other = PromiseRule(words, replicas, gates, (), 8)
    rule.begin()
    for rank in range(replicas):
        before = words.copy()
        delivered(rule, rank)
        changed = set((np.flatnonzero(words != before) // LINE).tolist())
        heads = [1 + replicas + n * (1 + replicas) for n in range(2)]
        mine = {1 + rank, heads[1] + 1 + rank}
        assert changed - {0, *heads} - mine <= {heads[0] + 1 + r for r in range(replicas)}
        assert mine <= changed
        assert [other.clock(r) for r in range(replicas)] == [1] * (rank + 1) + [0] * (
            replicas - rank - 1
        )
    assert (other.fired(0), other.fired(1), other.events) == (1, 0, replicas)


def test_words_of_a_table() -> None:
    rule = rule_of(2, GateSpec("push", SYNC, True, "w"))
    assert (rule.version("w"), rule.updates("w"), rule.version("another")) == (0, 0, 0)
    rule.commit("w", 2)
    assert (rule.version("w"), rule.updates("w")) == (1, 2)


def test_the_first_to_ask_says_why_it_stops() -> None:
    rule = rule_of(2, GateSpec("push", SYNC, True, "w"))
    assert (rule.stop, rule.has_ended) == (NO_STOP, False)
    rule.request_stop(ended=False)
    rule.request_stop(ended=True)
    assert (rule.stop, rule.has_ended) == (STOPPED, False)
    ends = rule_of(1, GateSpec("push", SYNC, True, "w"))
    ends.request_stop(ended=True)
    assert (ends.stop, ends.has_ended) == (ENDED, True)


# -- one by one --------------------------------------------------------------------------------


def test_sync_takes_one_stamp_of_each() -> None:
    rule = rule_of(3, GateSpec("sum", SYNC, False, "w"), ReadSpec("w", "g", SYNC))
    assert delivered(rule, 2) == delivered(rule, 0) == []
    assert rule.missing(0) == Missing("sum -> w -> g", (1,), 1)
    assert (rule.least(), rule.most_complete()) == (0, 0)
    assert delivered(rule, 1) == [Firing(0, 0, ((0, 0), (1, 0), (2, 0)))]
    assert (rule.least(), rule.most_complete()) == (1, 1)
    assert [rule.missing(r) for r in range(3)] == [None] * 3


def test_stale_waits_for_the_slowest_and_takes_all() -> None:
    rule = rule_of(2, GateSpec("sum", ((0, 1.0),), False, "w"), ReadSpec("w", "g", ((0, 1.0),)))
    assert delivered(rule, 0) == [Firing(0, 0, ((0, 0),))]
    assert delivered(rule, 0) == []
    assert rule.missing(0) is None
    assert rule.staleness(0) == 1
    assert delivered(rule, 0) == []
    assert rule.missing(0) == Missing("sum -> w -> g", (1,), 2)
    assert delivered(rule, 1) == [Firing(0, 1, ((0, 1), (0, 2), (1, 0)))]
    assert rule.missing(0) is None


def test_async_fires_at_each_arrival() -> None:
    rule = rule_of(2, GateSpec("sum", ASYNC, False, "w"), ReadSpec("w", "g", ASYNC))
    assert [delivered(rule, r) for r in (0, 0, 1)] == [
        [Firing(0, 0, ((0, 0),))],
        [Firing(0, 1, ((0, 1),))],
        [Firing(0, 2, ((1, 0),))],
    ]


def test_what_a_leaver_delivered_is_taken_in_its_turn() -> None:
    rule = rule_of(2, GateSpec("push", SYNC, True, "w"))
    for _ in range(2):
        assert delivered(rule, 0) == []
    assert left(rule, 0) == []
    assert delivered(rule, 1) == [Firing(0, 0, ((0, 0), (1, 0)))]
    assert left(rule, 1) == [Firing(0, 1, ((0, 1),))]
    assert not rule.is_live(0)


def test_leaving_twice_counts_once() -> None:
    rule = rule_of(3, GateSpec("push", SYNC, True, "w"))
    assert left(rule, 0) == left(rule, 0) == []
    assert delivered(rule, 1) == []
    assert delivered(rule, 2) == [Firing(0, 0, ((1, 0), (2, 0)))]


def test_a_leaver_does_not_block_who_reads_seldom() -> None:
    """The sum took many steps of replica 0 at once, so that it will never have fired as often."""
    read = ReadSpec("w", "g", ((0, 1.0),), 10)
    rule = rule_of(2, GateSpec("sum", ((0, 1.0),), False, "w"), read, 16)
    for _ in range(10):
        delivered(rule, 0)
    assert rule.missing(0) == Missing("sum -> w -> g", (1,), 9)
    assert [len(f.taken) for f in left(rule, 1)] == [9]
    assert rule.fired(0) == 2
    assert rule.missing(0) is None
    assert rule.staleness(0) == 0


def test_a_period_is_not_waited_for() -> None:
    """Stamps 2, 5, 8 exist: what is read in step 5 under stale(1) is stamp 2."""
    gate = GateSpec("push", ((0, 1.0),), True, "w", 3)
    rule = rule_of(2, gate, ReadSpec("w", "g", ((0, 1.0),)))
    assert [delivered(rule, 0) for _ in range(3)] == [[], [], [Firing(0, 0, ((0, 2),))]]
    assert rule.missing(0) is None  # step 3 needs nothing before stamp 2
    delivered(rule, 0)
    assert rule.missing(0) == Missing("push -> w -> g", (1,), 3)
    assert [delivered(rule, 1) for _ in range(3)] == [[], [], [Firing(0, 1, ((1, 2),))]]
    for _ in range(2):
        assert rule.missing(0) is None
        delivered(rule, 0)
    assert rule.staleness(0) == 3
    assert rule.missing(0) is None  # step 6 needs stamps up to 4
    delivered(rule, 0)
    assert rule.missing(0) == Missing("push -> w -> g", (1,), 6)


def test_a_later_promise_counts_steps_and_not_firings() -> None:
    """With a period of 3, sync until step 6 is two firings; the next push is on arrival."""
    rule = rule_of(2, GateSpec("push", ((0, 0.0), (6, math.inf)), True, "w", 3), capacity=16)
    for _ in range(9):
        assert delivered(rule, 0) == []
    assert [delivered(rule, 1) for _ in range(6)] == [
        [],
        [],
        [Firing(0, 0, ((0, 2), (1, 2)))],
        [],
        [],
        [Firing(0, 1, ((0, 5), (1, 5))), Firing(0, 2, ((0, 8),))],
    ]


def test_nothing_of_a_later_promise_is_shown_to_who_reads_sync() -> None:
    """Stamp 11 comes while replica 1 has yet to read for step 9, which is still sync."""
    schedule: Promises = ((0, 0.0), (10, 4.0))
    gate, read = GateSpec("push", schedule, True, "w", 3), ReadSpec("w", "g", schedule)
    rule = rule_of(2, gate, read)
    for _ in range(9):
        delivered(rule, 0)
        delivered(rule, 1)
    assert rule.missing(0) is None
    assert delivered(rule, 0) == []
    assert rule.missing(0) == Missing("push -> w -> g", (1,), 10)
    assert [rule.fired(0), rule.missing(1)] == [3, None]
    delivered(rule, 1)
    assert rule.missing(0) is None


def test_a_full_gate_holds_back() -> None:
    rule = rule_of(2, GateSpec("sum", SYNC, False, "w"), capacity=2)
    delivered(rule, 0)
    assert rule.room(0) is None
    delivered(rule, 0)
    assert rule.room(0) == Missing("-> sum", (1,), 1)
    delivered(rule, 1)
    assert rule.room(0) is None


def test_a_thousand_replicas_are_as_two() -> None:
    rule = rule_of(1_000, GateSpec("sum", ((0, 4.0),), False, "w"), ReadSpec("w", "g", SYNC))
    taken = [f.taken for _ in range(2) for r in range(1_000) for f in delivered(rule, r)]
    assert [len(t) for t in taken] == [1, 1, 1, 1, 996, 1_000]
    assert left(rule, 7) == []
    assert sum(rule.is_live(r) for r in range(1_000)) == 999
