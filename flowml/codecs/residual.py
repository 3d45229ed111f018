"""Error feedback: what was not sent is added to the next value.

With a residual ``e`` and a value ``g``: ``e' = (g + e) - decode(encode(g + e))``. What is
subtracted is what the receiver will decode, not what the sender meant to send, so rounding on the
way is in the residual, too. All of it is done in the dtype of the values.

Where the total or what was decoded is not finite there is nothing left to send, and the residual is
0: ``inf - inf`` would be NaN in every later step.

References
----------
Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient Compression Schemes", ICML
2019, algorithm 2. There the rate is inside the residual (``gamma * g``); here the update travels
and the rate is the rule's, so a change of rate acts on what was kept back as well.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flowml.codecs.checks import float_dtype
from flowml.codecs.contract import Codec, Payload, State
from flowml.errors import GraphError
from flowml.types import Array


def first_residual(codec: Codec, shape: tuple[int, ...], dtype: npt.DTypeLike) -> State:
    """Return ``(zeros,)`` for a codec with feedback, ``()`` for one without.

    Raises
    ------
    GraphError
        If the dtype is neither float32 nor float64.
    """
    found = float_dtype(codec, dtype)
    return (np.zeros(shape, found),) if codec.feedback else ()


def with_residual(codec: Codec, values: Array, state: State) -> Array:
    """Return ``g + e``, or ``values`` themselves for a codec without feedback.

    Raises
    ------
    GraphError
        If the values have not the shape and dtype of the residual: they would be broadcast.
    """
    if not codec.feedback:
        return values
    residual = state[0]
    if values.shape != residual.shape or values.dtype != residual.dtype:
        required = f"encode needs {residual.dtype} of shape {residual.shape}, as init was told"
        got = f"{values.dtype} of shape {values.shape}"
        raise GraphError(str(codec), required, got, "Keep a state for each edge and array.")
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(values + residual)


def next_residual(codec: Codec, total: Array, payload: Payload) -> State:
    """Return ``(total - what the receiver decodes,)``, or ``()`` without feedback."""
    if not codec.feedback:
        return ()
    decoded = codec.decode(payload, total.shape, total.dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        residual = np.asarray(total - decoded)
    if not np.isfinite(residual).all():
        residual[~(np.isfinite(total) & np.isfinite(decoded))] = 0
    return (residual,)
