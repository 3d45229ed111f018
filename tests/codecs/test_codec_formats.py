"""What each codec puts on the way: its bytes, its rounding, and what it makes of NaN."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flowml import codecs
from flowml.codecs.floats import upper_halves
from flowml.codecs.random_k import drawn

RNG = np.random.default_rng(11)
MATRIX = RNG.normal(size=(784, 10))
FLOATS = st.floats(width=32)
DRAW = [76, 263, 315, 630, 956]
"""Of 1000, five, for the key 1 and the count 2."""


def sent(codec, values, dtype="float32", seed=3):
    values = np.asarray(values, dtype)
    return codec.encode(values, codec.init(values.shape, values.dtype, seed))


def received(codec, values, dtype="float32"):
    values = np.asarray(values, dtype)
    return codec.decode(sent(codec, values, dtype)[0], values.shape, values.dtype)


BYTES = [  # codec, bytes for 7840 entries of float32, of float64
    (codecs.top_k(0.01), 78 * (4 + 4), 78 * (4 + 8)),
    (codecs.top_k(1e-9), 4 + 4, 4 + 8),
    (codecs.random_k(0.01), 16 + 78 * 4, 16 + 78 * 8),
    (codecs.threshold(1e-12), 7840 * (4 + 4), 7840 * (4 + 8)),
    (codecs.threshold(1e12), 0, 0),
    (codecs.float16(), 7840 * 2, 7840 * 2),
    (codecs.bfloat16(), 7840 * 2, 7840 * 2),
    (codecs.int8(), 7840 + 4, 7840 + 8),
    (codecs.sign(), 980 + 4, 980 + 8),
    (codecs.low_rank(4), 4 * (784 + 10) * 4, 4 * (784 + 10) * 8),
    (codecs.low_rank(10), 7840 * 4, 7840 * 8),
]


@pytest.mark.parametrize(("codec", "single", "double"), BYTES, ids=lambda x: str(x))
def test_the_bytes_are_those_documented(codec, single, double):
    assert codecs.nbytes(sent(codec, MATRIX, "float32")[0]) == single
    assert codecs.nbytes(sent(codec, MATRIX, "float64")[0]) == double


def test_top_k_sends_the_largest_and_of_equal_ones_those_that_come_first():
    (places, entries), state = sent(codecs.top_k(0.5), [1, -4, 2, -2, 2, 0])
    assert places.dtype == np.int32
    assert places.tolist() == [1, 2, 3]
    assert entries.tolist() == [-4, 2, -2]
    assert state[0].tolist() == [1, 0, 0, 0, 2, 0]


def test_top_k_sends_every_number_that_is_not_finite_also_beyond_its_share():
    (places, entries), state = sent(codecs.top_k(0.2), [1, np.nan, 5, -np.inf, np.inf])
    assert places.tolist() == [1, 3, 4]
    np.testing.assert_array_equal(entries, np.array([np.nan, -np.inf, np.inf], np.float32))
    assert state[0].tolist() == [1, 0, 5, 0, 0]


def test_a_threshold_is_exceeded_not_reached():
    (places, _), state = sent(codecs.threshold(0.5), [0.5, -0.75, 0.25, np.nan])
    assert places.tolist() == [1, 3]
    assert state[0].tolist() == [0.5, 0, 0.25, 0]


@given(st.integers(1, 200), st.floats(0, 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_a_draw_is_a_subset_in_order(size, fraction, seed, number):
    count = round(fraction * size)
    places = drawn(np.array([seed, number], np.uint64), size, count)
    assert places.size == count
    assert (np.diff(places) > 0).all()
    assert count == 0 or 0 <= places[0] <= places[-1] < size


def test_each_entry_is_drawn_equally_often():
    for count in (3, 7):  # below and above half
        draws = [drawn(np.array([9, i], np.uint64), 10, count) for i in range(2000)]
        times = np.bincount(np.concatenate(draws), minlength=10)
        spread = np.sqrt(2000 * 0.1 * count * (1 - 0.1 * count))
        assert np.abs(times - 200 * count).max() < 5 * spread


def test_a_draw_is_this_one_on_every_machine():
    assert drawn(np.array([1, 2], np.uint64), 1000, 5).tolist() == DRAW
    assert drawn(np.array([1, 3], np.uint64), 1000, 5).tolist() != DRAW
    assert drawn(np.array([2, 2], np.uint64), 1000, 5).tolist() != DRAW


def test_random_k_carries_its_draw_and_counts_it():
    codec = codecs.random_k(0.1, feedback=False)
    payload, state = sent(codec, np.arange(100), seed=2**64 - 1)
    assert payload[0].tolist() == [2**64 - 1, 0]
    assert state[0].tolist() == [2**64 - 1, 1]
    places = drawn(payload[0], 100, 10)
    assert payload[1].tolist() == places.tolist()
    decoded = codec.decode(payload, (100,), "float32")
    assert np.flatnonzero(decoded).tolist() == [place for place in places if place]


def test_halves_are_those_of_ieee_754_and_too_large_ones_saturate_with_a_residual():
    values = [1 / 3, 65519.0, 65520.0, -1e30, np.inf, -np.inf, np.nan, 2.0**-25, 2.0**-24]
    held = [float(np.float16(1 / 3)), 65504.0]
    rest = [np.inf, -np.inf, np.nan, 0.0, 2.0**-24]
    plain = received(codecs.float16(), values)
    np.testing.assert_array_equal(plain, np.float32([*held, np.inf, -np.inf, *rest]))
    saturated = received(codecs.float16(feedback=True), values)
    np.testing.assert_array_equal(saturated, np.float32([*held, 65504.0, -65504.0, *rest]))


def test_bfloat16_rounds_to_nearest_and_ties_to_even():
    cases = {  # bits of a float32: upper half
        0x3F80_0000: 0x3F80,  # 1.0
        0x3F80_7FFF: 0x3F80,
        0x3F80_8000: 0x3F80,  # tie, even below
        0x3F81_8000: 0x3F82,  # tie, even above
        0x3F80_8001: 0x3F81,
        0xBFFF_FFFF: 0xC000,  # the carry runs into the exponent
        0x0000_0001: 0x0000,
        0x0000_8001: 0x0001,  # below the normal range
        0x7F7F_7FFF: 0x7F7F,  # the largest that is not infinite
        0x7F7F_8000: 0x7F80,
        0x7F80_0000: 0x7F80,  # infinity
        0xFF80_0001: 0xFFC0,  # NaN whose lower half holds all that makes it one
        0x7FFF_FFFF: 0x7FFF,  # NaN that a carry would turn into -0
    }
    bits = np.array(list(cases), np.uint32).view(np.float32)
    assert [hex(b) for b in upper_halves(bits)] == [hex(b) for b in cases.values()]


@given(hnp.arrays(np.float32, 8, elements=FLOATS))
def test_bfloat16_is_the_nearest_of_its_neighbours(values):
    decoded = received(codecs.bfloat16(), values)
    assert (np.isnan(decoded) == np.isnan(values)).all()
    finite = np.isfinite(decoded)
    upper = upper_halves(values)
    for away in (-1, 1):
        beside = ((upper.astype(np.int64) + away & 0xFFFF) << 16).astype(np.uint32).view(np.float32)
        compared = np.isfinite(beside) & finite
        exact, near, far = (x[compared].astype(np.float64) for x in (values, decoded, beside))
        assert (np.abs(near - exact) <= np.abs(far - exact)).all()


def test_bfloat16_saturates_with_a_residual_only():
    values = np.array([3.4e38, -3.4e38, 1e300, -np.inf])
    plain = received(codecs.bfloat16(), values, "float64")
    assert plain.tolist() == [np.inf, -np.inf, np.inf, -np.inf]
    payload, state = sent(codecs.bfloat16(feedback=True), values, "float64")
    largest = (2 - 2.0**-7) * 2.0**127
    decoded = codecs.bfloat16().decode(payload, (4,), "float64")
    assert decoded.tolist() == [largest, -largest, largest, -np.inf]
    assert state[0].tolist() == [3.4e38 - largest, largest - 3.4e38, 1e300, 0.0]


@given(hnp.arrays(np.float32, 9, elements=st.floats(width=32, allow_nan=False)))
def test_int8_is_wrong_by_half_a_scale_at_most_and_marks_infinities(values):
    (codes, scale), _ = sent(codecs.int8(feedback=False), values)
    decoded = received(codecs.int8(feedback=False), values)
    finite = np.isfinite(values)
    assert (np.isnan(decoded) == ~finite).all()
    assert (codes[~finite] == -128).all()
    assert np.abs(codes[finite].astype(int)).max(initial=0) <= 127
    error = np.abs(decoded[finite].astype(np.float64) - values[finite])
    tiny = 127 * 2.0**-149  # 127 times a scale of float32 that was rounded below its normal range
    assert error.max(initial=0.0) <= 0.5 * float(scale[0]) * (1 + 1e-5) + tiny


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_int8_and_sign_hold_the_largest_and_the_smallest_numbers(dtype):
    largest, smallest = np.finfo(dtype).max, np.finfo(dtype).smallest_subnormal
    for codec in (codecs.int8(feedback=False), codecs.sign(feedback=False)):
        decoded = received(codec, [largest, -largest, largest], dtype)
        np.testing.assert_allclose(decoded, [largest, -largest, largest], rtol=1e-6)
        assert np.isfinite(received(codec, [smallest, 0.0, -smallest], dtype)).all()


def test_sign_sends_eight_signs_a_byte_and_the_mean_magnitude():
    (bits, scale), state = sent(codecs.sign(), [1, -2, 3, 0, 0, 0, 0, 0, -6])
    assert [f"{byte:08b}" for byte in bits] == ["10111111", "00000000"]
    assert scale[0] == np.float32(12 / 9)
    decoded = np.array([1, -1, 1, 1, 1, 1, 1, 1, -1], np.float32) * scale
    np.testing.assert_allclose(
        state[0], np.float32([1, -2, 3, 0, 0, 0, 0, 0, -6]) - decoded, rtol=1e-6
    )


def test_sign_decodes_an_array_with_one_nan_as_nan_everywhere():
    assert np.isnan(received(codecs.sign(), [1.0, np.inf, -2.0])).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_low_rank_is_exact_for_a_matrix_of_that_rank(dtype):
    matrix = (RNG.normal(size=(30, 2)) @ RNG.normal(size=(2, 20))).astype(dtype)
    decoded = received(codecs.low_rank(2, feedback=False), matrix, dtype)
    np.testing.assert_allclose(decoded, matrix, atol=50 * np.finfo(dtype).eps)


def test_low_rank_comes_to_the_best_approximation_by_its_warm_start():
    """Power iteration converges to the leading singular vectors: Vogels et al., section 4.2."""
    u, _, vt = np.linalg.svd(RNG.normal(size=(30, 20)), full_matrices=False)
    spectrum = 0.5 ** np.arange(20)
    matrix, best = (u * spectrum) @ vt, (u[:, :3] * spectrum[:3]) @ vt[:3]
    codec = codecs.low_rank(3, feedback=False)
    state = codec.init(matrix.shape, matrix.dtype, seed=1)
    for _ in range(30):
        payload, state = codec.encode(matrix, state)
    decoded = codec.decode(payload, matrix.shape, matrix.dtype)
    np.testing.assert_allclose(decoded, best, atol=1e-7)


def test_low_rank_goes_on_after_zeros_and_after_tiny_numbers():
    codec = codecs.low_rank(2, feedback=False)
    matrix = (RNG.normal(size=(9, 2)) @ RNG.normal(size=(2, 12))).astype("float32")
    state = codec.init(matrix.shape, matrix.dtype, seed=1)
    for factor in (0.0, 1e-30, 1e-30, 1.0):
        payload, state = codec.encode(matrix * np.float32(factor), state)
        decoded = codec.decode(payload, matrix.shape, matrix.dtype)
        np.testing.assert_allclose(decoded, matrix * np.float32(factor), atol=1e-5 * factor)


def test_low_rank_takes_the_first_dimension_as_rows_and_leaves_vectors_whole():
    tensor = RNG.normal(size=(8, 3, 5))
    assert [part.shape for part in sent(codecs.low_rank(2), tensor)[0]] == [(8, 2), (15, 2)]
    for small in (RNG.normal(size=100), RNG.normal(size=(4, 4)), 2.5):
        codec = codecs.low_rank(2)
        payload, state = sent(codec, small, "float64")
        assert len(payload) == 1
        np.testing.assert_array_equal(received(codec, small, "float64"), small)
        assert not state[0].any()


def test_thin_matrices_of_another_size_are_refused_before_they_are_multiplied() -> None:
    """Two short arrays of a stranger would be a product of terabytes."""
    codec, tall = codecs.low_rank(1), np.zeros((1_000_000, 1), np.float32)
    with pytest.raises(ValueError, match=r"no thin matrices of \(30, 20\)"):
        codec.decode((tall, tall), (30, 20), np.float32)
    with pytest.raises(ValueError, match=r"no thin matrices of \(30, 20\)"):
        codec.decode((np.zeros((30, 2)), np.zeros((20, 2))), (30, 20), np.float32)


def test_more_entries_than_there_are_places_are_refused() -> None:
    """So many different places would be drawn for without end."""
    draw = np.array([3, 4], np.uint64)
    with pytest.raises(ValueError, match="9 entries for 8 places"):
        codecs.random_k(0.5).decode((draw, np.zeros(9)), (2, 4), np.float64)
