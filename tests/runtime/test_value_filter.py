"""Filters by size: nothing is lost, and what travels is larger than its share of the parameter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowml.runtime.value_filter import SizeFilter, leaves, norm
from flowml.runtime.values import EMPTY, Value

PARAMETER = [np.full(4, 3.0), np.full(1, 8.0)]
"""Of norm 10."""
VALUES = st.lists(st.one_of(st.none(), st.integers(-40, 40)), max_size=12)


def value(number: float) -> Value:
    """Return a tree of norm 5 times a number."""
    return Value({"a": np.array([3.0 * number]), "b": np.array([[4.0 * number]])}, 2.0)


def first(found: Value) -> float:
    return float(found.content["a"][0]) / 3.0


def test_the_norm_is_of_all_leaves_together() -> None:
    assert norm(PARAMETER) == 10.0
    assert norm(leaves(value(-2).content)) == 10.0
    assert norm([]) == 0.0


@settings(max_examples=200)
@given(VALUES, st.sampled_from([0.0, 0.5, 2.0, 7.0]))
def test_what_was_sent_and_what_is_kept_is_all_there_was(
    given_values: list[int | None], threshold: float
) -> None:
    """A value goes when its norm, with what was kept, is over the threshold, and not before."""
    sender = SizeFilter(threshold, "sum")
    kept, examples = 0.0, 0.0
    for number in given_values:
        sent = sender.send(EMPTY if number is None else value(number), PARAMETER)
        if number is not None:
            kept, examples = kept + number, examples + 2.0
        if 5.0 * abs(kept) > threshold * 10.0:
            assert first(sent) == kept
            assert sent.examples == examples
            kept, examples = 0.0, 0.0
            assert not sender.holds
        else:
            assert sent == EMPTY
            assert sender.holds == (examples > 0)


def test_a_mean_weighs_by_examples() -> None:
    sender = SizeFilter(0.5, "mean")
    assert sender.send(value(0.4), PARAMETER) == EMPTY
    assert sender.send(value(1.0)._replace(examples=6.0), PARAMETER) == EMPTY
    sent = sender.send(value(9.0)._replace(examples=2.0), PARAMETER)
    assert first(sent) == pytest.approx((0.4 * 2 + 1.0 * 6 + 9.0 * 2) / 10)
    assert sent.examples == 10.0


def test_the_last_takes_the_place_of_those_before() -> None:
    sender = SizeFilter(0.5, "last")
    for number in (0.9, 0.2, 1.0):
        assert sender.send(value(number), PARAMETER) == EMPTY
    assert first(sender.send(value(1.1), PARAMETER)) == pytest.approx(1.1)


def test_beside_a_parameter_of_zeros_all_but_zeros_travel() -> None:
    sender = SizeFilter(0.5, "sum")
    assert sender.send(value(0.0), [np.zeros(3)]) == EMPTY
    assert first(sender.send(value(1e-9), [np.zeros(3)])) == pytest.approx(1e-9)


def test_what_is_kept_is_a_copy() -> None:
    sender, given_value = SizeFilter(0.5, "sum"), value(0.5)
    sender.send(given_value, PARAMETER)
    given_value.content["a"][:] = 100.0
    assert first(sender.send(value(0.75), PARAMETER)) == 1.25
