"""What a part that you write has to promise, as functions to call in your own tests.

Each raises an AssertionError that says what was broken, for which shape, dtype and step. None
needs a test framework.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import cloudpickle
import numpy as np

from flowml.codecs import Codec, Payload, State
from flowml.types import Array

SHAPES = ((), (0,), (1,), (7,), (300,), (0, 4), (16, 33), (4, 5, 6))
DTYPES = ("float32", "float64")
SEED = 20_240_229
ROUNDINGS = 16
"""Rounding errors allowed a step, each of the largest number that was added in it."""


def check_codec(codec: Codec) -> None:
    """Check that a codec keeps the contract of `flowml.codecs.Codec`.

    Parameters
    ----------
    codec : Codec
        One of `flowml.codecs`, or your own, with the parameters that you use.

    Raises
    ------
    AssertionError
        At the first thing that does not hold. The message names the codec, and the shape and
        dtype of the values and the step where one is to blame.

    Notes
    -----
    Values are float32 and float64, from no dimension to three, also without entries; some are
    equal, zero, large, small or few. All arguments are read-only. Checked:

    - it has ``feedback``, ``init``, ``encode`` and ``decode``, and a pickled copy does the same;
    - the state and the payload are tuples of numeric arrays, equal if the call is repeated;
    - what is decoded has the shape and dtype that was encoded;
    - nothing is changed, and no result shares memory with the values or the payload;
    - with feedback, ``state[0]`` plus what was decoded is what was put in, within 16 roundings
      a step;
    - NaN and infinities are seen by the receiver, and not kept in the state.

    Examples
    --------
    >>> import flowml as fl
    >>> check_codec(fl.codecs.top_k(0.01))
    """
    _require(
        isinstance(codec, Codec) and not isinstance(codec, type),
        f"{codec}: a codec has feedback, init(shape, dtype, seed), encode(values, state) and "
        "decode(payload, shape, dtype)",
    )
    _require(isinstance(codec.feedback, bool), f"{codec}: feedback must be a bool")
    copy = _pickled(codec)
    for shape, dtype in itertools.product(SHAPES, DTYPES):
        one = _Case(codec, copy, f"{codec}, {dtype} of shape {shape}", shape, np.dtype(dtype))
        _check_sequence(one)
        if math.prod(shape):
            _check_not_finite(one)


@dataclass(frozen=True)
class _Case:
    """A codec, its pickled copy, and the values that it is checked with."""

    codec: Codec
    copy: Codec
    where: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def _check_sequence(case: _Case) -> None:
    state = _first_state(case)
    put_in = received = np.zeros(case.shape)
    allowed = 0.0
    for step, values in enumerate(_sequence(case)):
        where = f"{case.where}, step {step}"
        before = state
        payload, state = _encode(case, where, values, before)
        decoded = _decode(case, where, payload)
        if not case.codec.feedback:
            continue
        _check_residual(case, where, state)
        put_in, received = put_in + values, received + decoded
        added = (values, before[0], decoded, state[0], put_in, received)
        allowed += ROUNDINGS * float(np.finfo(case.dtype).eps) * max(map(_largest, added))
        missing = _largest(put_in - received - state[0])
        _require(
            missing <= allowed,
            f"{where}: what was decoded plus the residual must be what was put in; an entry "
            f"differs by {missing:.3g}, rounding explains {allowed:.3g}",
        )


def _check_not_finite(case: _Case) -> None:
    """Check that one NaN or infinity in the last entry arrives, and that the next value is fine."""
    for stranger in (np.nan, np.inf, -np.inf):
        where = f"{case.where}, {stranger} in the last entry"
        values = np.ones(case.shape, case.dtype)
        values.reshape(-1)[-1] = stranger
        payload, state = _encode(case, where, _frozen(values), _first_state(case))
        seen = not np.isfinite(_decode(case, where, payload)).all()
        _require(seen, f"{where}: the receiver must see it, and decoded only finite numbers")
        finite = all(np.isfinite(part).all() for part in state)
        _require(finite, f"{where}: the state must stay finite")
        payload, state = _encode(case, where, _frozen(np.ones(case.shape, case.dtype)), state)
        finite = bool(np.isfinite(_decode(case, where, payload)).all())
        _require(finite, f"{where}: the next value is finite, and was not decoded so")


def _first_state(case: _Case) -> State:
    state = case.codec.init(case.shape, case.dtype, SEED)
    _check_arrays(f"{case.where}: what init returns", state)
    again = case.copy.init(case.shape, case.dtype, SEED)
    _require(_bytes(state) == _bytes(again), f"{case.where}: init gives two states for one seed")
    if case.codec.feedback:
        _check_residual(case, case.where, state)
        _require(not state[0].any(), f"{case.where}: the first residual must be 0")
    return state


def _check_residual(case: _Case, where: str, state: State) -> None:
    found = f"{state[0].dtype} of shape {state[0].shape}" if state else "an empty state"
    _require(
        found == f"{case.dtype} of shape {case.shape}",
        f"{where}: with feedback, state[0] must be the residual, of the shape and dtype of the "
        f"values, got {found}",
    )


def _encode(case: _Case, where: str, values: Array, state: State) -> tuple[Payload, State]:
    state = tuple(map(_frozen, state))
    before = values.tobytes(), _bytes(state)
    payload, following = case.codec.encode(values, state)
    _check_arrays(f"{where}: the payload", payload)
    _check_arrays(f"{where}: the state", following)
    _require(
        before == (values.tobytes(), _bytes(state)), f"{where}: encode changed what it was given"
    )
    _require(
        not any(np.may_share_memory(part, values) for part in (*payload, *following)),
        f"{where}: what encode returns must not share memory with the values",
    )
    for same in (case.codec, case.copy):
        again = same.encode(values, state)
        _require(
            [_bytes(payload), _bytes(following)] == [_bytes(parts) for parts in again],
            f"{where}: encode gave something else for the same arguments",
        )
    return tuple(map(_frozen, payload)), following


def _decode(case: _Case, where: str, payload: Payload) -> Array:
    """Return what a receiver decodes that shares nothing with the sender."""
    before = _bytes(payload)
    decoded = case.copy.decode(payload, case.shape, case.dtype)
    found = f"{getattr(decoded, 'dtype', None)} of shape {getattr(decoded, 'shape', None)}"
    _require(
        isinstance(decoded, np.ndarray) and found == f"{case.dtype} of shape {case.shape}",
        f"{where}: decode must return an array of the shape and dtype that was encoded, got "
        f"{type(decoded).__name__}, {found}",
    )
    _require(_bytes(payload) == before, f"{where}: decode changed the payload")
    _require(
        not any(np.may_share_memory(part, decoded) for part in payload),
        f"{where}: what decode returns must not share memory with the payload",
    )
    return decoded


def _require(holds: bool, broken: str) -> None:
    """Raise unless something holds; an assert statement would be silent under ``python -O``."""
    if not holds:
        raise AssertionError(broken)


def _pickled(codec: Codec) -> Codec:
    try:
        copy: Codec = cloudpickle.loads(cloudpickle.dumps(codec))
    except Exception as error:
        raise AssertionError(f"{codec}: a codec must be picklable, got {error}") from error
    return copy


def _check_arrays(where: str, parts: object) -> None:
    if not isinstance(parts, tuple):
        raise AssertionError(f"{where} must be a tuple of arrays, got {type(parts).__name__}")
    for part in parts:
        found = part.dtype if isinstance(part, np.ndarray) else type(part).__name__
        numeric = getattr(found, "kind", "O") in "biuf"
        _require(numeric, f"{where} must hold numeric arrays, got {found}")


def _sequence(case: _Case) -> list[Array]:
    random = np.random.default_rng(SEED)
    normal = random.standard_normal((6, *case.shape))
    normal[1] = 0.0
    normal[2] = -0.25
    normal[3] *= 1e6
    normal[4] *= 1e-6
    normal[5] *= random.random(case.shape) < 0.1
    return [_frozen(np.asarray(values).astype(case.dtype)) for values in normal]


def _frozen(values: Array) -> Array:
    values = values.view()
    values.flags.writeable = False
    return values


def _bytes(parts: tuple[Array, ...]) -> list[tuple[str, tuple[int, ...], bytes]]:
    return [(part.dtype.str, part.shape, part.tobytes()) for part in parts]


def _largest(values: Array) -> float:
    return float(np.abs(values).max(initial=0.0))
