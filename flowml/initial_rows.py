"""What a row of a sparse table is before anybody has written it.

Each item is a function of (seed, key, column) alone, so it does not matter in which order, or in
which process, rows are touched first (semantics.md section 5).

References
----------
The mixing function is the finaliser of SplitMix64: Steele, Lea and Flood, "Fast Splittable
Pseudorandom Number Generators", OOPSLA 2014, figure 17. There it walks along a counter; here the
counter is the place of the item.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from flowml.errors import GraphError
from flowml.types import Array

_KEY, _COLUMN = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD1B54A32D192ED03)
_STEPS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


@dataclass(frozen=True)
class RandomRows:
    """Random rows; made by `uniform` and `normal`."""

    kind: Literal["uniform", "normal"]
    low: float
    high: float
    """Bounds of ``uniform``; mean and standard deviation of ``normal``."""
    seed: int

    def items(self, keys: Array, columns: int, dtype: npt.DTypeLike) -> Array:
        """Return rows.

        Parameters
        ----------
        keys : ndarray of int64, shape (n,)

        Returns
        -------
        ndarray, shape (n, columns), dtype
        """
        one = _fractions(self.seed, keys, columns)
        if self.kind == "uniform":
            return (self.low + (self.high - self.low) * one).astype(dtype)
        two = _fractions(self.seed + 1, keys, columns)
        # Box and Muller, 1958; 1 - u is never 0.
        drawn = np.sqrt(-2.0 * np.log1p(-one)) * np.cos(2.0 * np.pi * two)
        return (self.low + self.high * drawn).astype(dtype)


@dataclass(frozen=True)
class InitialRows:
    """What the rows of one table are at first; a function of keys.

    Attributes
    ----------
    how : number, ndarray of shape (columns,), RandomRows or callable
    columns : int
    dtype : str
    """

    how: Any
    columns: int
    dtype: str

    def __call__(self, keys: Array) -> Array:
        """Return the rows of some keys, shape (n, columns).

        Raises
        ------
        GraphError
            If a function of the user's returns something else.
        """
        if isinstance(self.how, RandomRows):
            return self.how.items(keys, self.columns, self.dtype)
        shape = (len(keys), self.columns)
        if not callable(self.how):
            return np.broadcast_to(np.asarray(self.how, self.dtype), shape).copy()
        made = np.asarray(self.how(keys))
        if made.shape != shape or not np.can_cast(made.dtype, self.dtype, "same_kind"):
            raise GraphError(
                "init of a sparse table",
                f"init(keys) must return an array of shape {shape}, {self.dtype}",
                f"shape {made.shape}, {made.dtype}",
                "Return one row a key.",
            )
        return made.astype(self.dtype)

    def seeded(self, seed: int) -> InitialRows:
        """Return the same, with what is random in it mixed with a seed."""
        if not isinstance(self.how, RandomRows):
            return self
        mixed = int(_mixed(np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64))[0] >> np.uint64(2))
        return replace(self, how=replace(self.how, seed=self.how.seed + mixed))


def uniform(low: float, high: float, seed: int = 0) -> RandomRows:
    """Return rows whose items are uniform between two numbers.

    Examples
    --------
    >>> uniform(-1.0, 1.0).items(np.array([7, 3]), 2, "float32").shape
    (2, 2)
    """
    if not low < high:
        required = "low must be below high"
        raise GraphError("fl.init.uniform", required, f"{low} and {high}", "Swap them.")
    return RandomRows("uniform", float(low), float(high), seed)


def normal(scale: float, mean: float = 0.0, seed: int = 0) -> RandomRows:
    """Return rows whose items are normal, with a standard deviation and a mean."""
    if not scale > 0:
        raise GraphError("fl.init.normal", "scale must be > 0", repr(scale), "Try scale=0.01.")
    return RandomRows("normal", float(mean), float(scale), seed)


def _fractions(seed: int, keys: Array, columns: int) -> Array:
    """Return numbers in [0, 1), shape (len(keys), columns), float64."""
    start = _mixed(np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64))
    rows = _mixed(start + keys.astype(np.uint64) * _KEY)
    places = rows[:, None] + np.arange(1, columns + 1, dtype=np.uint64) * _COLUMN
    return np.asarray((_mixed(places) >> np.uint64(11)) * 2.0**-53)


def _mixed(x: Array) -> Array:
    """Return the SplitMix64 finaliser of unsigned 64-bit integers; it wraps around."""
    for shift, factor in _STEPS:
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    mixed: Array = x ^ (x >> np.uint64(31))
    return mixed
