"""What a member brings to a gate: its value as it is, kept, filtered, encoded, or rows by key."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowml as fl
from flowml.codecs import nbytes
from flowml.errors import DataError, OperatorError
from flowml.runtime.contributions import NOTHING
from flowml.runtime.gate_input import GateInput
from flowml.runtime.interleaved import Interleaved
from tests.runtime.standing import put, standing

VALUE = {"a": np.arange(6.0).reshape(2, 3), "b": np.full(2, -1.0)}
NUMBERS = st.lists(st.integers(-9, 9), min_size=1, max_size=9)


def filled(number: float) -> Any:
    return {"a": np.full((2, 3), float(number)), "b": np.full(2, float(number))}


def graph(mark: Any = lambda v: v, how: Any = None, read: Any = None, **more: Any) -> fl.Graph:
    """Return a graph whose replicas bring a tree of two arrays."""
    w = fl.table("w", filled(1.0))
    batch = fl.load(np.zeros((400, 1)), batch_size=4)
    made = fl.map(lambda w, rows: filled(0.0), (read or (lambda w: w.async_()))(w), batch, name="v")
    if more.pop("weighed", False):
        more["weight"] = fl.map(lambda rows: 2.5, batch, name="weight")
    value = mark(made)
    if how is not None:
        value = fl.aggregate(how, value, name="sum", **more)
    return fl.Graph(fl.update(w, value, fl.add(), name="push"))


def entry(state: Interleaved, replica: int = 0) -> GateInput:
    return state.cursors[replica].rank.inputs[0]


def same(found: Any, wanted: Any) -> bool:
    """Tell whether flat buffers hold a tree of one dtype."""
    leaves = [np.asarray(wanted[name]).reshape(-1) for name in sorted(wanted)]
    return np.array_equal(np.concatenate(found.buffers), np.concatenate(leaves))


def test_a_value_is_brought_as_it_is() -> None:
    with standing(graph()) as state:
        put(state, 0, "v", VALUE, 4.0)
        found = entry(state).give(3, 2)
        assert found is not None
        assert same(found, VALUE)
        assert (found.examples, found.weight, found.staleness) == (4.0, 1.0, 2)
        assert (found.keys, found.read) == (None, ())
        assert (entry(state).moved, entry(state).unsent) == (64, ())


def test_no_example_is_nothing() -> None:
    with standing(graph()) as state:
        put(state, 0, "v", None, 0.0)
        assert entry(state).give(0, 0) is NOTHING
        assert entry(state).moved == 0


def test_a_value_of_another_shape_is_refused_by_its_place() -> None:
    with standing(graph()) as state:
        put(state, 1, "v", {"a": np.zeros((3, 2)), "b": np.zeros(2)})
        with pytest.raises(OperatorError, match=r"replica 1, step 7") as caught:
            entry(state, 1).give(7, 0)
        assert caught.value.operator == "v"
        assert "must have the same structure, shapes and dtypes in every replica" in str(
            caught.value
        )


@pytest.mark.parametrize(
    ("options", "weight"),
    [
        ({}, 4.0),
        ({"weight": "examples"}, 4.0),
        ({"weight": "equal"}, 1.0),
        ({"weighed": True}, 2.5),
    ],
)
def test_weights(options: dict[str, Any], weight: float) -> None:
    with standing(graph(how="mean", **options)) as state:
        put(state, 0, "v", VALUE, 4.0)
        if "weighed" in options:
            put(state, 0, "weight", 2.5, 4.0)
        found = entry(state).give(0, 0)
        assert found is not None
        assert (found.examples, found.weight) == (4.0, weight)


def test_a_value_without_examples_weighs_one() -> None:
    with standing(graph(how="mean")) as state:
        put(state, 0, "v", VALUE, None)
        found = entry(state).give(0, 0)
        assert found is not None
        assert math.isnan(found.examples)
        assert (found.weight, found.counted) == (1.0, 0.0)


@settings(max_examples=40, deadline=None)
@given(NUMBERS, st.integers(2, 4), st.sampled_from(["sum", "mean", "last"]))
def test_a_period_keeps_what_the_steps_between_make(
    numbers: list[int], every: int, keep: str
) -> None:
    with standing(graph(lambda v: v.every(every, keep=keep))) as state:
        sender, waiting = entry(state), []
        for step, number in enumerate(numbers):
            put(state, 0, "v", filled(number), 4.0)
            found = sender.give(step, 0)
            waiting.append(number)
            if (step + 1) % every:
                assert found is None
                assert sender.unsent == ("v -> push",)
                continue
            assert found is not None
            whole = {"sum": sum(waiting), "mean": sum(waiting) / every, "last": waiting[-1]}
            np.testing.assert_allclose(np.concatenate(found.buffers), whole[keep], atol=1e-12)
            assert found.examples == 4.0 * every
            assert sender.unsent == ()
            waiting = []


def test_a_threshold_is_of_the_table_as_the_replica_has_read_it() -> None:
    """The table is of eight ones: its norm is sqrt(8), and so is that of ones."""
    with standing(graph(lambda v: v.when(2.5))) as state:
        cursor, sender = state.cursors[0], entry(state)
        cursor.go()
        cursor.go()  # reads
        found = []
        for step in range(4):
            put(state, 0, "v", filled(1.0), 4.0)
            found.append(sender.give(step, 0))
            assert sender.unsent == (() if step == 2 else ("v -> push",))
        assert found[0] is found[1] is found[3] is NOTHING
        assert found[2] is not None
        assert same(found[2], filled(3.0))
        assert found[2].examples == 12.0


@settings(max_examples=40, deadline=None)
@given(NUMBERS, st.sampled_from([fl.codecs.top_k(0.5), fl.codecs.int8(), fl.codecs.float16()]))
def test_a_codec_is_counted_by_its_payload_and_loses_nothing(
    numbers: list[int], codec: Any
) -> None:
    """All that was brought, and the residual, is all that was made; without one, the last is."""
    with standing(graph(lambda v: v.compress(codec))) as state:
        sender, put_in, brought = entry(state), np.zeros(8), np.zeros(8)
        for step, number in enumerate(numbers):
            value = {"a": VALUE["a"] * number, "b": VALUE["b"] + number}
            put(state, 0, "v", value, 4.0)
            found = sender.give(step, 0)
            assert found is not None
            assert sender.moved == sum(nbytes(payload) for payload in sender.payloads)
            assert sender.moved < 64
            put_in += np.concatenate([value["a"].reshape(-1), value["b"]])
            brought += np.concatenate(found.buffers)
        assert sender._codec is not None
        residual = np.zeros(8)
        if codec.feedback:
            residual = np.concatenate([s[0].reshape(-1) for s in sender._codec._states])
        np.testing.assert_allclose(brought + residual, put_in, atol=1e-9)


def test_a_rule_that_compares_gets_the_table_as_it_was_read() -> None:
    w = fl.table("w", np.full(3, 2.0))
    batch = fl.load(np.zeros((400, 1)), batch_size=4)
    value = fl.map(lambda w, rows: w, w.async_(), batch, name="v")
    rule = fl.Rule(fl.add().init, fl.add().step, name="comparing", reads=True)
    with standing(fl.Graph(fl.update(w, value, rule))) as state:
        cursor = state.cursors[0]
        cursor.go()
        cursor.go()
        put(state, 0, "v", np.ones(3))
        found = entry(state).give(0, 0)
        assert found is not None
        (read,) = found.read
        assert read.tolist() == [2.0] * 3


# -- rows --------------------------------------------------------------------------------------


def of_rows(how: str | None = None, codec: Any = None) -> fl.Graph:
    """Return a graph whose replicas bring rows of width 2 for keys below 20."""
    u = fl.sparse_table("u", 2, dtype="float64", rows=20)
    batch = fl.load(np.zeros((400, 3)), batch_size=4)
    keys = fl.map(lambda rows: rows.astype(int), batch, name="keys")
    found = fl.map(lambda r: r, u.async_().at(keys), name="v")
    sent = found if codec is None else found.compress(codec)
    if how is None:
        return fl.Graph(fl.update(u.at(keys), sent, fl.add()))
    return fl.Graph(fl.update(u, fl.aggregate(how, sent.at(keys)), fl.add()))


ROWS = st.lists(st.lists(st.integers(0, 19), min_size=2, max_size=2), min_size=0, max_size=6)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.sampled_from([None, "sum"]))
def test_rows_of_one_key_are_added(ids: list[list[int]], how: str | None) -> None:
    keys = np.array(ids, np.int64).reshape(len(ids), 2)
    rows = np.arange(keys.size * 2.0).reshape(*keys.shape, 2)
    model: dict[int, Any] = {}
    for key, row in zip(keys.reshape(-1).tolist(), rows.reshape(-1, 2), strict=True):
        model[key] = model.get(key, 0.0) + row
    with standing(of_rows(how)) as state:
        put(state, 0, "keys", keys)
        put(state, 0, "v", rows)
        found = entry(state).give(0, 1)
    assert found is not None
    assert found.keys is not None
    given = found.keys.tolist()
    assert sorted(given) == sorted(model)
    np.testing.assert_array_equal(
        found.buffers[0], np.array([model[key] for key in given]).reshape(-1, 2)
    )
    assert (found.examples, found.staleness) == (4.0, 1)


def test_rows_are_counted_with_their_keys() -> None:
    keys, rows = np.array([[3, 5, 3]]), np.ones((1, 3, 2))
    for codec, each in ((None, 8), (fl.codecs.float16(), 2)):
        with standing(of_rows(codec=codec)) as state:
            put(state, 0, "keys", keys)
            put(state, 0, "v", rows)
            found = entry(state).give(0, 0)
            assert found is not None
            assert found.buffers[0].tolist() == [[2.0, 2.0], [1.0, 1.0]]
            assert entry(state).moved == 2 * 8 + 2 * 2 * each


def test_keys_and_rows_that_do_not_fit_are_refused() -> None:
    with standing(of_rows()) as state:
        put(state, 0, "keys", np.array([[3, 20, 4]]))
        put(state, 0, "v", np.ones((1, 3, 2)))
        with pytest.raises(DataError, match=r"edge v -> .* keys from 0 to 19, got key 20"):
            entry(state).give(0, 0)
        put(state, 0, "keys", np.array([[3.0, 2.0, 4.0]]))
        with pytest.raises(DataError, match=r"are named by integers, got dtype float64"):
            entry(state).give(0, 0)
        put(state, 0, "keys", np.array([[3, 2]]))
        with pytest.raises(OperatorError, match=r"rows of table 'u' must have shape \(1, 2, 2\)"):
            entry(state).give(0, 0)
