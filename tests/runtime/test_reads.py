"""Reads from shared memory, and the same reads from a reply: one content, one count of bytes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import flowml as fl
from flowml.protocol.table_wire import ANSWER, READ, REPLY, Act, Frame, Item
from flowml.runtime.interleaved import Interleaved
from flowml.runtime.reads import Reads
from tests.conformance.mixed_graphs import MIXED, rows
from tests.runtime.standing import items_of, standing

LIMIT = 1 << 20
WHOLE = ("large_enough", "half_reads", "two_promises", "kept_periods", "quorum_carry")
BY_ROWS: dict[str, Callable[[], fl.Graph]] = {
    "direct": partial(rows, "direct", lambda u: u.async_()),
    "hash": partial(rows, "hash", lambda u: u.async_()),
    "dense": partial(rows, "dense", lambda u: u.async_()),
    "half": partial(rows, "hash", lambda u: u.async_(), codec=fl.codecs.float16()),
}


def over_the_wire(state: Interleaved, act: Act, step: int) -> Reads:
    """Return what a replica of another host has when the tables have answered."""
    items, center = items_of(state), state.center
    answered = [items.read(item, center.reads, center.tables, step) for item in act.items]
    reply = act._replace(items=tuple(item for found in answered for item in found))
    frame = Frame(REPLY, b"r" * 16, 1, 0, 1, (reply,))
    (back,) = Frame.decode(frame.encode(), LIMIT).acts
    return items.reads(back)


def both(state: Interleaved, item: Item, kind: int = READ) -> tuple[Reads, Reads]:
    """Return reads from memory, and from a reply to a request for one of them."""
    return state.center.reads, over_the_wire(state, Act(kind, 3, 0, items=(item,)), 3)


def buffers(state: Interleaved, source: str) -> tuple[Any, ...]:
    return tuple(state.center._layouts[source, -1].allocate())


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_table(name: str) -> None:
    with standing(MIXED[name]()) as state:
        state.turns(5, 9)
        for number, read in enumerate(state.center.loose.reads):
            here, afar = both(state, Item(number))
            version = state.center.rule.version(read.source)
            assert here.version(number) == afar.version(number) == version > 0
            assert here.lateness(number, 3) == afar.lateness(number, 3)
            mine, theirs = buffers(state, read.source), buffers(state, read.source)
            moved = here.table(number, mine, -1)
            assert moved == afar.table(number, theirs, -1) > 0
            for one, other in zip(mine, theirs, strict=True):
                assert one.any()
                np.testing.assert_array_equal(one, other)


def test_a_table_without_a_codec_is_the_table_and_all_its_bytes() -> None:
    with standing(MIXED["two_promises"]()) as state:
        state.turns(4, 9)
        for number, read in enumerate(state.center.loose.reads):
            (target,) = buffers(state, read.source)
            assert state.center.reads.table(number, (target,), -1) == target.nbytes
            np.testing.assert_array_equal(target, state.tables()[read.source][0].reshape(-1))


def test_a_codec_is_applied_to_each_leaf_and_counted_by_its_payload() -> None:
    with standing(MIXED["half_reads"]()) as state:
        state.turns(4, 9)
        target = buffers(state, "w")
        moved = state.center.reads.table(0, target, -1)
        assert moved == sum(b.size * 2 for b in target)
        found = state.center._layouts["w", -1].views(target)
        for name, leaf in state.tables()["w"][0].items():
            np.testing.assert_array_equal(found[name], leaf.astype(np.float16).astype(leaf.dtype))


def test_a_version_that_is_known_is_not_copied() -> None:
    with standing(MIXED["half_reads"]()) as state:
        state.turns(2, 9)
        version = state.center.rule.version("w")
        here, afar = both(state, Item(0, version + 1))
        for reads in (here, afar):
            target = tuple(np.full_like(b, 7.0) for b in buffers(state, "w"))
            assert reads.table(0, target, version) == 0
            assert all((b == 7.0).all() for b in target)
        here, afar = both(state, Item(0, version))  # one behind
        assert here.table(0, buffers(state, "w"), version - 1) > 0
        assert afar.table(0, buffers(state, "w"), version - 1) > 0


def room(count: int) -> Any:
    return np.empty((count, 2))


@pytest.mark.parametrize("name", BY_ROWS)
def test_rows_by_key(name: str) -> None:
    """Also some that nobody has written, and one twice, in the order that was asked for."""
    keys = np.array([7, 3, 19, 3, 0], np.int64)
    with standing(BY_ROWS[name]()) as state:
        state.turns(5, 9)
        here, afar = both(state, Item(0, arrays=(keys,)))
        mine, moved = here.rows(0, keys, room)
        theirs, carried = afar.rows(0, keys, room)
        table = state.tables()["u"][0]
    assert moved == carried == 5 * 2 * (2 if name == "half" else 8)
    np.testing.assert_array_equal(mine, theirs)
    wanted = table[keys] if name == "dense" else table.at(keys)
    if name == "half":
        wanted = wanted.astype(np.float16).astype(wanted.dtype)
    np.testing.assert_array_equal(mine, wanted)
    assert mine.shape == (5, 2)


def test_what_a_step_came_to() -> None:
    """A push answers with its table; its version is that of the table."""
    with standing(MIXED["answered"]()) as state:
        state.turns(3, 9)
        here, afar = both(state, Item(1), ANSWER)
        assert here.version(1) == afar.version(1) == state.center.rule.version("w")
        mine, theirs = buffers(state, "w"), buffers(state, "w")
        assert here.answer(1, 0, mine) is None
        assert afar.answer(1, 0, theirs) is None
        for one, other, wanted in zip(mine, theirs, state.center.tables.buffers("w"), strict=True):
            np.testing.assert_array_equal(one, wanted)
            np.testing.assert_array_equal(other, wanted)


def sums(examples: bool) -> fl.Graph:
    """Return a graph whose replicas receive the mean of a step."""
    seen, w = fl.table("seen", np.zeros(2), scope="replica"), fl.table("w", np.zeros(2))
    batch = fl.load(np.arange(80.0).reshape(40, 2), batch_size=4)
    value = fl.map(lambda w, rows: rows.mean(0), w.async_(), batch, name="value")
    if examples:
        mean = fl.aggregate("mean", value, name="mean")
        return fl.Graph(fl.update(w, mean, fl.add()), fl.assign(seen, mean))
    mine = fl.table("mine", np.zeros(2), scope="replica")
    moved = fl.assign(mine, value)  # a write stands for no examples
    mean = fl.aggregate("mean", moved, name="mean")
    return fl.Graph(moved, fl.update(w, mean, fl.add()), fl.assign(seen, mean))


@pytest.mark.parametrize("examples", [True, False])
def test_the_examples_of_a_sum_come_with_it(examples: bool) -> None:
    with standing(sums(examples)) as state:
        number = next(n for n, r in enumerate(state.center.loose.reads) if r.answer)
        here, afar = both(state, Item(number), ANSWER)
        untouched = np.full(2, 5.0)
        assert afar.answer(number, 0, (untouched,)) == here.answer(number, 0, (untouched,)) == 0.0
        assert untouched.tolist() == [5.0, 5.0], "there is nothing yet"
        state.turns(1, 9)
        here, afar = both(state, Item(number), ANSWER)
        assert here.version(number) == afar.version(number) == state.center.rule.gates[0].fired
        mine, theirs = np.zeros(2), np.zeros(2)
        wanted = here.answer(number, 0, (mine,))
        assert afar.answer(number, 0, (theirs,)) == wanted
        assert wanted is None or (wanted > 0 and not math.isnan(wanted))
        assert (wanted is not None) == examples
        np.testing.assert_array_equal(mine, theirs)
        assert mine.any()
