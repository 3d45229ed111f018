"""Rows: what they refuse, gather and count."""

import pickle

import numpy as np
import pytest
from scipy.sparse import coo_array, csr_array

from flowml.data import Rows, arrays, evaluation_blocks, parts
from flowml.errors import DataError


def sample(n=10, weight=False):
    x = np.arange(n * 3, dtype=np.float32).reshape(n, 3)
    return arrays(x, np.arange(n), np.linspace(0, 1, n) if weight else None).rows()


def test_values_follow_what_was_given():
    x, y = np.zeros((4, 2)), np.arange(4)
    assert arrays(x).rows().value() is not None
    assert arrays(x).rows().value().shape == (4, 2)
    assert [v.shape for v in arrays(x, y).rows().value()] == [(4, 2), (4,)]
    assert [v.shape for v in arrays(x, y, np.ones(4)).rows().value()] == [(4, 2), (4,), (4,)]


def test_examples_are_the_sum_of_weights():
    assert sample().examples() == 10.0
    assert sample(weight=True).examples() == pytest.approx(5.0)


@pytest.mark.parametrize("index", [[], [3], [9, 0, 0, 4]])
def test_take_with_and_without_room_agree(index):
    rows, index = sample(weight=True), np.array(index, np.intp)
    fresh = rows.take(index)
    room = rows.take(np.zeros(len(index), np.intp))
    into = rows.take(index, out=room)
    for a, b, c in zip(fresh.arrays, into.arrays, room.arrays, strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.shares_memory(b, c) or not len(index)
        assert a.ctypes.data % 64 == 0 or not len(index)


def test_sparse_columns_are_csr_and_gather():
    dense = np.eye(4)
    rows = arrays(coo_array(dense), np.arange(4)).rows()
    assert isinstance(rows.columns[0], csr_array)
    np.testing.assert_array_equal(rows.take(np.array([2, 0])).columns[0].toarray(), dense[[2, 0]])
    both = Rows.concat([rows, rows])
    np.testing.assert_array_equal(both.columns[0].toarray(), np.vstack([dense, dense]))
    assert rows.nbytes > 0


def test_fortran_order_and_big_endian_become_plain():
    x = np.asfortranarray(np.arange(6.0).reshape(3, 2)).astype(">f8")
    rows = arrays(x).rows()
    assert rows.columns[0].dtype.isnative
    assert rows.compact().columns[0].flags.c_contiguous
    np.testing.assert_array_equal(rows.compact().columns[0], x)
    assert rows.compact().compact() is not rows


def test_aligned_rows_are_equal_and_read_only():
    x = np.arange(103, dtype=np.float32)[3:].reshape(25, 4)
    got = arrays(x).rows().aligned().columns[0]
    np.testing.assert_array_equal(got, x)
    assert got.ctypes.data % 64 == 0
    assert not got.flags.writeable


def test_slices_are_read_only_views():
    rows = sample()
    cut = rows.slice(2, 5)
    assert np.shares_memory(cut.columns[0], rows.columns[0])
    assert not cut.columns[0].flags.writeable
    assert rows.columns[0].flags.writeable


def test_concat_refuses_other_schemas():
    with pytest.raises(DataError, match="must look like the ones before"):
        Rows.concat([sample(), sample(weight=True)])
    with pytest.raises(DataError, match="at least one block"):
        Rows.concat([])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ((np.zeros((3, 2)), np.zeros(4)), "X and y must have the same number of rows, got 3 and 4"),
        ((np.array(["a", None], object),), "values must be numbers, got dtype object"),
        ((np.ma.masked_array([1.0], [True]),), "masked array"),
        ((3.0,), "one row an example"),
        ((np.zeros(2), np.zeros(2), [1.0, -1.0]), "finite and >= 0, got -1.0 at row 1"),
        ((np.zeros(2), np.zeros(2), [np.nan, 1.0]), "finite and >= 0, got nan at row 0"),
        ((np.zeros(2), np.zeros(2), [1.0]), r"weight must have shape \(2,\)"),
    ],
)
def test_bad_columns_are_refused(columns, message):
    with pytest.raises(DataError, match=message):
        arrays(*columns)


def test_parts_must_look_alike():
    x = np.zeros((2, 3))
    with pytest.raises(DataError, match=r"parts\[1\]: rows must look like"):
        parts([(x, x[:, 0]), (x.astype("f4"), x[:, 0])])
    with pytest.raises(DataError, match="at least one partition"):
        parts([])
    source = parts([x, x[:0], x[:1]])
    assert [p.rows for p in source.partitions()] == [2, 0, 1]
    assert len(source.rows()) == 3
    assert not source.dealt


def test_tokens_follow_contents():
    x = np.arange(6.0).reshape(3, 2)
    source = arrays(x)
    before = source.token()
    assert arrays(x.copy()).token() == before
    x[0, 0] = 9
    assert source.token() != before
    assert arrays(csr_array(x)).token() == arrays(csr_array(x)).token()
    assert parts([x]).token() != parts([x, x]).token()


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_evaluation_blocks_hold_everything_once(rows):
    x = np.arange(20.0).reshape(10, 2)
    for source in (arrays(x), parts([x[:3], x[3:3], x[3:]]), [arrays(x).rows()]):
        blocks = list(evaluation_blocks(source, rows))
        assert all(0 < len(block) <= rows for block in blocks)
        np.testing.assert_array_equal(np.vstack([b.columns[0] for b in blocks]), x)
        assert not any(b.columns[0].flags.writeable for b in blocks)


def test_rows_travel():
    rows = sample(weight=True)
    back = pickle.loads(pickle.dumps(rows))
    assert back.schema == rows.schema
    np.testing.assert_array_equal(back.weight, rows.weight)
