"""The straight-line sum gives the bits of the walk along the tree."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowml.reductions import mean, reduce_slices, sum_, sum_tree
from flowml.runtime.straight_sum import StraightSum

REDUCTIONS = [mean, sum_]


@given(
    members=st.integers(1, 9),
    size=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from(["float32", "float64"]),
    equal=st.booleans(),
    reduction=st.sampled_from(REDUCTIONS),
)
def test_same_bits(members, size, seed, dtype, equal, reduction) -> None:
    rng = np.random.default_rng(seed)
    slices = {r: rng.normal(size=size).astype(dtype) for r in range(members)}
    before = {r: s.copy() for r, s in slices.items()}
    common = float(rng.integers(1, 50))
    weights = {r: common if equal else float(rng.integers(1, 50)) for r in range(members)}
    tree = sum_tree(range(members))
    truth, found = np.empty(size, dtype), np.empty(size, dtype)
    reduce_slices(reduction, tree, slices, weights, truth)
    combine = StraightSum(reduction, tree, slices, found)
    for _ in range(2):
        combine(list(weights.values()))
        assert found.tobytes() == truth.tobytes()
    assert all(np.array_equal(before[r], slices[r]) for r in slices)


def test_it_reads_the_arrays_as_they_are_in_each_step() -> None:
    slices = {0: np.ones(3), 1: np.full(3, 3.0)}
    out = np.empty(3)
    combine = StraightSum(mean, sum_tree(range(2)), slices, out)
    combine([1.0, 1.0])
    assert out == pytest.approx([2.0, 2.0, 2.0])
    slices[1][:] = 5.0
    combine([1.0, 1.0])
    assert out == pytest.approx([3.0, 3.0, 3.0])
    combine([1.0, 3.0])
    assert out == pytest.approx([4.0, 4.0, 4.0])
