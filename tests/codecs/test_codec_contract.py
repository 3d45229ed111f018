"""Every codec keeps the contract, for values of any shape and size, with and without feedback."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flowml import codecs
from flowml.testing import check_codec

CODECS = [
    codecs.top_k(0.01),
    codecs.top_k(0.4),
    codecs.top_k(1),
    codecs.random_k(0.01),
    codecs.random_k(0.4),
    codecs.random_k(0.8),
    codecs.random_k(1),
    codecs.threshold(0.5),
    codecs.threshold(1e300),
    codecs.float16(),
    codecs.bfloat16(),
    codecs.int8(),
    codecs.sign(),
    codecs.low_rank(1),
    codecs.low_rank(3),
]
EACH = [replace(codec, feedback=feedback) for codec in CODECS for feedback in (True, False)]
WITH_FEEDBACK = [codec for codec in EACH if codec.feedback]
CATCHING_UP = [codec for codec in WITH_FEEDBACK if str(codec) != "threshold(1e+300)"]
"""All but the one that never sends."""
SEEDS = st.integers(0, 2**64 - 1)
ROUNDINGS = 4
"""Rounding errors allowed a step: of g + e, of what is subtracted, and of the two test sums."""


@st.composite
def sequences(draw, largest=1e30):
    """Draw one to four arrays of one shape and dtype, read-only, of finite numbers."""
    dtype = np.dtype(draw(st.sampled_from(["float32", "float64"])))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6))
    width = 8 * dtype.itemsize
    bound = float(dtype.type(largest))
    numbers = st.floats(-bound, bound, width=width) | st.floats(-2, 2, width=width)
    arrays = hnp.arrays(dtype, shape, elements=numbers)
    drawn = draw(st.lists(arrays, min_size=1, max_size=4))
    for values in drawn:
        values.flags.writeable = False
    return drawn


def spread_out(values):
    """Return the same values in every second entry of a larger array."""
    wide = np.zeros((*values.shape, 2), values.dtype)
    wide[..., 0] = values
    return wide[..., 0]


@pytest.mark.parametrize("codec", EACH, ids=str)
def test_the_contract_holds(codec):
    assert isinstance(codec, codecs.Codec)
    check_codec(codec)


@pytest.mark.parametrize("codec", WITH_FEEDBACK, ids=str)
@settings(max_examples=40)
@given(sequence=sequences(), seed=SEEDS)
def test_nothing_is_lost(codec, sequence, seed):
    shape, dtype = sequence[0].shape, sequence[0].dtype
    state = codec.init(shape, dtype, seed)
    put_in = decoded = np.zeros(shape)
    tolerance = 0.0
    for values in sequence:
        residual = state[0]
        payload, state = codec.encode(values, state)
        received = codec.decode(payload, shape, dtype)
        put_in, decoded = put_in + values, decoded + received
        added = (values, residual, received, state[0], put_in, decoded)
        largest = max(np.abs(part).max(initial=0.0) for part in added)
        tolerance += ROUNDINGS * np.finfo(dtype).eps * largest
    np.testing.assert_allclose(decoded + state[0], put_in, rtol=0, atol=tolerance)


@pytest.mark.parametrize("codec", EACH, ids=str)
@settings(max_examples=25)
@given(sequence=sequences(largest=1e38), seed=SEEDS)
def test_shape_and_dtype_are_kept_and_results_are_a_function_of_the_arguments(
    codec, sequence, seed
):
    shape, dtype = sequence[0].shape, sequence[0].dtype
    state = other = codec.init(shape, dtype, seed)
    for values in sequence:
        before = values.tobytes()
        payload, state = codec.encode(values, state)
        again, other = codec.encode(spread_out(values), other)
        decoded = codec.decode(payload, shape, dtype)
        assert isinstance(decoded, np.ndarray)
        assert (decoded.shape, decoded.dtype) == (shape, dtype)
        assert values.tobytes() == before
        assert [part.tobytes() for part in payload] == [part.tobytes() for part in again]
        assert [part.tobytes() for part in state] == [part.tobytes() for part in other]


@pytest.mark.parametrize("codec", EACH, ids=str)
@settings(max_examples=25)
@given(
    values=hnp.arrays(
        np.float32,
        hnp.array_shapes(max_dims=2, max_side=12),
        elements=st.sampled_from([0.0, 1.0, -3.0, 1e38, np.nan, np.inf, -np.inf]),
    )
)
def test_a_number_that_is_not_finite_is_seen_and_does_not_stay(codec, values):
    state = codec.init(values.shape, values.dtype, seed=1)
    payload, state = codec.encode(values, state)
    if not np.isfinite(values).all():
        assert not np.isfinite(codec.decode(payload, values.shape, values.dtype)).all()
    assert all(np.isfinite(part).all() for part in state)


@pytest.mark.parametrize("codec", WITH_FEEDBACK, ids=str)
def test_values_of_another_shape_than_the_residual_are_refused_and_not_broadcast(codec):
    state = codec.init((3, 4), "float32", seed=0)
    with pytest.raises(ValueError, match=r"needs float32 of shape \(3, 4\), as init was told, got"):
        codec.encode(np.ones(4, np.float32), state)
    with pytest.raises(ValueError, match=r"got float64 of shape \(3, 4\)"):
        codec.encode(np.ones((3, 4)), state)


@pytest.mark.parametrize("codec", CATCHING_UP, ids=str)
def test_with_a_constant_value_the_mean_of_what_arrives_becomes_the_value(codec):
    """The residual is bounded for a contraction, so the mean is wrong by (bound / steps)."""
    value = np.random.default_rng(5).normal(size=(6, 8))
    state = codec.init(value.shape, value.dtype, seed=2)
    arrived, errors = np.zeros_like(value), []
    for step in range(1, 401):
        payload, state = codec.encode(value, state)
        arrived += codec.decode(payload, value.shape, value.dtype)
        if step in (100, 400):
            errors.append(np.abs(arrived / step - value).max())
    assert errors[1] < max(0.5 * errors[0], 1e-12)
