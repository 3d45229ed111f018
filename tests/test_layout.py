"""How pytrees lie in flat buffers: round trips, views, mismatches and slices."""

from __future__ import annotations

from typing import Any

import numpy as np
import optree
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flowml.layout import freeze, layout_of, slices

dtypes = st.sampled_from(["float32", "float64", "int64", "int8", "bool", "complex64"])
arrays = dtypes.flatmap(
    lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)
trees = st.recursive(
    arrays,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.sampled_from(["W", "b", "a/b"]), inner, min_size=1),
    ),
    max_leaves=6,
)


@given(trees)
def test_what_is_written_comes_back(tree: Any) -> None:
    layout = layout_of(tree)
    buffers = layout.allocate()
    layout.write(tree, buffers)
    again = layout.views(buffers)
    assert optree.tree_structure(again) == optree.tree_structure(tree)
    for a, b in zip(optree.tree_leaves(tree), optree.tree_leaves(again), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    for mine, given_back in zip(layout.flat(tree), buffers, strict=True):
        np.testing.assert_array_equal(mine, given_back)
    assert layout.mismatch(tree) is None
    assert layout.nbytes == sum(a.nbytes for a in optree.tree_leaves(tree))


def test_leaves_of_one_dtype_share_a_buffer_in_order() -> None:
    tree = {"b": np.ones(2, "float32"), "W": np.ones((2, 3), "float32"), "n": np.array(3)}
    layout = layout_of(tree)
    assert [(leaf.path, leaf.buffer, leaf.start, leaf.size) for leaf in layout.leaves] == [
        ("W", 0, 0, 6),
        ("b", 0, 6, 2),
        ("n", 1, 0, 1),
    ]
    assert layout.sizes == (8, 1)
    assert layout.nbytes == 8 * 4 + 8


def test_buffers_start_on_cache_lines_and_views_share_them() -> None:
    layout = layout_of({"a": np.zeros(5), "b": [np.zeros(3, "int8")]})
    buffers = layout.allocate()
    assert all(b.ctypes.data % 64 == 0 for b in buffers)
    views = layout.views(buffers)
    views["a"][:] = 7
    assert np.all(buffers[0][:5] == 7)
    locked = layout.views(buffers, writeable=False)
    assert not locked["a"].flags.writeable
    assert buffers[0].flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        locked["b"][0][:] = 1


def test_flat_copies_only_what_it_must() -> None:
    array = np.arange(6.0).reshape(2, 3)
    layout = layout_of(array)
    assert np.shares_memory(layout.flat(array)[0], array)
    turned = np.asfortranarray(array)
    flat = layout.flat(turned)[0]
    assert not np.shares_memory(flat, turned)
    assert flat.tolist() == [0, 1, 2, 3, 4, 5]


WRONG = [
    ({"W": np.zeros((2, 3)), "c": np.zeros(2)}, "structure"),
    (np.zeros(2), "structure"),
    ({"W": np.zeros((3, 2)), "b": np.zeros(2)}, "shape (3, 2) for leaf 'W' instead of (2, 3)"),
    ({"W": np.zeros((2, 3)), "b": np.zeros((2, 1))}, "shape (2, 1) for leaf 'b' instead of (2,)"),
    ({"W": np.zeros((2, 3), "f4"), "b": np.zeros(2)}, "dtype float32 for leaf 'W'"),
    ({"W": np.zeros((2, 3)), "b": np.zeros(2, int)}, "dtype int64 for leaf 'b'"),
    ({"W": np.zeros((2, 3), "M8[s]"), "b": np.zeros(2)}, "dtype datetime64"),
]


@pytest.mark.parametrize(("tree", "says"), WRONG)
def test_what_differs_is_said(tree: Any, says: str) -> None:
    layout = layout_of({"W": np.zeros((2, 3)), "b": np.zeros(2)})
    found = layout.mismatch(tree)
    assert found is not None
    assert says in found


@pytest.mark.parametrize(
    ("dtype", "fits"), [("float32", True), ("int32", True), ("bool", True), ("complex64", False)]
)
def test_a_safe_cast_may_be_allowed(dtype: str, fits: bool) -> None:
    layout = layout_of(np.zeros(3))
    assert (layout.mismatch(np.zeros(3, dtype), exact=False) is None) is fits
    assert layout.mismatch(np.zeros(3, dtype)) is not None


@pytest.mark.parametrize(
    ("leaf", "says"),
    [("text", "str of dtype <U4 at 'W'"), (np.array([{}]), "dtype object at 'W'"),
     (np.array(["2020"], "M8[D]"), "ndarray of dtype datetime64[D] at 'W'")],
)  # fmt: skip
def test_what_is_no_number_is_refused(leaf: Any, says: str) -> None:
    with pytest.raises(TypeError) as caught:
        layout_of({"W": leaf})
    assert says in str(caught.value)


def test_freeze_makes_native_contiguous_read_only_copies() -> None:
    given_tree = {"W": np.asfortranarray(np.ones((2, 3), ">f4")), "n": 3}
    frozen = freeze(given_tree)
    assert frozen["W"].dtype == np.dtype("=f4")
    assert frozen["W"].flags.c_contiguous
    assert not frozen["W"].flags.writeable
    assert not np.shares_memory(frozen["W"], given_tree["W"])
    assert frozen["n"].shape == ()


@given(st.integers(0, 5000), st.integers(1, 70))
def test_slices_cut_everything_once_on_cache_lines(size: int, count: int) -> None:
    parts = slices(size, count)
    assert len(parts) == count
    assert [i for part in parts for i in range(size)[part]] == list(range(size))
    assert all(part.start % 16 == 0 for part in parts if part.stop > part.start)
    blocks = [-(-(part.stop - part.start) // 16) for part in parts]
    assert max(blocks) - min(blocks) <= 1
