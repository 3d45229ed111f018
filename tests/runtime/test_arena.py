"""Parts of a block: each process that asks for the same gets the same, and nothing overlaps."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flowml.layout import layout_of
from flowml.runtime.arena import ALIGN, GROWTH_BYTES, Arena

DTYPES = ("uint8", "float16", "float32", "int64", "complex128")
SHAPES = st.one_of(
    st.integers(0, 40), st.lists(st.integers(0, 6), min_size=0, max_size=3).map(tuple)
)


@settings(max_examples=200)
@given(st.lists(st.tuples(SHAPES, st.sampled_from(DTYPES)), max_size=8))
def test_parts_are_aligned_apart_and_as_counted(asked: list[tuple[int, str]]) -> None:
    counted = Arena()
    for shape, dtype in asked:
        nothing = counted.take(shape, dtype)
        assert nothing.size == 0 or nothing.shape == ()
        assert nothing.dtype == dtype
    block = np.zeros(counted.nbytes, np.uint8)
    ours, theirs = Arena(block), Arena(block)
    for number, (shape, dtype) in enumerate(asked, 1):
        part = ours.take(shape, dtype)
        assert part.shape == ((shape,) if isinstance(shape, int) else tuple(shape))
        assert not part.any(), "it is somebody else's too"
        part[...] = number
        np.testing.assert_array_equal(theirs.take(shape, dtype), part)
    assert ours.nbytes == theirs.nbytes == counted.nbytes
    assert counted.nbytes % ALIGN == 0


def test_each_part_begins_on_a_cache_line() -> None:
    block = np.zeros(3 * ALIGN, np.uint8)
    arena = Arena(block)
    starts = [arena.take(n, np.uint8).ctypes.data - block.ctypes.data for n in (1, ALIGN, 5)]
    assert starts == [0, ALIGN, 2 * ALIGN]


def test_the_buffers_of_a_layout() -> None:
    layout = layout_of({"a": np.zeros((2, 3)), "b": np.zeros(4, np.float32), "c": np.zeros(2)})
    counted = Arena()
    counted.buffers(layout)
    arena = Arena(np.zeros(counted.nbytes, np.uint8))
    buffers = arena.buffers(layout)
    assert [b.dtype for b in buffers] == list(layout.dtypes)
    assert [b.size for b in buffers] == list(layout.sizes)
    value = {"a": np.arange(6.0).reshape(2, 3), "b": np.full(4, 7, np.float32), "c": np.ones(2)}
    layout.write(value, buffers)
    np.testing.assert_equal(layout.views(buffers), value)


@settings(max_examples=100)
@given(
    st.integers(1, 200_000),
    st.sampled_from([(), (3,), (64, 2)]),
    st.lists(st.integers(0, 200_000), max_size=6),
)
def test_an_array_that_grows_has_asked_for_all_that_it_says(
    most: int, row: tuple[int, ...], wanted: list[int]
) -> None:
    """Whatever was asked for, and in pieces: every byte of the rows that are said to be there."""
    asked: list[tuple[int, int]] = []
    arena = Arena(None, lambda start, nbytes: asked.append((start, nbytes)))
    arena.take(100, np.uint8)
    before = arena.nbytes
    grown = arena.growing((most, *row), np.float64)
    assert (grown.start, grown.row_bytes) == (before, 8 * math.prod(row))
    array = np.broadcast_to(np.zeros(row), (most, *row))  # as long, without the memory
    grown = type(grown)(array, grown.start, grown.row_bytes, grown.reserve)
    there = 0
    for rows in wanted:
        there = grown.make_sure(there, rows)
        assert there >= min(rows, most)
        assert there <= most
    end = grown.start
    for start, nbytes in asked:
        assert start == end, "pieces follow one another"
        assert nbytes >= 0
        end = start + nbytes
    assert end == grown.start + there * grown.row_bytes


def test_an_array_grows_by_a_mebibyte_at_least() -> None:
    asked: list[tuple[int, int]] = []
    arena = Arena(np.zeros(4 << 20, np.uint8), lambda *piece: asked.append(piece))
    grown = arena.growing((1 << 18, 2), np.float64)
    there = grown.make_sure(0, 1)
    assert (there, asked) == (GROWTH_BYTES // 16, [(0, GROWTH_BYTES)])
    assert grown.make_sure(there, there) == there
    assert len(asked) == 1
