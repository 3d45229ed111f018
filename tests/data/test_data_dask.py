"""Dask collections, iterables, and what as_source accepts."""

import pickle

import cloudpickle
import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from distributed import Client
from scipy.sparse import coo_array, csr_array, issparse

from flowml.data import (
    Rows,
    Source,
    arrays,
    as_source,
    count_rows,
    dask_array,
    dask_dataframe,
    iterable,
    parts,
)
from flowml.errors import DataError, GraphError

X = np.arange(40, dtype=np.float32).reshape(10, 4)
Y = np.arange(10)


def everything(source):
    shipped = cloudpickle.loads(cloudpickle.dumps(source))
    return Rows.concat([partition.read() for partition in shipped.partitions()])


def as_tasks(source):
    """What a driver does: blocks are computed first, then put together."""
    blocks = dask.compute(source.delayed_partitions(), scheduler="synchronous")[0]
    assemble = pickle.loads(pickle.dumps(source.assemble))
    return Rows.concat([assemble(*partition) for partition in blocks])


def check(source, x=X, y=Y):
    assert not source.dealt
    assert isinstance(source, Source)
    for rows in (everything(source), as_tasks(source), source.rows()):
        got = rows.value()
        np.testing.assert_array_equal(got[0], x)
        np.testing.assert_array_equal(got[1], y)


def test_dask_arrays_by_row_blocks():
    source = dask_array(da.from_array(X, chunks=(4, 4)), da.from_array(Y, chunks=4))
    check(source)
    assert [p.rows for p in source.partitions()] == [4, 4, 2]
    assert dask_array(da.from_array(X, chunks=(4, 4))).rows().value().shape == (10, 4)


def test_unknown_chunk_sizes_are_fine():
    frame = dd.from_pandas(pd.DataFrame(X, columns=list("abcd")).assign(y=Y), npartitions=3)
    x, y = frame[list("abcd")].to_dask_array(), frame["y"].to_dask_array()
    source = dask_array(x, y)
    check(source)
    assert [p.rows for p in source.partitions()] == [None] * 3
    assert sum(count_rows(p) for p in source.partitions()) == 10
    check(as_source((frame[list("abcd")], frame["y"])))


def test_collections_persisted_on_a_cluster():
    with Client(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
    ) as c:
        frame = dd.from_pandas(pd.DataFrame(X, columns=list("abcd")), npartitions=2)
        x, y = c.persist([da.from_array(X, chunks=(4, 4)), da.from_array(Y, chunks=4)])
        ddf = c.persist(frame)
        source = dask_array(x, y)
        blocks = c.compute([b for blocks in source.delayed_partitions() for b in blocks])
        made = [c.submit(source.assemble, *blocks[i : i + 2], pure=False) for i in (0, 2, 4)]
        for rows in (
            Rows.concat(c.gather(made)),
            source.rows(),
            Rows.concat([p.read() for p in source.partitions()]),
        ):
            np.testing.assert_array_equal(rows.columns[0], X)
            np.testing.assert_array_equal(rows.columns[1], Y)
        np.testing.assert_array_equal(dask_dataframe(ddf).rows().value(), X)
        np.testing.assert_array_equal(dask_dataframe(ddf).partitions()[1].read().value(), X[5:])
        del x, y, ddf, source, blocks, made


def test_sparse_blocks_stay_sparse():
    blocks = da.from_array(X, chunks=(5, 4)).map_blocks(csr_array)
    got = everything(dask_array(blocks)).value()
    assert issparse(got)
    np.testing.assert_array_equal(got.toarray(), X)


def test_bad_chunks_are_refused():
    with pytest.raises(DataError, match=r"whole rows.*rechunk\(\{1: -1\}\)"):
        dask_array(da.from_array(X, chunks=(4, 2)))
    x = da.from_array(X, chunks=(4, 4))
    with pytest.raises(DataError, match="chunked alike along the rows, got 3 and 1 blocks"):
        dask_array(x, da.from_array(Y, chunks=10))
    with pytest.raises(DataError, match="of other lengths"):
        dask_array(x, da.from_array(Y, chunks=((4, 3, 3),)))
    with pytest.raises(DataError, match="a Dask array is needed, got a ndarray"):
        dask_array(x, Y)


def test_blocks_that_turn_out_unequal_are_refused():
    x = da.from_array(X, chunks=(5, 4))
    source = dask_array(x[x[:, 0] > 3], da.from_array(Y, chunks=5))
    with pytest.raises(DataError, match=r"dask_array.*same number of rows, got 4 and 5"):
        source.partitions()[0].read()


def test_dataframes_with_unknown_divisions():
    frame = pd.DataFrame(X, columns=list("abcd")).assign(y=Y)
    ddf = dd.from_pandas(frame, npartitions=3).clear_divisions()
    source = dask_dataframe(ddf, label="y")
    check(source)
    assert everything(source).columns[0].dtype == np.float32
    assert everything(dask_dataframe(ddf, columns=["b"])).value().shape == (10, 1)
    assert source.token() == dask_dataframe(ddf, label="y").token()
    assert source.token() != dask_dataframe(ddf, label="a").token()


def test_dataframe_columns_are_checked_when_declared():
    frame = pd.DataFrame({"a": [1.0, 2.0], "s": ["x", "y"], "y": pd.array([1, None], "Int64")})
    ddf = dd.from_pandas(frame, npartitions=1)
    with pytest.raises(DataError, match=r"column 's'.*: a column must hold numbers"):
        dask_dataframe(ddf, label="y")
    with pytest.raises(DataError, match=r"got 'yy'. It has 3, such as: y"):
        dask_dataframe(ddf, label="yy", columns=["a"])
    with pytest.raises(DataError, match=r"'y', row 1 of a partition: a value must fit int64"):
        everything(dask_dataframe(ddf, label="y", columns=["a"]))
    np.testing.assert_array_equal(
        everything(dask_dataframe(ddf, columns=["a", "y"])).value(), [[1, 1], [2, np.nan]]
    )


def test_iterables_are_dealt_or_cut():
    def chunks():
        for start in range(0, 10, 2):
            yield X[start : start + 2], Y[start : start + 2]

    dealt = iterable(chunks)
    assert dealt.dealt
    np.testing.assert_array_equal(dealt.rows().value()[0], X)
    assert dealt.rows() is dealt.rows()
    cut = iterable(chunks, parts=2)
    assert not cut.dealt
    assert [count_rows(p) for p in cut.partitions()] == [6, 4]
    np.testing.assert_array_equal(cut.partitions()[1].read().value()[1], [2, 3, 6, 7])
    assert cut.token() != dealt.token() == iterable(chunks).token()
    with pytest.raises(DataError, match=r"\[6\]: the iterator must give at least 7 chunks"):
        iterable(chunks, parts=7).partitions()[6].read()


@pytest.mark.parametrize("make", [lambda: (x for x in X), lambda: iter([X])])
def test_what_can_be_read_once_is_refused(make):
    for accept in (as_source, iterable):
        with pytest.raises(GraphError) as caught:
            accept(make())
        assert "cannot be re-read" in str(caught.value)
        assert "where make is a function that returns one" in str(caught.value)
        assert "test_data_dask.py:" in str(caught.value)


def test_iterable_needs_a_function():
    with pytest.raises(GraphError, match="a function that returns an iterator is needed"):
        iterable([X])
    with pytest.raises(GraphError, match="parts must be an int >= 1, got 0"):
        iterable(lambda: [X], parts=0)


@pytest.mark.parametrize("given", [X, csr_array(X), coo_array(X), (X, Y), (X, Y, np.ones(10))])
def test_bare_arrays_are_accepted(given):
    source = as_source(given)
    assert source.dealt
    assert len(source.rows()) == 10


def test_sources_and_collections_are_accepted():
    source = parts([X])
    assert as_source(source) is source
    check(as_source((da.from_array(X, chunks=(4, 4)), da.from_array(Y, chunks=4))))
    ddf = dd.from_pandas(pd.DataFrame(X), npartitions=2)
    np.testing.assert_array_equal(everything(as_source(ddf)).value(), X)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("a.csv", "got a str. Name the format"),
        ([X, X], "got a list. Pass fl.data.parts"),
        (lambda: X, r"got a function. Pass fl.data.iterable\(make\)"),
        (pd.DataFrame(X), "got a DataFrame. Pass fl.data.arrays"),
        (None, "got a NoneType"),
        ((), r"got a tuple of \(\)"),
        ((X, "y"), r"got a tuple of \(ndarray, str\)"),
    ],
)
def test_anything_else_is_refused(given, message):
    with pytest.raises(GraphError, match=message):
        as_source(given)


def test_every_source_is_a_source():
    assert all(isinstance(s, Source) for s in (arrays(X), parts([X]), iterable(lambda: [X])))
