"""Dealing and the order of batches: each row once an epoch, whatever the cut."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowml.data import BatchOrder, Share, arrays, deal, deal_indices, random_seed
from flowml.errors import DataError

SEED = (3, 1, random_seed("load"))
counts = st.lists(st.integers(0, 12), min_size=1, max_size=5)


def order_of(counts, batch_size, *, ids=None, shuffle=True, drop_last=False):
    share = Share(tuple(counts), tuple(range(len(counts)) if ids is None else ids))
    return BatchOrder(share, batch_size, shuffle, drop_last, SEED)


def rows_in_epoch(order, epoch=0):
    """(partition, row) in the order of the batches, one list a batch."""
    return [
        [(position, int(i)) for position, index in order.pieces(epoch, number) for i in index]
        for number in range(order.batches())
    ]


@given(n=st.integers(0, 60), replicas=st.integers(1, 9))
def test_dealing_gives_each_row_once_in_equal_runs(n, replicas):
    shares = deal_indices(n, replicas, seed=SEED)
    assert sorted(np.concatenate(shares).tolist()) == list(range(n))
    assert [len(s) for s in shares] == [n // replicas + (r < n % replicas) for r in range(replicas)]
    again = deal_indices(n, replicas, seed=SEED)
    assert all(np.array_equal(a, b) for a, b in zip(shares, again, strict=True))


@given(n=st.integers(1, 60))
def test_one_permutation_serves_every_number_of_replicas(n):
    whole = deal_indices(n, 1, seed=SEED)[0]
    for replicas in (2, 3, 7):
        assert np.array_equal(np.concatenate(deal_indices(n, replicas, seed=SEED)), whole)


def test_shares_are_contiguous_copies():
    x = np.asfortranarray(np.arange(40.0).reshape(10, 4))
    rows = arrays(x, np.arange(10)).rows()
    shares = deal(rows, 3, seed=SEED)
    assert [len(s) for s in shares] == [4, 3, 3]
    for share, index in zip(shares, deal_indices(10, 3, seed=SEED), strict=True):
        np.testing.assert_array_equal(share.columns[0], x[index])
        assert share.columns[0].flags.c_contiguous
        assert not np.shares_memory(share.columns[0], x)


@settings(max_examples=60)
@given(counts, st.integers(1, 9), st.booleans(), st.integers(0, 3))
def test_an_epoch_is_one_pass(sizes, batch_size, shuffle, epoch):
    order = order_of(sizes, batch_size, shuffle=shuffle)
    batches = rows_in_epoch(order, epoch)
    everything = [(p, i) for p, count in enumerate(sizes) for i in range(count)]
    seen = [row for batch in batches for row in batch]
    assert sorted(seen) == everything
    assert [len(b) for b in batches[:-1]] == [batch_size] * max(0, len(batches) - 1)
    if not shuffle:
        assert seen == everything
    assert order.pieces(epoch, order.batches()) == ()
    assert order.dropped() == 0


@given(counts, st.integers(1, 9))
def test_drop_last_drops_less_than_a_batch(sizes, batch_size):
    if 0 < sum(sizes) < batch_size:
        with pytest.raises(DataError, match="drop_last"):
            order_of(sizes, batch_size, drop_last=True)
        return
    order = order_of(sizes, batch_size, drop_last=True)
    batches = rows_in_epoch(order)
    assert all(len(batch) == batch_size for batch in batches)
    assert order.dropped() == sum(sizes) - batch_size * len(batches) < batch_size


@given(counts, st.integers(1, 4))
def test_every_number_of_replicas_sees_the_same_rows(sizes, replicas):
    seen = []
    for rank in range(replicas):
        mine = list(range(rank, len(sizes), replicas))
        order = order_of([sizes[p] for p in mine], 4, ids=mine)
        seen += [(mine[p], i) for batch in rows_in_epoch(order) for p, i in batch]
    assert sorted(seen) == [(p, i) for p, count in enumerate(sizes) for i in range(count)]


def test_partitions_keep_their_order_whoever_owns_them():
    whole = [batch[0][0] for batch in rows_in_epoch(order_of([3] * 8, 3))]
    assert whole != sorted(whole)
    mine = [1, 3, 5, 7]
    half = [mine[batch[0][0]] for batch in rows_in_epoch(order_of([3] * 4, 3, ids=mine))]
    assert half == [p for p in whole if p in mine]


@given(counts, st.integers(1, 9))
def test_pieces_are_pure(sizes, batch_size):
    order, fresh = order_of(sizes, batch_size), order_of(sizes, batch_size)
    wanted = [(epoch, n) for epoch in range(6) for n in range(order.batches())]
    forward = {key: order.pieces(*key) for key in wanted}
    for key in reversed(wanted):
        for (p, index), (q, other) in zip(forward[key], fresh.pieces(*key), strict=True):
            assert p == q
            assert np.array_equal(index, other)


def test_epochs_and_ranks_differ():
    first, second = (rows_in_epoch(order_of([50], 50), epoch) for epoch in (0, 1))
    assert first != second
    assert first != rows_in_epoch(order_of([50], 50, ids=[1]))


def test_the_whole_share_is_one_batch_in_its_own_order():
    order = order_of([2, 0, 3], None)
    assert order.batches() == 1
    assert rows_in_epoch(order) == [[(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)]]
    assert order_of([0], None).batches() == 0
    assert order_of([], 4).batches() == 0


def test_the_error_names_replica_rows_and_batch_size():
    with pytest.raises(DataError) as caught:
        BatchOrder(Share((3,), (0,), rank=2), 8, True, True, SEED)
    assert "replica 2" in str(caught.value)
    assert "batch_size=8 rows, got 3" in str(caught.value)
    assert (caught.value.fields["rows"], caught.value.fields["batch_size"]) == (3, 8)
    with pytest.raises(DataError, match="batch_size must be >= 1"):
        order_of([3], 0)


def test_what_is_remembered_is_bounded_and_not_shipped():
    order = order_of([1000] * 50, 10)
    size = len(pickle.dumps(order))
    for epoch in range(3):
        for number in range(0, order.batches(), 7):
            order.pieces(epoch, number)
    assert len(order._kept) <= 8
    assert len(pickle.dumps(order)) == size
    assert pickle.loads(pickle.dumps(order)) == order
