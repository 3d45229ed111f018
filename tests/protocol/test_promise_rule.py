"""The rule of promises: tables of its numbers, thousands of seeds, and planted faults."""

from __future__ import annotations

import inspect
import math
import random
import sys
import time
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowml.freshness import NEVER, Promises, loose_from, needed_before, staleness_at
from flowml.protocol import promise_gate, promise_rule, promise_team
from flowml.protocol.promise_rule import ENDED, NO_STOP, STOPPED, PromiseRule
from flowml.protocol.promise_specs import Firing, GateSpec, Missing, ReadSpec, TeamSpec
from tests.protocol.simulate_promises import EVENTS, Simulation, Violation, draw, simulate

SYNC: Promises = ((0, 0.0),)
ASYNC: Promises = ((0, math.inf),)
LINE = 8


READ = ReadSpec("w", "g", SYNC, 1, 0)


def gate_of(promises: Promises, push: bool, every: int = 1, **more: Any) -> GateSpec:
    """Return a gate before table "w"."""
    return GateSpec("push" if push else "sum", promises, push, ("w",), every, **more)


def read_of(promises: Promises, every: int = 1) -> ReadSpec:
    """Return a read of table "w"."""
    return ReadSpec("w", "g", promises, every, 0)


def rule_of(replicas: int, gate: GateSpec, capacity: int = 8) -> PromiseRule:
    """Return a rule that has begun, with one gate."""
    teams = (TeamSpec("replica", replicas),)
    words = np.zeros(PromiseRule.size(teams, (gate,), ("w",)), np.int64)
    rule = PromiseRule(words, teams, (gate,), ("w",), capacity)
    rule.begin()
    return rule


def missing(rule: PromiseRule, rank: int, read: ReadSpec) -> Missing | None:
    """Return what a replica waits for before it reads for its next step."""
    step = rule.teams[0].clock(rank)
    return rule.missing([read] if read.is_due(step) else [], step)


def late(rule: PromiseRule, rank: int, read: ReadSpec) -> int:
    """Return how late a read of a replica's next step is."""
    return rule.lateness(read, rule.teams[0].clock(rank))


def delivered(rule: PromiseRule, rank: int, **how: Any) -> list[Firing]:
    """Return what a delivery makes fire."""
    rule.deliver(0, rank, **how)
    return list(rule.firings())


def left(rule: PromiseRule, rank: int) -> list[Firing]:
    """Return what a leave makes fire."""
    rule.leave("replica", rank)
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
            monkeypatch.setattr(promise_team, "FEW", few)
            monkeypatch.setattr(promise_gate, "FEW", few)
            found.append(simulate(seed, case=case, length=max(EVENTS, 25 * replicas)))
        assert found[0].trace == found[1].trace, f"seed {seed}"
        assert found[0].words.tolist() == found[1].words.tolist(), f"seed {seed}"


# -- planted faults ----------------------------------------------------------------------------

GATE, TEAM, RULE = "Gate", "Team", "PromiseRule"
SOURCES: dict[str, ModuleType] = {GATE: promise_gate, TEAM: promise_team, RULE: promise_rule}
PLANTED = {
    "a read may be one step later": (
        RULE,
        "gate.complete() < need:",
        "gate.complete() < need - 1:",
    ),
    "an answer may be that of the step before": (
        RULE,
        "at = step + read.answer\n            need",
        "at = step\n            need",
    ),
    "a stale sum fires one step early": (
        GATE,
        "late = least <= fired - staleness_at",
        "late = least < fired - staleness_at",
    ),
    "a sync gate fires one step early": (
        GATE,
        "if least > wanted else ()",
        "if least >= wanted else ()",
    ),
    "a finished replica is waited for": (
        TEAM,
        "if self.raw[at + CLOCK] == self.raw[self.at + LEAST]:",
        "if False:",
    ),
    "what a finished replica left is not taken": (
        TEAM,
        "return [m for m in self.members if self.clock(m) > clock]",
        "return [m for m in self.members if self.clock(m) > clock and self.is_live(m)]",
    ),
    "a contribution is taken twice": (
        GATE,
        "min(stamp + self.spec.every, raw[start + behind + CLOCK])",
        "min(stamp + self.spec.every * (stamp % 16 != 15), raw[start + behind + CLOCK])",
    ),
    "a contribution is lost when a period skips": (
        GATE,
        "if raw[behind] == stamp:",
        "if True:",
    ),
    "a sync firing takes a later stamp": (
        GATE,
        "tuple((member, stamp) for member in self.team.beyond(stamp))",
        "tuple((m, self.team.clock(m) - 1) for m in self.team.beyond(stamp))",
    ),
    "own pushes are applied with the next one's": (
        GATE,
        "return tuple([(q,) for q in found])",
        "return tuple([(q,) for q in found if q[0] != self.team.arrived])",
    ),
    "a stale sum leaves some of what is queued": (
        GATE,
        "return () if late else (tuple(self._queue()),)",
        "return () if late else (tuple(self._queue()[:4]),)",
    ),
    "the later promise of a write starts a step early": (
        GATE,
        "if wanted < start:",
        "if wanted < start - 1:",
    ),
    "the later promise of a push starts before the slowest is there": (
        GATE,
        "        if least < start:\n            return ()\n",
        "",
    ),
    "the later promise of a read starts before its updates are applied": (
        RULE,
        "needed_before(read.promises, at)",
        "_later(read.promises, at)",
    ),
    "a read forgets that a push is not loose yet": (
        GATE,
        "if least >= start else start - 1",
        "",
    ),
    "back-pressure is one step short": (
        RULE,
        "if gate.held(member) >= self.capacity:",
        "if gate.held(member) > self.capacity:",
    ),
    "a reader waits for firings that cannot come": (
        GATE,
        "return max(fired, least)",
        "return fired",
    ),
    "a reader waits for steps that a period skips": (
        GATE,
        "return (least // every + 1) * every - 1 if",
        "return least if",
    ),
    "the slowest is not found again": (
        TEAM,
        "if not self.raw[self.at + AT_LEAST]:",
        "if not self.raw[self.at + AT_LEAST] and self.raw[self.at + LEAST] % 16 != 15:",
    ),
    "only what arrived last is looked at": (
        GATE,
        "clock // every - taken // every != raw[at + QUEUED]",
        "clock // every - taken // every <= 0",
    ),
    "the wrong replicas are named": (
        RULE,
        "gate.team.slower_than(need)",
        "gate.team.slower_than(need + 1)",
    ),
    "a late contribution to a quorum is lost": (
        GATE,
        "if self._raw[at + LATE]:",
        "if self._raw[at + LATE] % 4 == 1:",
    ),
    "a late contribution to a quorum is taken for one that is on time": (
        GATE,
        "return self.spec.quorum > 0 and stamp // self.spec.every < self.fired",
        "return self.spec.quorum > 0 and stamp // self.spec.every < self.fired - 1",
    ),
    "what a quorum dropped is not counted": (
        GATE,
        "raw[self._at + DROPPED] += 1",
        "raw[self._at + DROPPED] += stamp % 8 != 7",
    ),
    "a quorum waits for those who have left": (
        GATE,
        "min(self.spec.quorum, there + may_come)",
        "self.spec.quorum",
    ),
    "a quorum takes one more than it waits for": (
        GATE,
        "if there < min(self.spec.quorum, there + may_come):",
        "if there < min(self.spec.quorum + 1, there + may_come):",
    ),
    "who has missed a quorum stays behind": (
        RULE,
        "return max(0, done - self._quorum.team.clock(member))",
        "return max(0, done - 2 - self._quorum.team.clock(member))",
    ),
}


def planted(monkeypatch: pytest.MonkeyPatch, name: str, right: str, wrong: str) -> None:
    """Let the rule use a class one line of whose source was made wrong."""
    source = inspect.getsource(SOURCES[name])
    assert source.count(right) == 1, f"the guard is no longer written as {right!r}"
    module = ModuleType(f"{SOURCES[name].__name__}_planted")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    module.__dict__["_later"] = lambda promises, at: at - int(min(staleness_at(promises, at), at))
    exec(compile(source.replace(right, wrong), module.__name__, "exec"), module.__dict__)
    monkeypatch.setattr(promise_rule, name, getattr(module, name))


def first_violation(of: str = "", seeds: int = 10_000) -> str:
    """Return the first violation, or the first that says ``of``; it begins with its seed."""
    for seed in range(seeds):
        try:
            simulate(seed)
        except Violation as violation:
            if of in str(violation):
                return str(violation)
    return ""


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, *PLANTED[name])
    violation = first_violation()
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
    monkeypatch.setattr(Simulation, "judge_release", lambda *_: None)
    planted(monkeypatch, *PLANTED[name])
    violation = first_violation(": Violation: ReadSpec(", seeds=3000)
    print(f"\n{name}: {violation[:300]}")
    assert violation


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
    """The first line, those of team and gates, and for the replica one of its own and of a gate."""
    teams = (TeamSpec("replica", replicas),)
    gates = (GateSpec("a", SYNC, False, ("t",)), GateSpec("b", ASYNC, True, ("u",), 2))
    tables = ("t", "u")
    words = np.zeros(PromiseRule.size(teams, gates, tables), np.int64)
    assert len(words) == LINE * (1 + 3 * (1 + replicas) + 2)
    rule, other = (PromiseRule(words, teams, gates, tables, 8) for _ in range(2))
    rule.begin()
    for rank in range(replicas):
        before = words.copy()
        delivered(rule, rank)
        changed = set((np.flatnonzero(words != before) // LINE).tolist())
        team, one, two = (1 + n * (1 + replicas) for n in range(3))
        mine = {team + 1 + rank, two + 1 + rank}
        assert changed - {0, team, one, two} - mine <= {one + 1 + r for r in range(replicas)}
        assert mine <= changed
        assert [other.teams[0].clock(r) for r in range(replicas)] == [1] * (rank + 1) + [0] * (
            replicas - rank - 1
        )
    assert [g.fired for g in other.gates] == [1, 0]
    assert other.events == replicas


def test_words_of_a_table() -> None:
    rule = rule_of(2, gate_of(SYNC, True))
    assert (rule.version("w"), rule.updates("w")) == (0, 0)
    rule.commit("w", 2)
    assert (rule.version("w"), rule.updates("w")) == (1, 2)


def test_the_first_to_ask_says_why_it_stops() -> None:
    rule = rule_of(2, gate_of(SYNC, True))
    assert (rule.stop, rule.has_ended) == (NO_STOP, False)
    rule.request_stop(ended=False)
    rule.request_stop(ended=True)
    assert (rule.stop, rule.has_ended) == (STOPPED, False)
    ends = rule_of(1, gate_of(SYNC, True))
    ends.request_stop(ended=True)
    assert (ends.stop, ends.has_ended) == (ENDED, True)


# -- one by one --------------------------------------------------------------------------------


def test_sync_takes_one_stamp_of_each() -> None:
    rule = rule_of(3, gate_of(SYNC, False))
    assert delivered(rule, 2) == delivered(rule, 0) == []
    assert missing(rule, 0, READ) == Missing("sum -> w -> g", (1,), 1)
    assert (rule.least(0), rule.most_complete()) == (0, 0)
    assert delivered(rule, 1) == [Firing(0, 0, ((0, 0), (1, 0), (2, 0)))]
    assert (rule.least(0), rule.most_complete()) == (1, 1)
    assert [missing(rule, r, READ) for r in range(3)] == [None] * 3


def test_an_answer_is_of_the_step_itself() -> None:
    rule = rule_of(2, gate_of(SYNC, False))
    answer = ReadSpec("update", "assign", SYNC, 1, 0, 1, answer=True)
    delivered(rule, 0)
    assert rule.missing([answer], 0) == Missing("sum -> update -> assign", (1,), 1)
    delivered(rule, 1)
    assert rule.missing([answer], 0) is None
    assert rule.missing([answer], 1) == Missing("sum -> update -> assign", (0, 1), 2)


def test_teams_deliver_at_their_own_points_of_a_step() -> None:
    teams = (TeamSpec("replica", 2, 1), TeamSpec("replica", 2, 2), TeamSpec("host", 1, 2))
    gates = tuple(GateSpec(f"g{t}", SYNC, False, (), team=t) for t in range(3))
    words = np.zeros(PromiseRule.size(teams, gates, ()), np.int64)
    rule = PromiseRule(words, teams, gates, (), 4)
    rule.begin()
    for rank in range(2):
        rule.deliver(0, rank)
    assert [f.gate for f in rule.firings()] == [0]
    rule.deliver(2, 0)
    assert [f.gate for f in rule.firings()] == [2]
    rule.deliver(1, 1)
    rule.leave("replica", 0)
    assert [f for f in rule.firings()] == [Firing(1, 0, ((1, 0),))]
    assert [rule.teams[2].is_live(0), rule.teams[1].is_live(0)] == [True, False]


def test_stale_waits_for_the_slowest_and_takes_all() -> None:
    rule, read = rule_of(2, gate_of(((0, 1.0),), False)), read_of(((0, 1.0),))
    assert delivered(rule, 0) == [Firing(0, 0, ((0, 0),))]
    assert delivered(rule, 0) == []
    assert missing(rule, 0, read) is None
    assert late(rule, 0, read) == 1
    assert delivered(rule, 0) == []
    assert missing(rule, 0, read) == Missing("sum -> w -> g", (1,), 2)
    assert delivered(rule, 1) == [Firing(0, 1, ((0, 1), (0, 2), (1, 0)))]
    assert missing(rule, 0, read) is None


def test_async_fires_at_each_arrival() -> None:
    rule = rule_of(2, gate_of(ASYNC, False))
    assert [delivered(rule, r) for r in (0, 0, 1)] == [
        [Firing(0, 0, ((0, 0),))],
        [Firing(0, 1, ((0, 1),))],
        [Firing(0, 2, ((1, 0),))],
    ]


def test_what_a_leaver_delivered_is_taken_in_its_turn() -> None:
    rule = rule_of(2, gate_of(SYNC, True))
    for _ in range(2):
        assert delivered(rule, 0) == []
    assert left(rule, 0) == []
    assert delivered(rule, 1) == [Firing(0, 0, ((0, 0), (1, 0)))]
    assert left(rule, 1) == [Firing(0, 1, ((0, 1),))]
    assert not rule.teams[0].is_live(0)


def test_leaving_twice_counts_once() -> None:
    rule = rule_of(3, gate_of(SYNC, True))
    assert left(rule, 0) == left(rule, 0) == []
    assert delivered(rule, 1) == []
    assert delivered(rule, 2) == [Firing(0, 0, ((1, 0), (2, 0)))]


def test_a_leaver_does_not_block_who_reads_seldom() -> None:
    """The sum took many steps of replica 0 at once, so that it will never have fired as often."""
    read = read_of(((0, 1.0),), 10)
    rule = rule_of(2, gate_of(((0, 1.0),), False), 16)
    for _ in range(10):
        delivered(rule, 0)
    assert missing(rule, 0, read) == Missing("sum -> w -> g", (1,), 9)
    assert [len(f.taken) for f in left(rule, 1)] == [9]
    assert rule.gates[0].fired == 2
    assert missing(rule, 0, read) is None
    assert late(rule, 0, read) == 0


def test_a_period_is_not_waited_for() -> None:
    """Stamps 2, 5, 8 exist: what is read in step 5 under stale(1) is stamp 2."""
    rule, read = rule_of(2, gate_of(((0, 1.0),), True, 3)), read_of(((0, 1.0),))
    assert [delivered(rule, 0) for _ in range(3)] == [[], [], [Firing(0, 0, ((0, 2),))]]
    assert missing(rule, 0, read) is None  # step 3 needs nothing before stamp 2
    delivered(rule, 0)
    assert missing(rule, 0, read) == Missing("push -> w -> g", (1,), 3)
    assert [delivered(rule, 1) for _ in range(3)] == [[], [], [Firing(0, 1, ((1, 2),))]]
    for _ in range(2):
        assert missing(rule, 0, read) is None
        delivered(rule, 0)
    assert late(rule, 0, read) == 3
    assert missing(rule, 0, read) is None  # step 6 needs stamps up to 4
    delivered(rule, 0)
    assert missing(rule, 0, read) == Missing("push -> w -> g", (1,), 6)


def test_a_later_promise_counts_steps_and_not_firings() -> None:
    """With a period of 3, sync until step 6 is two firings; the next push is on arrival."""
    rule = rule_of(2, gate_of(((0, 0.0), (6, math.inf)), True, 3), capacity=16)
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
    rule, read = rule_of(2, gate_of(schedule, True, 3)), read_of(schedule)
    for _ in range(9):
        delivered(rule, 0)
        delivered(rule, 1)
    assert missing(rule, 0, read) is None
    assert delivered(rule, 0) == []
    assert missing(rule, 0, read) == Missing("push -> w -> g", (1,), 10)
    assert [rule.gates[0].fired, missing(rule, 1, read)] == [3, None]
    delivered(rule, 1)
    assert missing(rule, 0, read) is None


def test_a_full_gate_holds_back() -> None:
    rule = rule_of(2, gate_of(SYNC, False), capacity=2)
    delivered(rule, 0)
    assert rule.room(0, 0) is None
    delivered(rule, 0)
    assert rule.room(0, 0) == Missing("-> sum", (1,), 1)
    delivered(rule, 1)
    assert rule.room(0, 0) is None


def test_a_quorum_goes_on_without_the_last_and_takes_it_later() -> None:
    rule = rule_of(3, gate_of(SYNC, False, quorum=2))
    assert delivered(rule, 0) == []
    assert delivered(rule, 2) == [Firing(0, 0, ((0, 0), (2, 0)))]
    assert [rule.behind(r) for r in range(3)] == [0, 1, 0]
    assert delivered(rule, 1) == []  # late, and kept
    assert delivered(rule, 2) == []
    assert delivered(rule, 1) == [Firing(0, 1, ((1, 0), (1, 1), (2, 1)))]
    assert [rule.gates[0].dropped, rule.gates[0].queued] == [0, 0]


def test_a_quorum_may_drop_who_is_late_and_counts_it() -> None:
    rule = rule_of(3, gate_of(SYNC, False, quorum=1, carries=False))
    assert [delivered(rule, 0) for _ in range(3)] == [[Firing(0, n, ((0, n),))] for n in range(3)]
    assert rule.behind(1) == 3
    assert delivered(rule, 1) == []
    assert rule.gates[0].dropped == 1
    assert [delivered(rule, 1, skips=True) for _ in range(2)] == [[], []]
    assert (rule.behind(1), rule.gates[0].dropped) == (0, 1)
    assert delivered(rule, 1) == [Firing(0, 3, ((1, 3),))]


def test_a_quorum_does_not_wait_for_those_who_have_left() -> None:
    rule = rule_of(3, gate_of(SYNC, False, quorum=3))
    assert delivered(rule, 0) == []
    assert left(rule, 1) == []
    assert left(rule, 2) == [Firing(0, 0, ((0, 0),))]


def test_a_thousand_replicas_are_as_two() -> None:
    rule = rule_of(1_000, gate_of(((0, 4.0),), False))
    taken = [f.taken for _ in range(2) for r in range(1_000) for f in delivered(rule, r)]
    assert [len(t) for t in taken] == [1, 1, 1, 1, 996, 1_000]
    assert left(rule, 7) == []
    assert sum(rule.teams[0].is_live(r) for r in range(1_000)) == 999
