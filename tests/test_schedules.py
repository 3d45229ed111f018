"""Schedules: values at the corners, validation, pickling."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from dask.base import tokenize

from flowml import schedules
from flowml.errors import GraphError

SCHEDULES = [
    schedules.constant(0.1),
    schedules.step(0.1, every=10, factor=0.5),
    schedules.cosine(0.1, steps=100, final=0.01),
    schedules.warmup(0.1, steps=5),
    schedules.warmup(schedules.cosine(0.1, steps=100), steps=5, start=0.02),
    schedules.linear_scaling(schedules.step(0.1, every=3, factor=0.1), batch_size=512),
]


@pytest.mark.parametrize("lr", SCHEDULES, ids=lambda lr: type(lr).__name__)
def test_is_a_picklable_value_of_finite_python_floats(lr):
    again = pickle.loads(pickle.dumps(lr))
    assert again == lr
    assert tokenize(again, ensure_deterministic=True) == tokenize(lr, ensure_deterministic=True)
    for step in (0, 1, 4, 5, 99, 100, 10**9):
        assert type(lr(step)) is float
        assert 0.0 <= lr(step) <= 0.2
        assert again(step) == lr(step)


def test_step_falls_after_every_so_many_steps():
    lr = schedules.step(8.0, every=3, factor=0.5)
    assert [lr(t) for t in range(8)] == [8, 8, 8, 4, 4, 4, 2, 2]


def test_cosine_is_half_a_cosine_and_stays_at_its_end():
    lr = schedules.cosine(1.0, steps=4, final=0.2)
    expected = [0.2 + 0.8 * (1 + math.cos(math.pi * t / 4)) / 2 for t in range(5)]
    assert [lr(t) for t in range(5)] == pytest.approx(expected)
    assert lr(5) == lr(1000) == pytest.approx(0.2)


def test_warmup_meets_the_inner_schedule_which_counts_from_step_0():
    inner = schedules.step(1.0, every=10, factor=0.1)
    lr = schedules.warmup(inner, steps=4, start=0.2)
    assert [lr(t) for t in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert [lr(t) for t in range(4, 30)] == [inner(t) for t in range(4, 30)]


def test_linear_scaling_multiplies_by_total_batch_over_reference():
    lr = schedules.linear_scaling(0.1, batch_size=8192, reference=256)
    assert lr(0) == pytest.approx(3.2)
    warm = schedules.warmup(lr, steps=10, start=0.1)
    assert (warm(0), warm(10)) == pytest.approx((0.1, 3.2))


def test_numbers_and_callables_become_schedules():
    assert schedules.as_schedule(np.float32(0.5))(3) == 0.5
    assert schedules.as_schedule(1)(0) == 1.0
    inverse = schedules.as_schedule(lambda step: 1 / (1 + step))
    assert inverse(3) == 0.25


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf, "0.1", None, True])
def test_a_rate_that_is_no_rate_is_refused_by_name(bad):
    with pytest.raises(GraphError, match=r"^fl\.sgd: lr must be a finite number >= 0, got "):
        schedules.as_schedule(bad, where="fl.sgd")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.step(0.1, every=0, factor=0.5), "every must be an int >= 1, got 0"),
        (lambda: schedules.step(0.1, every=1, factor=-1), "factor must be a finite number >= 0"),
        (lambda: schedules.cosine(0.1, steps=2.5), "steps must be an int >= 1, got 2.5"),
        (lambda: schedules.warmup(-1, steps=2), "lr must be a finite number >= 0, got -1"),
        (lambda: schedules.linear_scaling(0.1, batch_size=-8), "batch_size must be an int >= 1"),
    ],
)
def test_arguments_are_checked(make, message):
    with pytest.raises(GraphError, match=message):
        make()
