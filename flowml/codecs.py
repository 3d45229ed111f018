"""How a value is made smaller on an edge: the codecs that ``.compress`` accepts.

The codecs of this module are declared here and drawn by the graph. They hold their parameters
and are not executed yet: a graph that compresses an edge is refused when it is planned, until the
release that brings compressed edges. `Codec` is the contract that they are executed by. The
functions `top_k` to `low_rank` check the parameters and name the line of the user's file.

A codec with ``feedback`` keeps what it could not send: with a residual ``e`` and a value ``g``,
``e' = (g + e) - decode(encode(g + e))``, so the sum of what was decoded plus the residual equals
the sum of what was put in. Such a codec has state and belongs on edges that carry updates; on an
edge out of a table only codecs with ``feedback=False`` are legal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Protocol, runtime_checkable

from flowml.errors import GraphError
from flowml.types import Array, Pytree, calling_site


@runtime_checkable
class Codec(Protocol):
    """The contract of a codec: pure functions, with the state as an argument and a result.

    Attributes
    ----------
    feedback : bool
        What was not sent is kept in the state and added to the next value.
    """

    @property
    def feedback(self) -> bool:
        """Whether what was not sent is kept for the next value."""
        ...

    def init(self, shape: tuple[int, ...]) -> Pytree:
        """Return the state before the first value: the residual, or an empty tuple."""
        ...

    def encode(self, values: Array, state: Pytree) -> tuple[Pytree, Pytree]:
        """Return the payload, a pytree of arrays that says enough to decode, and the new state.

        Neither ``values`` nor ``state`` is changed.
        """
        ...

    def decode(self, payload: Any) -> Array:
        """Return an array of the shape that was encoded."""
        ...


@dataclass(frozen=True)
class TopK:
    """The largest entries by magnitude, with their indices.

    Attributes
    ----------
    fraction : float
        Share of the entries that is sent, 0 < fraction <= 1.
    feedback : bool

    References
    ----------
    Stich et al., "Sparsified SGD with Memory", NeurIPS 2018, algorithm 1.
    """

    fraction: float
    feedback: bool = True

    def __str__(self) -> str:
        return _spelling("top_k", self.fraction, feedback=self.feedback, usual=True)


@dataclass(frozen=True)
class RandomK:
    """Entries drawn at random, the same on both ends, so that no index travels.

    Attributes
    ----------
    fraction : float
        Share of the entries that is sent, 0 < fraction <= 1.
    feedback : bool

    References
    ----------
    Stich et al., "Sparsified SGD with Memory", NeurIPS 2018, definition 2.1.
    """

    fraction: float
    feedback: bool = True

    def __str__(self) -> str:
        return _spelling("random_k", self.fraction, feedback=self.feedback, usual=True)


@dataclass(frozen=True)
class Threshold:
    """Entries whose magnitude exceeds a value.

    Attributes
    ----------
    value : float
        The magnitude, > 0 and finite, in the unit of the entries.
    feedback : bool

    References
    ----------
    Strom, "Scalable Distributed DNN Training Using Commodity GPU Cloud Computing", Interspeech
    2015. There each sent entry is plus or minus the threshold; here it is the entry itself.
    """

    value: float
    feedback: bool = True

    def __str__(self) -> str:
        return _spelling("threshold", self.value, feedback=self.feedback, usual=True)


@dataclass(frozen=True)
class Float16:
    """Each entry as an IEEE half: 2 bytes, 11 significant bits, largest 65504."""

    feedback: bool = False

    def __str__(self) -> str:
        return _spelling("float16", feedback=self.feedback, usual=False)


@dataclass(frozen=True)
class BFloat16:
    """Each entry as the upper half of a float32: 2 bytes, 8 significant bits, float32's range."""

    feedback: bool = False

    def __str__(self) -> str:
        return _spelling("bfloat16", feedback=self.feedback, usual=False)


@dataclass(frozen=True)
class Int8:
    """Each entry as a multiple, -127 to 127, of one scale for the array: 1 byte."""

    feedback: bool = True

    def __str__(self) -> str:
        return _spelling("int8", feedback=self.feedback, usual=True)


@dataclass(frozen=True)
class Sign:
    """The sign of each entry and the mean magnitude of the array: 1 bit.

    References
    ----------
    Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient Compression Schemes",
    ICML 2019, algorithm 1.
    """

    feedback: bool = True

    def __str__(self) -> str:
        return _spelling("sign", feedback=self.feedback, usual=True)


@dataclass(frozen=True)
class LowRank:
    """A matrix as the product of two thin ones, by one step of power iteration.

    Attributes
    ----------
    rank : int
        Columns of the thin matrices, >= 1.
    feedback : bool

    References
    ----------
    Vogels et al., "PowerSGD: Practical Low-Rank Gradient Compression for Distributed
    Optimization", NeurIPS 2019, algorithms 1 and 2.
    """

    rank: int
    feedback: bool = True

    def __str__(self) -> str:
        return _spelling("low_rank", self.rank, feedback=self.feedback, usual=True)


def top_k(fraction: float, *, feedback: bool = True) -> TopK:
    """Send the ``fraction`` of the entries that is largest in magnitude; see `TopK`."""
    return TopK(_share("top_k", fraction), feedback)


def random_k(fraction: float, *, feedback: bool = True) -> RandomK:
    """Send a ``fraction`` of the entries drawn at random; see `RandomK`."""
    return RandomK(_share("random_k", fraction), feedback)


def threshold(value: float, *, feedback: bool = True) -> Threshold:
    """Send the entries whose magnitude exceeds ``value``; see `Threshold`."""
    if not _is_number(value) or not math.isfinite(value) or value <= 0:
        raise _refusal("threshold(value) needs a finite number > 0", value, "0.001")
    return Threshold(value, feedback)


def float16(*, feedback: bool = False) -> Float16:
    """Send each entry as an IEEE half, 2 bytes; see `Float16`."""
    return Float16(feedback)


def bfloat16(*, feedback: bool = False) -> BFloat16:
    """Send the upper half of each float32, 2 bytes; see `BFloat16`."""
    return BFloat16(feedback)


def int8(*, feedback: bool = True) -> Int8:
    """Send each entry in 1 byte, with one scale for the array; see `Int8`."""
    return Int8(feedback)


def sign(*, feedback: bool = True) -> Sign:
    """Send the sign of each entry, 1 bit, and the mean magnitude; see `Sign`."""
    return Sign(feedback)


def low_rank(rank: int, *, feedback: bool = True) -> LowRank:
    """Send a matrix as two thin ones with ``rank`` columns each; see `LowRank`."""
    if not isinstance(rank, Integral) or isinstance(rank, bool) or rank < 1:
        raise _refusal("low_rank(rank) needs an integer >= 1", rank, "4")
    return LowRank(rank, feedback)


def _spelling(codec: str, *parameters: float, feedback: bool, usual: bool) -> str:
    """Return a codec as the user writes it: different codecs are spelled differently."""
    words = [str(p) for p in parameters]
    if feedback is not usual:
        words.append(f"feedback={feedback}")
    return f"{codec}({', '.join(words)})"


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _share(codec: str, fraction: float) -> float:
    if not _is_number(fraction) or not 0 < fraction <= 1:
        raise _refusal(f"{codec}(fraction) needs a number > 0 and <= 1", fraction, "0.01")
    return fraction


def _refusal(required: str, got: object, example: str) -> GraphError:
    site = calling_site()
    return GraphError(str(site), required, repr(got), f"For example {example}.", site=site)
