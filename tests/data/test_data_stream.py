"""Batch streams: right rows, two buffers, bounded memory, errors with a name."""

import threading
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from flowml.data import BatchOrder, BatchStream, Rows, Share, arrays
from flowml.errors import DataError

SEED = (0, 0, 5)


class Alive:
    """How many partitions that were read are still in memory, and how many at most."""

    def __init__(self):
        self.now = self.most = 0
        self._lock = threading.Lock()

    def add(self, rows):
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        weakref.finalize(rows, self.forget)

    def forget(self):
        with self._lock:
            self.now -= 1


class FakePartition:
    """Row i of partition p holds (p, i)."""

    def __init__(self, number, rows, *, error=None, alive=None):
        self.number, self.rows, self.error = number, rows, error
        self.alive = alive or Alive()
        self.reads = 0

    @property
    def name(self):
        return f"fake {self.number}"

    def read(self):
        self.reads += 1
        if self.error is not None:
            raise self.error
        x = np.column_stack([np.full(self.rows, self.number), np.arange(self.rows)])
        self.alive.add(x)  # not of the Rows: a view of the array would keep the memory, too
        return Rows((x, np.arange(self.rows) % 2))


def order_of(counts, batch_size, shuffle=True):
    share = Share(tuple(counts), tuple(range(len(counts))), rank=0)
    return BatchOrder(share, batch_size, shuffle, False, SEED)


def stream_of(partitions, counts, batch_size, *, steps=None, shuffle=True, **options):
    order = order_of(counts, batch_size, shuffle)
    options.setdefault("resident_bytes", 0)
    steps = order.batches() if steps is None else steps
    return BatchStream(order, partitions, steps_per_epoch=steps, **options)


def in_memory(n=10, weight=None):
    return arrays(np.arange(n * 3, dtype=np.float32).reshape(n, 3), np.arange(n), weight).rows()


@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_are_the_rows_of_the_order(shuffle):
    rows = in_memory()
    stream = stream_of([rows], [10], 4, shuffle=shuffle)
    order = order_of([10], 4, shuffle)
    for step in range(7):
        (x, y), examples = stream.batch(step)
        ((_, index),) = order.pieces(step // 3, step % 3)
        np.testing.assert_array_equal(x, rows.columns[0][index])
        np.testing.assert_array_equal(y, rows.columns[1][index])
        assert examples == len(index) == (2 if step % 3 == 2 else 4)


def test_values_are_read_only_aligned_and_live_until_the_next_call():
    stream = stream_of([in_memory()], [10], 4)
    (first, _), _ = stream.batch(0)
    (second, _), _ = stream.batch(1)
    assert np.shares_memory(first, second)
    assert second.ctypes.data % 64 == 0
    for array in (first, second):
        assert not array.flags.writeable


def test_weights_are_the_number_of_examples():
    stream = stream_of([in_memory(4, np.array([0.5, 0, 2, 1]))], [4], 2)
    values = [stream.batch(step) for step in range(2)]
    assert sum(examples for _, examples in values) == 3.5
    assert all(len(value) == 3 for value, _ in values)


def test_a_bare_column_comes_bare():
    rows = arrays(np.arange(6)).rows()
    (value, examples) = stream_of([rows], [6], 4, shuffle=False).batch(1)
    np.testing.assert_array_equal(value, [4, 5])
    assert examples == 2.0


def test_a_replica_out_of_batches_has_nothing():
    stream = stream_of([in_memory()], [10], 4, steps=5)
    assert [stream.batch(step)[1] for step in range(6)] == [4.0, 4.0, 2.0, 0.0, 0.0, 4.0]
    assert stream.batch(4) == (None, 0.0)
    for empty in (stream_of([], [], 4), stream_of([in_memory(0)], [0], 4)):
        assert empty.batch(0) == (None, 0.0)
    assert stream_of([], [], None).batch(3) == (None, 0.0)


def test_csr_rows_are_gathered_across_partitions():
    dense = np.arange(24.0).reshape(8, 3)
    rows = [arrays(csr_array(dense[a:b]), np.arange(a, b)).rows() for a, b in ((0, 5), (5, 8))]
    stream = stream_of(rows, [5, 3], 4)
    for step in range(4):
        (x, y), examples = stream.batch(step)
        np.testing.assert_array_equal(x.toarray(), dense[y])
        assert examples == 4.0
        assert not x.data.flags.writeable
    single = stream_of([arrays(csr_array(dense), np.arange(8)).rows()], [8], 3)
    (x, y), _ = single.batch(2)
    np.testing.assert_array_equal(x.toarray(), dense[y])


def test_the_whole_share_is_put_together_once():
    fakes = [FakePartition(0, 3), FakePartition(1, 0), FakePartition(2, 4)]
    stream = stream_of(fakes, [3, 0, 4], None)
    (x, _), examples = stream.batch(0)
    assert examples == 7.0
    np.testing.assert_array_equal(x[:, 0], [0, 0, 0, 2, 2, 2, 2])
    assert stream.batch(5)[0][0] is x
    assert [fake.reads for fake in fakes] == [1, 0, 1]
    assert not x.flags.writeable
    assert x.ctypes.data % 64 == 0


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 7), min_size=1, max_size=6),
    st.integers(1, 9),
    st.booleans(),
    st.sampled_from([0, 200, 10**9]),
    st.sets(st.integers(0, 5)),
)
def test_streaming_gives_each_row_once_and_holds_two(counts, batch, prefetch, budget, loaded):
    alive = Alive()
    fakes = [FakePartition(p, n, alive=alive) for p, n in enumerate(counts)]
    mixed = [f.read() if f.number in loaded else f for f in fakes]
    kept = alive.now
    stream = stream_of(mixed, counts, batch, prefetch=prefetch, resident_bytes=budget)
    order = order_of(counts, batch)
    for epoch in range(2):
        seen = []
        for step in range(order.batches()):
            (x, _), examples = stream.batch(epoch * order.batches() + step)
            assert examples == len(x)
            seen += [tuple(row) for row in x.tolist()]
        assert sorted(seen) == [(p, i) for p, n in enumerate(counts) for i in range(n)]
    if budget == 0:
        assert alive.most <= kept + 2
    if budget == 10**9:
        assert all(fake.reads <= 1 for fake in fakes)
    stream.close()
    if budget == 0:
        assert alive.now == kept


def test_prefetch_gives_the_same_batches_in_any_order_of_steps():
    counts, steps = [5, 4, 6], [0, 7, 2, 2, 11, 1, 0, 9]
    results = []
    for prefetch in (True, False):
        stream = stream_of(
            [FakePartition(p, n) for p, n in enumerate(counts)], counts, 4, prefetch=prefetch
        )
        results.append([stream.batch(step)[0][0].copy() for step in steps])
        stream.close()
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_next_partition_is_read_while_the_current_one_is_used():
    started = threading.Event()

    class Announced(FakePartition):
        def read(self):
            if threading.current_thread() is not threading.main_thread():
                started.set()
            return super().read()

    stream = stream_of([Announced(0, 8), Announced(1, 8)], [8, 8], 4)
    stream.batch(0)
    assert started.wait(10)
    stream.close()


@pytest.mark.parametrize("prefetch", [True, False])
def test_errors_name_the_partition_and_can_be_retried(prefetch):
    bad = [FakePartition(p, 4, error=RuntimeError("disk on fire")) for p in range(2)]
    good = FakePartition(2, 4)
    counts = [4, 4, 4]
    order = order_of(counts, 4, shuffle=False)
    stream = BatchStream(
        order, [good, *bad], steps_per_epoch=3, prefetch=prefetch, resident_bytes=0
    )
    assert stream.batch(0)[1] == 4.0
    for _ in range(2):
        with pytest.raises(DataError, match=r"fake 0: .*RuntimeError: disk on fire"):
            stream.batch(1)
    bad[0].error = None
    assert stream.batch(1)[1] == 4.0
    stream.close()


def test_own_errors_pass_untouched():
    error = DataError("a.csv:7", "a value must be a number", "'x'")
    stream = stream_of([FakePartition(0, 4, error=error)], [4], 2)
    with pytest.raises(DataError) as caught:
        stream.batch(0)
    assert caught.value is error


def test_a_partition_that_changed_is_refused():
    with pytest.raises(DataError, match="fake 0: the partition must have the 9 rows"):
        stream_of([FakePartition(0, 4)], [9], 2).batch(0)
    with pytest.raises(DataError, match="9 rows"):
        stream_of([in_memory()], [9], 2)


def test_partitions_must_look_alike():
    other = arrays(np.zeros((10, 2)), np.zeros(10)).rows()
    stream = stream_of([in_memory(), other], [10, 10], 20)
    with pytest.raises(DataError, match="must look like the ones before"):
        stream.batch(0)


def test_functions_are_partitions_too():
    stream = stream_of([lambda: in_memory(6)], [6], 4, shuffle=False)
    (_, y), _ = stream.batch(1)
    np.testing.assert_array_equal(y, [4, 5])
