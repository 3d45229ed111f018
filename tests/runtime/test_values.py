"""Values on edges: counts of examples, private copies, and what a period keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from flowml.runtime.place import Place
from flowml.runtime.values import EMPTY, Kept, Value, agreed_examples, copied, read_only


def value(number: Any, examples: float | None = 1.0) -> Value:
    return Value(np.array([float(number)]), examples)


def test_a_value_of_no_examples_is_empty() -> None:
    assert EMPTY.empty
    assert not Value(0.0, None).empty
    assert not Value(0.0, 0.5).empty


@pytest.mark.parametrize(
    ("counts", "agreed"),
    [
        ([], None), ([None], None), ([3.0], 3.0), ([None, 3.0, None], 3.0), ([3.0, 3.0], 3.0),
        ([3.0, 0.0], 0.0), ([0.0, 3.0, 4.0], 0.0), ([None, 0.0], 0.0),
    ],
)  # fmt: skip
def test_counts_of_inputs_agree(counts: list[float | None], agreed: float | None) -> None:
    assert agreed_examples([Value(1, c) for c in counts]) == agreed


def test_counts_that_differ_are_named() -> None:
    with pytest.raises(ValueError, match=r"stand for 3 and 4\.5 examples; they must agree"):
        agreed_examples([Value(1, 4.5), Value(1, None), Value(1, 3.0)])


@pytest.mark.parametrize("keep", ["last", "sum", "mean"])
def test_one_value_is_handed_over_as_it_came(keep: str) -> None:
    kept = Kept(keep)
    kept.put(value(3, 4.0))
    assert kept.seen
    taken = kept.take()
    assert (float(taken.content[0]), taken.examples) == (3.0, 4.0)
    assert not kept.seen
    assert kept.take() == EMPTY


KEPT = [
    ("last", [(1, 2.0), (5, 3.0)], 5.0, 5.0),
    ("sum", [(1, 2.0), (5, 3.0)], 6.0, 5.0),
    ("mean", [(1, 2.0), (5, 3.0)], (1 * 2 + 5 * 3) / 5, 5.0),
    ("mean", [(1, None), (4, None), (7, None)], 4.0, None),
    ("sum", [(1, None), (4, None)], 5.0, None),
    ("last", [(1, None), (4, None)], 4.0, None),
    ("last", [(1, 2.0), (None, 0.0)], 1.0, 2.0),
    ("sum", [(None, 0.0), (4, 3.0), (None, 0.0)], 4.0, 3.0),
    ("mean", [(4, 3.0), (None, 0.0), (8, 1.0)], 5.0, 4.0),
]


@pytest.mark.parametrize(("keep", "put", "content", "examples"), KEPT)
def test_what_a_period_keeps(
    keep: str, put: list[tuple[Any, float | None]], content: float, examples: float | None
) -> None:
    kept = Kept(keep)
    for number, count in put:
        kept.put(EMPTY if number is None else value(number, count))
    taken = kept.take()
    assert float(taken.content[0]) == content
    assert taken.examples == examples


@pytest.mark.parametrize("keep", ["last", "sum", "mean"])
def test_nothing_but_empties_stay_empty(keep: str) -> None:
    kept = Kept(keep)
    kept.put(EMPTY)
    assert kept.seen
    assert kept.take() == EMPTY


@pytest.mark.parametrize("keep", ["last", "sum", "mean"])
def test_what_is_kept_is_a_private_copy_and_read_only(keep: str) -> None:
    source: dict[str, Any] = {"W": np.ones(3), "n": 2.0}
    kept = Kept(keep)
    kept.put(Value(source, 1.0))
    source["W"][:] = 9
    first = kept.take().content
    assert first["W"].tolist() == [1, 1, 1]
    assert float(first["n"]) == 2
    kept.put(Value(source, 1.0))
    kept.put(Value(source, 1.0))
    second = kept.take().content
    assert not second["W"].flags.writeable
    assert source["W"].tolist() == [9, 9, 9]


def test_the_dtype_is_kept() -> None:
    for keep in ("last", "sum", "mean"):
        kept = Kept(keep)
        kept.put(Value(np.ones(2, "float32"), 3.0))
        kept.put(Value(np.ones(2, "float32"), 5.0))
        assert kept.take().content.dtype == np.float32


numbers = st.lists(st.tuples(st.integers(-99, 99), st.integers(1, 9)), min_size=1, max_size=9)


@given(numbers)
def test_sums_and_means_of_any_run_of_values(given_values: list[tuple[int, int]]) -> None:
    total, mean = Kept("sum"), Kept("mean")
    for number, count in given_values:
        total.put(value(number, float(count)))
        mean.put(value(number, float(count)))
    counts = [c for _, c in given_values]
    assert float(total.take().content[0]) == sum(n for n, _ in given_values)
    found = mean.take()
    assert found.examples == sum(counts)
    wanted = sum(n * c for n, c in given_values) / sum(counts)
    assert float(found.content[0]) == pytest.approx(wanted, rel=1e-14)


def test_copies_and_views_are_read_only_and_leave_the_original_alone() -> None:
    array = np.ones(3)
    place = Place(0, 1, 0, 0)
    tree = (array, [csr_array(np.eye(2))], "text", None, place, 3.0)
    for same in (copied(tree), read_only(tree)):
        assert not same[0].flags.writeable
        assert same[2:] == tree[2:]
    assert array.flags.writeable
    assert np.shares_memory(read_only(tree)[0], array)
    assert not np.shares_memory(copied(tree)[0], array)
    assert read_only(array).base is array
    locked = read_only(array)
    assert read_only(locked) is locked
