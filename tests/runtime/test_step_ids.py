"""The rows that a step names: looked at once a step, read into memory of the reader's own."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import flowml as fl
from flowml.errors import DataError
from flowml.runtime.interleaved import Interleaved
from flowml.runtime.pulls import RowPull
from flowml.runtime.row_tables import RowSpec
from flowml.runtime.step_ids import StepIds
from flowml.types import Array
from tests.conformance.mixed_graphs import rows
from tests.runtime.standing import put, standing

SPEC = RowSpec("u", (2,), np.dtype(np.float64), limit=10, capacity=10, dense=True)
graph = partial(rows, "dense", lambda u: u.async_())


def test_ids_are_looked_at_once_a_step() -> None:
    ids, array = StepIds(), np.array([1, 2], np.int32)
    first = ids.keys(SPEC, array, "here")
    assert first.dtype == np.int64
    assert ids.keys(SPEC, array, "there") is first
    ids.begin()
    assert ids.keys(SPEC, array, "there") is not first


def test_the_same_array_may_name_other_rows_in_the_next_step() -> None:
    """A batch is gathered into the same array each time."""
    ids, array = StepIds(), np.array([1, 2])
    ids.keys(SPEC, array, "here")
    array[:] = 3, 10
    ids.begin()
    with pytest.raises(DataError, match="key 10"):
        ids.keys(SPEC, array, "here")


def test_each_table_has_limits_of_its_own() -> None:
    ids, array = StepIds(), np.array([1, 9])
    ids.keys(SPEC, array, "here")
    small = RowSpec("v", (2,), np.dtype(np.float64), limit=9, capacity=9, dense=True)
    with pytest.raises(DataError, match="'v'"):
        ids.keys(small, array, "here")


def read(state: Interleaved, replica: int, keys: Array) -> Array:
    """Return what a replica gets for keys, as its operators see it."""
    own = state.cursors[replica].rank
    own.step_ids.begin()
    put(state, replica, "split", keys)
    (pull,) = own.pulls
    assert isinstance(pull, RowPull)
    pull.prepare()
    pull.take(state.center.reads)
    found: Array = own.rank.registers[own.rank.slots[pull.receiver.name, 0]].content
    return found


def test_rows_are_read_into_one_place_a_replica() -> None:
    """Fresh memory costs more than the copy; what another replica has read stays as it is."""
    with standing(graph()) as state:
        table = state.tables()["u"][0]
        first = read(state, 0, np.array([[3, 1], [2, 2]]))
        other = read(state, 1, np.array([[4, 5], [6, 7]]))
        np.testing.assert_array_equal(first, table[[[3, 1], [2, 2]]])
        assert not np.shares_memory(first, other)
        with pytest.raises(ValueError, match="read-only"):
            first[0] = 0.0
        second = read(state, 0, np.array([[5, 8]]))
        assert np.shares_memory(first, second)
        np.testing.assert_array_equal(second, table[[[5, 8]]])
        np.testing.assert_array_equal(other, table[[[4, 5], [6, 7]]])


def test_a_step_may_read_more_rows_than_the_one_before() -> None:
    with standing(graph()) as state:
        table = state.tables()["u"][0]
        read(state, 0, np.array([[1]]))
        many = np.arange(10).reshape(2, 5)
        np.testing.assert_array_equal(read(state, 0, many), table[many])


def test_a_step_without_ids_reads_nothing() -> None:
    with standing(graph()) as state:
        read(state, 0, np.array([[1]]))
        own = state.cursors[0].rank
        put(state, 0, "split", None, 0.0)
        (pull,) = own.pulls
        assert isinstance(pull, RowPull)
        pull.prepare()
        assert pull.take(state.center.reads) == 0
        assert own.rank.registers[own.rank.slots[pull.receiver.name, 0]].empty


def test_each_step_names_its_own_rows() -> None:
    """Batches of ids are gathered into one array, which each step looks at and casts again."""
    ids = fl.load(np.arange(12, dtype=np.int32), batch_size=2, shuffle=False)
    u = fl.table("u", np.zeros((12, 1)))
    more = fl.map(lambda found: found + 1.0, u.async_().at(ids), name="more")
    run = fl.Graph(fl.update(u.at(ids), more, fl.add())).run(
        steps=6, replicas=1, executor="serial", progress=False
    )
    assert run.tables["u"].tolist() == [[1.0]] * 12
