"""Contributions as items of a frame, both ways, and requests that no replica makes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowml as fl
from flowml.protocol.failures import ProtocolError
from flowml.protocol.table_wire import (
    ANSWER,
    BEHIND,
    DELIVER,
    LEAVE,
    READ,
    REQUEST,
    SKIP,
    STOP,
    Act,
    Frame,
    Item,
)
from flowml.runtime.contributions import NOTHING, Contribution
from flowml.runtime.host_lock import HostLock
from flowml.runtime.interleaved import Interleaved
from flowml.runtime.table_desk import CenterTables
from flowml.runtime.table_items import CONTENT, NOTHING_SENT, WAS_READ
from tests.conformance.mixed_graphs import MIXED
from tests.runtime.standing import items_of, standing

LIMIT = 1 << 20
MEMBERS = {0: 0}


def comparing() -> fl.Graph:
    """Return a graph whose rule is given what the writer had read."""
    w = fl.table("w", np.full(3, 2.0))
    batch = fl.load(np.zeros((40, 1)), batch_size=4)
    value = fl.map(lambda w, rows: w + 1.0, w.async_(), batch, name="value")
    rule = fl.Rule(fl.add().init, fl.add().step, name="comparing", reads=True)
    return fl.Graph(fl.update(w, value, rule))


MADE: dict[str, Callable[[], fl.Graph]] = {
    **{
        name: MIXED[name]
        for name in (
            "two_promises",
            "half_reads",
            "local_steps",
            "local_steps_low_rank",
            "rows_direct_async",
            "rows_dense_async",
            "rows_hash_half",
            "rows_hash_stale",
            "kept_periods",
            "quorum_carry",
        )
    },
    "comparing": comparing,
}


def brought(state: Interleaved) -> dict[int, tuple[Contribution, list[Any]]]:
    """Go up to the first delivery of replica 0; return what it brings, with payloads, by gate."""
    cursor, found = state.cursors[0], {}
    while cursor.act.value != "deliver" or not any(not c.empty for c in cursor._made.values()):
        if cursor.blocked() is not None:
            state.turns(cursor.step, 99)
        cursor.go()
    for gate, given_value in cursor._made.items():
        found[gate] = given_value, cursor.rank.inputs[gate].payloads
    return found


def through_a_frame(*items: Item) -> Act:
    frame = Frame(REQUEST, b"r" * 16, 1, 0, 1, (Act(DELIVER, 2, 0, items=items),))
    (act,) = Frame.decode(frame.encode(), LIMIT).acts
    return act


@pytest.mark.parametrize("name", MADE)
def test_a_contribution_arrives_as_it_was_brought(name: str) -> None:
    """What a codec makes of it travels, and is decoded to what the sender counts on."""
    with standing(MADE[name]()) as state:
        items, made = items_of(state), brought(state)
        sent = [
            i for g, (c, payloads) in made.items() for i in items.of_contribution(g, c, payloads)
        ]
        act = through_a_frame(*sent)
        items.check([act], MEMBERS)
        found = items.contributions(act)
        assert found.keys() == made.keys()
        for gate, (wanted, payloads) in made.items():
            got = found[gate]
            assert got.weight == wanted.weight
            assert got.staleness == wanted.staleness
            np.testing.assert_equal(got.examples, wanted.examples)
            for one, other in zip(got.buffers, wanted.buffers, strict=True):
                np.testing.assert_array_equal(one, other)
                assert one.dtype == other.dtype
            assert (got.keys is None) == (wanted.keys is None)
            if wanted.keys is not None:
                np.testing.assert_array_equal(got.keys, wanted.keys)
            assert len(got.read) == len(wanted.read) == (name == "comparing")
            np.testing.assert_equal(got.read, wanted.read)
            travelled = sum(a.nbytes for i in sent if i.number == gate for a in i.arrays)
            assert travelled == state.cursors[0].rank.inputs[gate].moved
            assert bool(payloads) == (
                name in {"half_reads", "local_steps", "local_steps_low_rank", "rows_hash_half"}
            )


def test_nothing_is_one_small_item() -> None:
    with standing(MADE["two_promises"]()) as state:
        items = items_of(state)
        (item,) = items.of_contribution(1, NOTHING, [])
        assert item == Item(1, NOTHING_SENT)
        assert items.nothing([0, 1]) == (Item(0, NOTHING_SENT), item)
        assert items.contributions(through_a_frame(*items.nothing([0, 1]))) == {
            0: NOTHING,
            1: NOTHING,
        }


def test_a_contribution_without_examples_stays_one() -> None:
    given_value = Contribution(math.nan, 1.0, (np.ones(3),), None, (np.zeros(3),), 5)
    with standing(comparing()) as state:
        items = items_of(state)
        found = items.contributions(through_a_frame(*items.of_contribution(0, given_value, [])))
    assert math.isnan(found[0].examples)
    assert (found[0].counted, found[0].staleness, found[0].empty) == (0.0, 5, False)


# -- what is refused ---------------------------------------------------------------------------

KEYS, F8 = np.array([3, 5], np.int64), np.zeros(3)
REFUSED: list[tuple[str, Act, str]] = [
    ("comparing", Act(77), "is a known act"),
    ("comparing", Act(BEHIND), "is a known act"),
    ("comparing", Act(READ, 0, 9, items=(Item(0),)), "reads what turn 9 has"),
    ("comparing", Act(READ, 0, 0, items=(Item(4),)), "reads what turn 0 has"),
    ("comparing", Act(ANSWER, 0, 0, items=(Item(0),)), "reads what turn 0 has"),
    ("comparing", Act(DELIVER, 0, 3, items=(Item(0, NOTHING_SENT),)), r"delivers to \[0\]"),
    ("comparing", Act(SKIP, 0, 3), r"delivers to \[0\]"),
    (
        "comparing",
        Act(DELIVER, 0, 0, items=(Item(6, NOTHING_SENT),)),
        r"fits team 0 .* got gates \[6\]",
    ),
    ("comparing", Act(DELIVER, 0, 0), r"fits team 0 in step 0: gates \[0\], got gates \[\]"),
    ("comparing", Act(DELIVER, 0, 0, items=(Item(0, CONTENT),)), "must hold buffers"),
    ("comparing", Act(DELIVER, 0, 0, items=(Item(0, CONTENT, arrays=(F8, F8)),)), "must hold"),
    (
        "comparing",
        Act(DELIVER, 0, 0, items=(Item(0, CONTENT, arrays=(F8.astype("f4"),)),)),
        r"must hold .*, got \(3,\) float32",
    ),
    (
        "comparing",
        Act(
            DELIVER, 0, 0, items=(Item(0, CONTENT, arrays=(F8,)), Item(0, WAS_READ, arrays=(KEYS,)))
        ),
        r"must hold .*, got \(2,\) int64",
    ),
    ("rows_direct_async", Act(READ, 0, 1, items=(Item(0, arrays=(F8,)),)), "the keys of rows"),
    (
        "rows_direct_async",
        Act(DELIVER, 0, 0, items=(Item(0, CONTENT, arrays=(F8, F8)),)),
        "the keys of rows",
    ),
    (
        "rows_direct_async",
        Act(DELIVER, 0, 0, items=(Item(0, CONTENT, arrays=(KEYS, np.zeros((2, 3)))),)),
        r"rows of shape \(2, 2\), float64",
    ),
    (
        "rows_direct_async",
        Act(DELIVER, 0, 0, items=(Item(0, CONTENT, arrays=(KEYS,)),)),
        r"rows of shape \(2, 2\), float64",
    ),
    (
        "kept_periods",
        Act(DELIVER, 1, 0, items=(Item(0, NOTHING_SENT),)),
        r"fits team 0 in step 1: gates \[\], got gates \[0\]",
    ),
    (
        "comparing",
        Act(
            DELIVER,
            0,
            0,
            items=(Item(0, CONTENT, arrays=(F8,)), Item(0, WAS_READ), Item(0, WAS_READ)),
        ),
        "must hold one contribution",
    ),
    (
        "half_reads",
        Act(DELIVER, 0, 0, items=(Item(0, CONTENT),) * 2),
        r"a payload of int8\(.*got nothing",
    ),
    ("half_reads", Act(DELIVER, 0, 0, items=(Item(0, CONTENT),)), "must hold one contribution"),
    (
        "rows_direct_async",
        Act(DELIVER, 0, 0, items=(Item(0, CONTENT, arrays=(KEYS[[0, 0]], np.zeros((2, 2)))),)),
        "each once",
    ),
    (
        "rows_direct_async",
        Act(DELIVER, 0, 0, items=(Item(0, CONTENT, arrays=(KEYS + 16, np.zeros((2, 2)))),)),
        "keys from 0 to 19, got key 21",
    ),
    ("rows_direct_async", Act(READ, 0, 1, items=(Item(0, arrays=(-KEYS,)),)), "got key -5"),
    ("rows_dense_async", Act(READ, 0, 1, items=(Item(0, arrays=(KEYS + 16,)),)), "got key 21"),
    (
        "rows_hash_half",
        Act(DELIVER, 0, 0, items=(Item(0, CONTENT, arrays=(KEYS, np.zeros(3, np.float16))),)),
        r"a payload of float16.*got \(3,\) float16",
    ),
]


@pytest.mark.parametrize(("name", "act", "words"), REFUSED)
def test_what_no_replica_asks_is_refused(name: str, act: Act, words: str) -> None:
    with standing(MADE[name]()) as state:
        with pytest.raises(ProtocolError, match=words):
            items_of(state).check([act], MEMBERS)


def test_what_a_replica_asks_is_taken() -> None:
    with standing(MADE["rows_direct_async"]()) as state:
        turn = state.center.loose.reads[0].turn
        asked = Act(READ, 0, turn, items=(Item(0, arrays=(KEYS,)),))
        made = Act(DELIVER, 0, 0, items=(Item(0, CONTENT, arrays=(KEYS, np.zeros((2, 2)))),))
        nothing = Act(SKIP, 0, 0, items=(Item(0, NOTHING_SENT),))
        items = items_of(state)
        items.check([asked, made, nothing, Act(LEAVE), Act(STOP, place=1)], MEMBERS)
        (brought,) = items.contributions(made).values()
        assert brought.keys is not None
        np.testing.assert_array_equal(brought.keys, KEYS)


ARRAYS = st.builds(
    lambda shape, dtype: np.zeros(shape, dtype),
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
    st.sampled_from(["f8", "f4", "f2", "i8", "i4", "u1", "i1"]),
)
ITEMS = st.builds(
    lambda number, version, arrays: Item(number, version, 0, 1.0, 1.0, tuple(arrays)),
    st.integers(0, 2),
    st.integers(0, 3),
    st.lists(ARRAYS, max_size=4),
)
ACTS = st.builds(
    lambda kind, place, items: Act(kind, 0, place, items=tuple(items)),
    st.integers(0, 9),
    st.integers(0, 3),
    st.lists(ITEMS, max_size=3),
)


@pytest.mark.parametrize("name", ["comparing", "half_reads", "rows_hash_half", "local_steps"])
def test_random_requests_are_taken_or_refused_and_nothing_else(name: str) -> None:
    """Who serves them must not fall over what a stranger, or a fault, has sent."""
    with standing(MADE[name]()) as state:
        items = items_of(state)

        @settings(max_examples=300, deadline=None)
        @given(ACTS)
        def asked(act: Act) -> None:
            try:
                items.check([act], MEMBERS)
            except ProtocolError:
                return
            if act.kind in (DELIVER, SKIP):
                for gate, found in items.contributions(act).items():
                    assert gate < len(state.center.loose.gates)
                    assert found is NOTHING or found.buffers

        asked()


def test_who_serves_refuses_a_seat_that_nobody_has() -> None:
    with standing(comparing()) as state:
        served = CenterTables(state.center, items_of(state), HostLock(None), 10)
        served.check(Frame(REQUEST, b"r" * 16, 1, 0, 1, (Act(LEAVE, place=0),)))
        with pytest.raises(ProtocolError, match="leaves one of 1 seats"):
            served.check(Frame(REQUEST, b"r" * 16, 1, 0, 1, (Act(LEAVE, place=1),)))
