"""Rows by key: equal keys add up in order, look-ups are aligned, first rows are their key's."""

from __future__ import annotations

import pickle

import numpy as np
import optree
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import flowml as fl
from flowml.errors import GraphError
from flowml.initial_rows import InitialRows, normal, uniform
from flowml.keyed_rows import KeyedRows, coalesce, each_once, last_of_each

IDS = st.lists(st.integers(0, 12), max_size=40).map(lambda found: np.array(found, np.int64))


@given(IDS, st.sampled_from(["float32", "float64", "int64"]))
def test_rows_of_a_key_add_up_one_after_another(ids: np.ndarray, dtype: str) -> None:
    rows = np.random.default_rng(len(ids)).normal(size=(len(ids), 3)) * 10
    rows = rows.astype(dtype)
    keys, sums = coalesce(ids, rows)
    assert keys.tolist() == sorted(set(ids.tolist()))
    assert sums.dtype == rows.dtype
    expected = np.zeros((13, 3), dtype)
    np.add.at(expected, ids, rows)
    assert sums.tobytes() == expected[keys].tobytes()


@given(IDS)
def test_the_last_row_of_a_key_is_what_an_assignment_leaves(ids: np.ndarray) -> None:
    rows = np.arange(2.0 * len(ids)).reshape(-1, 2)
    expected = np.zeros((13, 2))
    for key, row in zip(ids, rows, strict=True):
        expected[key] = row
    keys, found = last_of_each(ids, rows)
    assert np.array_equal(found, expected[keys])
    assert keys.tolist() == sorted(set(ids.tolist()))


@given(IDS)
def test_keys_are_each_there_once_or_not(ids: np.ndarray) -> None:
    assert each_once(ids) == (len(set(ids.tolist())) == len(ids))


def test_ids_may_have_any_shape() -> None:
    ids = np.array([[3, 1], [1, 3], [0, 0]])
    rows = np.ones((3, 2, 4))
    keys, sums = coalesce(ids, rows)
    assert (keys.tolist(), sums.shape) == ([0, 1, 3], (3, 4))
    assert (sums == 2.0).all()


@given(
    arrays(np.int64, st.tuples(st.integers(0, 4), st.integers(0, 4)), elements=st.integers(0, 9))
)
def test_a_look_up_is_aligned_with_its_ids(ids: np.ndarray) -> None:
    rows = KeyedRows(
        np.array([2, 5, 7]), np.array([[2.0], [5.0], [7.0]]), lambda k: -k[:, None] * 1.0
    )
    found = rows.at(ids)
    assert found.shape == (*ids.shape, 1)
    there = np.isin(ids, [2, 5, 7])
    assert np.array_equal(found[..., 0], np.where(there, ids, -ids))


def test_rows_of_nobody_are_zeros() -> None:
    empty = KeyedRows(np.zeros(0, np.int64), np.zeros((0, 2), np.float32))
    assert empty.at([[1], [2]]).tolist() == [[[0.0, 0.0]], [[0.0, 0.0]]]
    assert len(empty) == 0


def test_rows_are_a_pytree_and_travel() -> None:
    rows = KeyedRows(
        np.array([1, 4]), np.ones((2, 3)), InitialRows(uniform(0.0, 1.0), 3, "float64")
    )
    assert [leaf.shape for leaf in optree.tree_leaves(rows)] == [(2,), (2, 3)]
    again = pickle.loads(pickle.dumps(optree.tree_map(np.array, rows)))
    assert np.array_equal(again.at([4, 9]), rows.at([4, 9]))


# -- what a row is at first --------------------------------------------------------------------

RANDOM = [uniform(-0.5, 0.5), normal(0.1), normal(2.0, mean=1.0, seed=9)]


@pytest.mark.parametrize("how", RANDOM)
@given(st.permutations(range(30)), st.integers(1, 29))
def test_a_first_row_depends_on_its_key_alone(how, order, cut: int) -> None:
    make = InitialRows(how, 5, "float32")
    whole = make(np.arange(30))
    keys = np.array(order)
    parts = np.concatenate([make(keys[:cut]), make(keys[cut:])])
    assert parts.tobytes() == whole[keys].tobytes()
    assert whole.dtype == np.float32


MOMENTS = [
    (uniform(-1.0, 3.0), 1.0, 4 / 12**0.5),
    (normal(0.5), 0.0, 0.5),
    (normal(2.0, mean=-3.0), -3.0, 2.0),
]


@pytest.mark.parametrize(("how", "mean", "deviation"), MOMENTS)
def test_first_rows_have_the_moments_that_they_should(how, mean: float, deviation: float) -> None:
    made = InitialRows(how, 64, "float64")(np.arange(4000))
    error = 5 * deviation / made.size**0.5
    assert abs(made.mean() - mean) < error
    assert abs(made.std() - deviation) < error
    assert np.unique(made).size == made.size
    assert abs(np.corrcoef(made[:-1].ravel(), made[1:].ravel())[0, 1]) < 5 / made.size**0.5


def test_seeds_and_tables_have_rows_of_their_own() -> None:
    keys = np.arange(8)
    one = InitialRows(uniform(0.0, 1.0), 3, "float64")
    others = [
        InitialRows(uniform(0.0, 1.0, seed=1), 3, "float64"), one.seeded(1), one.seeded(2)
    ]  # fmt: skip
    found = [make(keys).tobytes() for make in (one, *others)]
    assert len(set(found)) == 4
    assert one.seeded(2)(keys).tobytes() == found[3]


def test_a_first_row_may_be_a_number_an_array_or_a_function() -> None:
    keys = np.array([4, 2])
    assert InitialRows(0.5, 2, "float32")(keys).tolist() == [[0.5, 0.5]] * 2
    assert InitialRows(np.array([1, 2]), 2, "float32")(keys).tolist() == [[1.0, 2.0]] * 2
    made = InitialRows(lambda k: np.stack([k, -k], 1), 2, "float64")
    with pytest.raises(GraphError, match="float64"):
        InitialRows(lambda k: np.ones((len(k), 3)), 2, "float64")(keys)
    assert made(keys).tolist() == [[4.0, -4.0], [2.0, -2.0]]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"init": "zeros"}, "init must be a number"),
        ({"init": np.zeros(4)}, r"an array of shape \(3,\)"),
        ({"dtype": "complex64"}, "dtype must be a float or integer dtype"),
        ({"dtype": "nothing"}, "dtype must be a float or integer dtype"),
        ({"rows": 0}, "rows must be an integer >= 1"),
        ({"capacity": -1}, "capacity must be an integer >= 1"),
        ({"init": KeyedRows(np.array([1]), np.ones((1, 2)))}, r"shape \(2,\)"),
    ],
)
def test_what_rows_cannot_begin_with_is_refused(options: dict, says: str) -> None:
    with pytest.raises(GraphError, match=says):
        fl.sparse_table("s", 3, **options)


@pytest.mark.parametrize(
    ("make", "says"),
    [(lambda: uniform(1.0, 1.0), "low must be below high"), (lambda: normal(0.0), "scale must be")],
)
def test_what_no_row_is_drawn_from_is_refused(make, says: str) -> None:
    with pytest.raises(GraphError, match=says):
        make()
