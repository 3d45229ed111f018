"""Reductions: the tree, weights, partial sums and slices, all to the bit."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
from dask.base import tokenize
from hypothesis import given
from hypothesis import strategies as st

import flowml as fl
from flowml.errors import GraphError
from flowml.reductions import (
    Reduction,
    leaves,
    maximal_subtrees,
    mean,
    median,
    partial,
    reduce_slices,
    reduction,
    sum_,
    sum_tree,
)

REDUCTIONS = [mean, sum_, median, fl.trimmed_mean(0), fl.trimmed_mean(1)]
SUMS = [mean, sum_, replace(sum_, weighted=True)]


def contributions(k, n=23, dtype="f4", seed=0):
    rng = np.random.default_rng(seed)
    # Magnitudes far apart, so that another order of summation gives other bits.
    scale = 10.0 ** rng.integers(-3, 4, size=(k, n))
    return {rank: (scale[rank] * rng.normal(size=n)).astype(dtype) for rank in range(k)}


def reduced(how, tree, slices, weights):
    out = np.full_like(next(iter(slices.values())), np.nan)
    total = reduce_slices(how, tree, slices, weights, out)
    return out, total


def along(tree, slices, weights, scaled):
    """Sum along the tree, spelled out; None where nobody contributes."""
    if isinstance(tree, int):
        if not weights.get(tree):
            return None
        factor = slices[tree].dtype.type(weights[tree] if scaled else 1)
        return slices[tree] * factor
    parts = [along(child, slices, weights, scaled) for child in tree]
    present = [part for part in parts if part is not None]
    return present[0] + present[1] if len(present) == 2 else (present or [None])[0]


@pytest.mark.parametrize(
    ("k", "tree"),
    [
        (1, 0),
        (2, (0, 1)),
        (3, ((0, 1), 2)),
        (4, ((0, 1), (2, 3))),
        (6, (((0, 1), (2, 3)), (4, 5))),
        (7, (((0, 1), (2, 3)), ((4, 5), 6))),
    ],
)
def test_tree_splits_at_the_largest_power_of_two_below_the_count(k, tree):
    assert sum_tree(range(k)) == tree
    assert leaves(tree) == list(range(k))


def test_tree_keeps_the_ranks_given_and_needs_one():
    assert sum_tree([7, 2, 5]) == ((7, 2), 5)
    with pytest.raises(ValueError, match="at least one rank"):
        sum_tree([])


def test_maximal_subtrees_cover_what_is_owned_and_nothing_else():
    tree = sum_tree(range(7))
    assert maximal_subtrees(tree, set(range(7))) == (tree,)
    assert maximal_subtrees(tree, {0, 1, 2, 3, 6}) == (((0, 1), (2, 3)), 6)
    assert maximal_subtrees(tree, {1, 2}) == (1, 2)
    assert maximal_subtrees(tree, set()) == ()


WEIGHTS = st.one_of(st.just(0.0), st.just(1.0), st.integers(1, 99).map(float), st.floats(0.1, 9.0))


@st.composite
def worlds(draw):
    k = draw(st.integers(1, 9))
    weights = {rank: draw(WEIGHTS) for rank in range(k) if draw(st.integers(0, 5))}
    owner = [draw(st.integers(0, 3)) for _ in range(k)]
    return k, weights, owner, draw(st.integers(0, 99))


@pytest.mark.parametrize("how", SUMS, ids=["mean", "sum", "weighted sum"])
@given(world=worlds())
def test_sum_is_along_the_tree_and_partials_keep_its_bits(how, world):
    k, weights, owner, seed = world
    tree, slices = sum_tree(range(k)), contributions(k, seed=seed)
    for rank in range(k):
        if not weights.get(rank):
            slices[rank][:] = np.nan
    found, total = reduced(how, tree, slices, weights)
    expected = along(tree, slices, weights, how.weighted)
    assert total == pytest.approx(sum(weights.values()))
    if expected is None:
        assert total == 0.0
        assert np.isnan(found).all()
        return
    assert np.array_equal(found, expected / np.float32(total) if how.divide else expected)

    parts, part_weights = {}, {}
    for host in set(owner):
        for subtree in maximal_subtrees(tree, {r for r in range(k) if owner[r] == host}):
            buffer = np.full_like(found, np.nan)
            part_weights[subtree] = partial(how, subtree, slices, weights, buffer)
            parts[subtree] = buffer
    again, again_total = reduced(how, tree, parts, part_weights)
    assert again.tobytes() == found.tobytes()
    assert again_total == total


@given(world=worlds(), cut=st.integers(0, 23))
def test_any_slicing_gives_the_same_bits(world, cut):
    k, weights, _, seed = world
    tree, slices = sum_tree(range(k)), contributions(k, seed=seed)
    present = sum(1 for w in weights.values() if w)
    for how in REDUCTIONS:
        if how.name == "trimmed_mean(1)" and 0 < present < 3:
            continue
        whole, total = reduced(how, tree, slices, weights)
        for part in (slice(0, cut), slice(cut, 23), slice(cut, cut + 1)):
            piece = {rank: a[part] for rank, a in slices.items()}
            found, piece_total = reduced(how, tree, piece, weights)
            assert found.tobytes() == whole[part].tobytes()
            assert piece_total == total


@pytest.mark.parametrize("how", REDUCTIONS, ids=lambda how: how.name)
def test_inputs_stay_as_they_are(how):
    slices, weights = contributions(5), dict.fromkeys(range(5), 2.0)
    for array in slices.values():
        array.flags.writeable = False
    before = {rank: a.copy() for rank, a in slices.items()}
    first, _ = reduced(how, sum_tree(range(5)), slices, weights)
    second, _ = reduced(how, sum_tree(range(5)), slices, weights)
    assert np.array_equal(first, second)
    assert all(np.array_equal(slices[rank], before[rank]) for rank in slices)


def test_means_by_examples_equal_one_batch_of_all():
    rows = np.random.default_rng(0).normal(size=(60, 11))
    cuts = {0: rows[:10], 1: rows[10:15], 2: rows[15:60]}
    slices = {rank: part.mean(axis=0) for rank, part in cuts.items()}
    found, total = reduced(mean, sum_tree(range(3)), slices, {0: 10, 1: 5, 2: 45})
    assert total == 60
    np.testing.assert_allclose(found, rows.mean(axis=0), rtol=1e-12)


def test_no_weights_means_equal_weights():
    slices = contributions(5)
    equal, total = reduced(mean, sum_tree(range(5)), slices, None)
    assert total == 5.0
    assert np.array_equal(
        equal, reduced(mean, sum_tree(range(5)), slices, dict.fromkeys(slices, 1.0))[0]
    )


def test_scratch_is_asked_for_once_a_level():
    slices, made = contributions(9), []

    def scratch():
        made.append(np.empty_like(slices[0]))
        return made[-1]

    out = np.empty_like(slices[0])
    reduce_slices(mean, sum_tree(range(9)), slices, dict.fromkeys(slices, 3.0), out, scratch)
    assert 1 <= len(made) <= 4
    expected, _ = reduced(mean, sum_tree(range(9)), slices, dict.fromkeys(slices, 3.0))
    assert np.array_equal(out, expected)


def test_sum_of_integers_stays_integer_and_exact():
    big = 2**53
    slices = {0: np.array([big, 1]), 1: np.array([1, 2])}
    found = np.zeros(2, np.int64)
    assert reduce_slices(sum_, (0, 1), slices, {0: 32.0, 1: 8.0}, found) == 40.0
    assert found.tolist() == [big + 1, 3]


@pytest.mark.parametrize("how", [mean, median, replace(sum_, weighted=True)])
@pytest.mark.parametrize("dtype", ["i8", "u1", "?"])
def test_what_divides_or_scales_needs_floats(how, dtype):
    slices = {0: np.ones(2, dtype), 1: np.ones(2, dtype)}
    with pytest.raises(GraphError, match=r"values must be floats, got \w+\. Cast them to float"):
        reduce_slices(how, (0, 1), slices, None, np.empty(2, dtype))


def test_weights_are_checked():
    slices, out = contributions(2), np.empty(23, "f4")
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="weight of 1 must be finite and >= 0"):
            reduce_slices(mean, (0, 1), slices, {0: 1.0, 1: bad}, out)
    with pytest.raises(ValueError, match="rank 2 has weight 4 but no contribution"):
        reduce_slices(mean, ((0, 1), 2), slices, {0: 1.0, 1: 1.0, 2: 4.0}, out)
    half = {rank: np.ones(2, "f2") for rank in range(2)}
    with pytest.raises(GraphError, match="sum of the weights must fit float16, got 80000"):
        reduce_slices(mean, (0, 1), half, {0: 4e4, 1: 4e4}, np.empty(2, "f2"))


@pytest.mark.parametrize("k", [1, 2, 3, 6, 7])
def test_median_and_trimmed_mean_are_by_coordinate(k):
    slices = contributions(k, dtype="f8")
    stack = np.stack(list(slices.values()))
    found, total = reduced(median, sum_tree(range(k)), slices, dict.fromkeys(slices, 32.0))
    assert total == 32.0 * k
    np.testing.assert_allclose(found, np.median(stack, axis=0), rtol=1e-15)
    if k > 2:
        trimmed, _ = reduced(fl.trimmed_mean(1), sum_tree(range(k)), slices, None)
        np.testing.assert_allclose(trimmed, np.sort(stack, axis=0)[1:-1].mean(axis=0), rtol=1e-12)


def test_a_broken_minority_does_not_move_a_robust_reduction():
    good = {rank: np.full(4, 1.0 + rank, "f4") for rank in range(4)}
    broken = good | {4: np.array([np.nan, np.inf, -1e30, 1e30], "f4")}
    for how in (median, fl.trimmed_mean(1)):
        found, _ = reduced(how, sum_tree(range(5)), broken, None)
        assert ((found >= 1.0) & (found <= 4.0)).all()


def test_trimmed_mean_needs_more_than_it_trims():
    with pytest.raises(GraphError, match=r"needs more than 4 contributions, got 3"):
        reduced(fl.trimmed_mean(2), sum_tree(range(3)), contributions(3), None)
    with pytest.raises(GraphError, match=r"f must be an int >= 0, got -1"):
        fl.trimmed_mean(-1)


def test_robust_reductions_have_no_partials():
    with pytest.raises(ValueError, match="median has no partial sums"):
        partial(median, (0, 1), contributions(2), None, np.empty(23, "f4"))


def test_reduction_by_name():
    assert reduction("mean") is mean
    assert reduction(median) is median
    with pytest.raises(GraphError, match=r"got 'maen'\. Did you mean 'mean'\?"):
        reduction("maen")
    with pytest.raises(GraphError, match=r"Did you mean fl\.trimmed_mean\(f=1\)\?"):
        reduction("trimmed_mean")
    with pytest.raises(GraphError, match=r"got 'zzz'$"):
        reduction("zzz")
    with pytest.raises(GraphError, match=r"got 3$"):
        reduction(3)


@pytest.mark.parametrize("how", REDUCTIONS, ids=lambda how: how.name)
def test_reduction_is_a_picklable_value(how):
    again = pickle.loads(pickle.dumps(how))
    assert again == how
    assert tokenize(again, ensure_deterministic=True) == tokenize(how, ensure_deterministic=True)


def smallest(slices, weights, out):
    np.minimum.reduce(list(slices), axis=0, out=out)


def test_a_reduction_of_ones_own():
    slices = contributions(4)
    found, total = reduced(
        Reduction("min", False, False, False, smallest),
        sum_tree(range(4)),
        slices,
        {0: 1.0, 1: 0.0, 2: 2.0, 3: 1.0},
    )
    assert total == 4.0
    assert np.array_equal(found, np.min([slices[r] for r in (0, 2, 3)], axis=0))
    with pytest.raises(GraphError, match="needs combine where tree is False"):
        Reduction("min", False, False, False)


@pytest.mark.parametrize("weight", [0.5, 1.0, 2.0, 32.0, 256.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_shared_power_of_two_changes_no_bit(weight: float, dtype: str) -> None:
    rng = np.random.default_rng(7)
    scales = 10.0 ** rng.integers(-30, 30, 500)
    values = {r: (rng.normal(size=500) * scales).astype(dtype) for r in range(5)}
    tree, factor = sum_tree(range(5)), np.dtype(dtype).type(weight)
    out = np.empty(500, dtype)
    reduce_slices(mean, tree, values, dict.fromkeys(values, weight), out)
    a, b, c, d, e = (v * factor for v in values.values())
    expected = (((a + b) + (c + d)) + e) / np.dtype(dtype).type(5 * weight)
    assert out.tobytes() == expected.tobytes()
