"""A cursor: the actions of a step, what blocks them, and any order that is allowed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowml as fl
from flowml.protocol.promise_specs import Missing
from flowml.runtime.cursor import EVENTS, Act, Cursor
from flowml.runtime.interleaved import Interleaved
from flowml.runtime.loose_rank import DELIVER, LEAVE, READ, SKIP
from tests.conformance.mixed_graphs import MIXED, answered, kept_periods, quorum
from tests.runtime.standing import standing

BEGIN, READS, COMPUTE, GIVE, DELIVERS = Act.BEGIN, Act.READ, Act.COMPUTE, Act.GIVE, Act.DELIVER


def counted(mark: Any = lambda w: w, seen: Any = None) -> fl.Graph:
    """Return a graph whose table counts steps; ``seen`` gets (replica, step, what was read)."""
    w = fl.table("w", np.zeros(1))

    def one(w: Any, place: Any, rows: Any) -> Any:
        if seen is not None:
            seen.append((place.replica, place.clock, w[0]))
        return np.ones(1)

    batch = fl.load(np.zeros((400, 1)), batch_size=1)
    ones = fl.map(one, mark(w), fl.here(), batch, name="one")
    return fl.Graph(fl.update(w, fl.aggregate("sum", ones), fl.add()))


def step(cursor: Cursor) -> list[Act]:
    """Go to the end of a step, which nothing may block; return its actions."""
    now, acts = cursor.step, []
    while cursor.step == now:
        assert cursor.blocked() is None
        acts.append(cursor.act)
        rows = cursor.go()
        assert (len(rows) > 0) == (acts[-1] in EVENTS)
    return acts


def test_the_actions_of_a_step() -> None:
    with standing(counted(lambda w: w.async_())) as state:
        assert step(state.cursors[0]) == [BEGIN, READS, COMPUTE, GIVE, DELIVERS]
    with standing(answered()) as state:
        wanted = [BEGIN, READS, COMPUTE, GIVE, DELIVERS, Act.ANSWER, COMPUTE]
        assert step(state.cursors[0]) == wanted


def test_a_step_without_a_read_that_is_due_reads_nothing() -> None:
    """Read every second step, pushed every third: a delivery may have nothing in it."""
    with standing(kept_periods()) as state:
        found = [step(state.cursors[0]) for _ in range(4)]
    with_read = [BEGIN, READS, COMPUTE, GIVE, DELIVERS]
    without = [BEGIN, COMPUTE, GIVE, DELIVERS]
    assert found == [with_read, without, with_read, without]


def test_the_bytes_of_an_action() -> None:
    with standing(counted(lambda w: w.async_())) as state:
        cursor, moved = state.cursors[0], []
        while cursor.step == 0:
            act = cursor.act
            cursor.go()
            moved.append((act, cursor.moved))
    assert moved == [(BEGIN, 0), (READS, 8), (COMPUTE, 8), (GIVE, 8), (DELIVERS, 8)]


def test_a_sync_read_is_blocked_by_those_who_have_not_delivered() -> None:
    with standing(counted(), replicas=3) as state:
        first, second, third = state.cursors
        step(first)
        step(third)
        first.go()
        missing = first.blocked()
        assert isinstance(missing, Missing)
        assert (missing.members, missing.clock) == ((1,), 1)
        assert missing.edge.endswith("w -> one")
        step(second)
        assert first.blocked() is None
        assert first.go()[0][:3] == (6, 1, 1), "(event, clock, version) of the read"


def test_who_has_filled_its_queue_begins_no_step() -> None:
    w = fl.table("w", np.zeros(1))
    batch = fl.load(np.zeros((400, 1)), batch_size=1)
    ones = fl.map(lambda w, rows: np.ones(1), w.async_(), batch, name="one")
    graph = fl.Graph(fl.update(w, fl.aggregate("sum", ones.sync()).sync(), fl.add()))
    with standing(graph) as state:
        fast, slow = state.cursors
        for _ in range(state.center.loose.queue):
            step(fast)
        assert fast.act is BEGIN
        assert fast.blocked() == Missing("-> sum", (1,), 1, 0)
        step(slow)
        assert fast.blocked() is None


def test_a_group_meets_before_any_of_it_goes_on() -> None:
    with standing(MIXED["hybrid"](), 4, [[0, 1], [2, 3]]) as state:
        first, second, *others = state.cursors
        for cursor in (first, *others):
            cursor.go()
            cursor.go()
            assert cursor.act is Act.MEET
        assert first.blocked() == Missing("the group's meeting", (1,), 0, -1)
        assert others[0].blocked() is None, "the other group is all there"
        second.go()
        second.go()
        assert first.blocked() is None
        assert second.blocked() is None


def test_a_step_that_its_quorum_has_missed_is_moved_over() -> None:
    with standing(quorum("drop"), 2) as state:
        fast, slow = state.cursors
        for _ in range(3):
            step(fast)
        assert slow.behind()
        rows = [row for _ in range(3) for row in slow.skip()]
        assert [(row[1], row[8]) for row in rows] == [(0, SKIP), (1, SKIP), (2, SKIP)]
        assert (slow.step, slow.act, slow.behind()) == (3, BEGIN, False)
        assert slow.rows == [], "nothing was computed"
        assert step(slow) == [BEGIN, READS, COMPUTE, GIVE, DELIVERS]


def test_who_has_read_for_its_step_moves_over_it_no_more() -> None:
    with standing(quorum("carry"), 2) as state:
        fast, slow = state.cursors
        slow.go()
        slow.go()
        for _ in range(3):
            step(fast)
        assert not slow.behind()
        while slow.step == 0:
            slow.go()
        assert slow.behind()


def at_random(state: Interleaved, draw: st.DataObject, steps: int) -> list[tuple[int, int]]:
    """Let replicas go in an order that is drawn; return (replica, kind) of the events."""
    events, live = [], list(state.cursors)
    while live:
        may = [c for c in live if c.behind() or c.blocked() is None]
        assert may, "nobody may go on"
        cursor = draw.draw(st.sampled_from(may), label="next")
        rows = cursor.skip() if cursor.behind() else cursor.go()
        if cursor.step == steps:
            rows += cursor.seat.leave(steps)
            live.remove(cursor)
        events += [(cursor.number, row[8]) for row in rows]
    return events


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_in_any_order_that_is_allowed_sync_reads_see_all_and_nothing_more(
    draw: st.DataObject,
) -> None:
    seen: list[tuple[int, int, float]] = []
    with standing(counted(seen=seen), replicas=3) as state:
        seen.clear()  # of the probe
        at_random(state, draw, 3)
        assert state.tables()["w"][0][0] == 9.0
    assert sorted(seen) == [(r, s, 3.0 * s) for r in range(3) for s in range(3)]


@settings(max_examples=25, deadline=None)
@given(st.data(), st.sampled_from(["carry", "drop"]))
def test_in_any_order_a_quorum_counts_each_step_of_each_replica_once(
    draw: st.DataObject, late: str
) -> None:
    with standing(quorum(late), replicas=3) as state:
        events = at_random(state, draw, 3)
        (gate,) = state.center.rule.gates
        assert gate.fired >= 3
        assert gate.queued == 0
    for replica in range(3):
        kinds = [kind for who, kind in events if who == replica]
        assert kinds.count(DELIVER) + kinds.count(SKIP) == 3
        assert kinds.count(READ) == kinds.count(DELIVER)
        assert kinds[-1] == LEAVE


@pytest.mark.parametrize("make", [counted, answered, kept_periods])
def test_the_rows_of_steps_have_their_loss_and_lateness(make: Any) -> None:
    with standing(make()) as state:
        state.turns(4, 4)
        for cursor in state.cursors:
            assert [row[0] for row in cursor.rows] == [0, 1, 2, 3]
            assert all(seconds > 0 for _, _, seconds, _ in cursor.rows)
            assert all(np.isfinite(loss) for _, loss, *_ in cursor.rows) == (make is not counted)
