"""What every model does with a batch: cast it, weigh its rows, check it once.

A batch without rows, or whose weights are all 0, has loss 0 and gradient 0 (before any penalty).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from flowml.errors import DataError, GraphError
from flowml.types import Array

Params: TypeAlias = Mapping[str, Array]
"""Named arrays of one float dtype."""

Batch: TypeAlias = tuple[Any, ...]
"""``(X, y)`` or ``(X, y, weight)``."""


def float_dtype(where: str, dtype: npt.DTypeLike) -> str:
    """Return the name of a float dtype, or raise GraphError."""
    found = np.dtype(dtype)
    if found.kind != "f":
        raise GraphError(where, "dtype must be a float dtype", found.name, "Use 'float32'.")
    return found.name


def split(batch: Batch, dtype: npt.DTypeLike) -> tuple[Any, Array, Array | None]:
    """Return ``(X, y, weight)``: X and weight in ``dtype``, weight None where there is none."""
    weight = batch[2].astype(dtype, copy=False) if len(batch) > 2 else None
    return features(batch[0], dtype), batch[1], weight


def features(X: Any, dtype: npt.DTypeLike) -> Any:
    """Return X, dense or CSR, in ``dtype``; X itself if it is so already."""
    return X if X.dtype == dtype else X.astype(dtype)


def shares(weight: Array | None, rows: int) -> Array | float:
    """Return each row's share in the mean: a number if all have the same."""
    if weight is None:
        return 1.0 / max(rows, 1)
    share: Array = weight / (np.add.reduce(weight) or weight.dtype.type(1))
    return share


def mean(losses: Array, share: Array | float) -> float:
    """Return the mean of a vector of losses, by shares."""
    if isinstance(share, float):
        return float(np.add.reduce(losses)) * share
    return float(np.add.reduce(losses * share))


def penalty(weights: Iterable[Array], l2: float) -> float:
    """Return ``l2 / 2`` times the sum of squares."""
    return 0.5 * l2 * sum(float(np.sum(np.square(W))) for W in weights) if l2 else 0.0


def back_through(X: Any, slope: Array, out: Array) -> None:
    """Write ``X.T @ slope`` into ``out``, a C-contiguous array; no temporary if X is dense."""
    if isinstance(X, np.ndarray):
        np.dot(X.T, slope, out=out)
    else:
        out[...] = X.T @ slope


def empty_like(params: Params) -> dict[str, Array]:
    """Return uninitialised C-contiguous arrays, shaped like the parameters."""
    return {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in params.items()}


def check_rows(where: str, batch: Batch, n_features: int) -> None:
    """Raise DataError where the parts of a batch do not fit each other or the model."""
    X, y, rest = batch[0], batch[1], batch[2:]
    shape: tuple[int, ...] = getattr(X, "shape", ())
    if len(shape) != 2 or shape[1] != n_features:
        fix = "Reshape or select columns in fl.map, or change the model."
        raise DataError(where, f"X must have shape (rows, {n_features})", str(shape), fix)
    if X.dtype.kind not in "fuib":
        raise DataError(where, "X must hold numbers", str(X.dtype))
    for name, column in zip(("y", "weight"), (y, *rest), strict=False):
        if np.shape(column) != (shape[0],):
            required = f"{name} must have shape ({shape[0]},), one item a row of X"
            raise DataError(where, required, str(np.shape(column)))
    if rest and not (np.isfinite(rest[0]).all() and (np.asarray(rest[0]) >= 0).all()):
        raise DataError(where, "weights must be finite and >= 0", _range(rest[0]))


def check_classes(where: str, y: Array, n_classes: int) -> None:
    """Raise DataError unless the labels are whole numbers from 0 to ``n_classes - 1``."""
    if not len(y):
        return
    whole = y.dtype.kind in "uib" or bool((y == np.floor(y)).all())
    if not (whole and y.min() >= 0 and y.max() < n_classes):
        raise DataError(
            where,
            f"labels must be whole numbers from 0 to {n_classes - 1}",
            _range(y),
            "Number the classes from 0, or change n_classes.",
        )


def check_signs(where: str, y: Array) -> None:
    """Raise DataError unless the labels are 0 and 1, or -1 and 1."""
    found = {float(label) for label in np.unique(y)}
    if not (found <= {0.0, 1.0} or found <= {-1.0, 1.0}):
        got = ", ".join(f"{label:g}" for label in sorted(found)[:5])
        more = ", ..." if len(found) > 5 else ""
        required = "labels must be 0 and 1, or -1 and 1"
        raise DataError(where, required, got + more, "Class 1 is y > 0: map the labels in fl.map.")


def _range(column: Array) -> str:
    return f"{np.min(column):g} to {np.max(column):g}"
