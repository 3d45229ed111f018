"""Whether arrays that came from another host are what the plan says: else they are refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flowml.codecs.contract import Codec, Payload
from flowml.errors import DataError
from flowml.layout import Layout
from flowml.protocol.failures import ProtocolError
from flowml.runtime.row_tables import RowSpec
from flowml.types import Array

Buffers = tuple[Array, ...]


def buffers_of(layout: Layout, arrays: Buffers) -> Buffers:
    """Return flat buffers, if they are of a layout."""
    found = [(a.shape, a.dtype) for a in arrays]
    wanted = [((n,), d) for n, d in zip(layout.sizes, layout.dtypes, strict=True)]
    if found != wanted:
        raise unfit(f"buffers of {wanted}", arrays)
    return arrays


def leaves_of(layout: Layout, payloads: Sequence[Payload], codec: Codec) -> Buffers:
    """Return flat buffers of what leaves were encoded to."""
    made = layout.allocate()
    for leaf, payload in zip(layout.leaf_views(made).values(), payloads, strict=True):
        leaf[...] = decoded_as(codec, payload, leaf.shape, leaf.dtype)
    return made


def decoded_as(
    codec: Codec, payload: Payload, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Array:
    """Return what a payload stands for, if it is one of such values.

    Notes
    -----
    Codecs are written by users too, and only the plan's own end knows that it made the payload:
    whatever a codec says of a strange one, it is the request that is refused, not the run.
    """
    try:
        found = codec.decode(payload, shape, dtype)
    except Exception as error:
        raise unfit(f"a payload of {codec}", payload) from error
    if found.shape != shape or found.dtype != dtype:
        raise unfit(f"a payload of {codec} for values of {shape}, {dtype}", payload)
    return found


def known_keys(spec: RowSpec, keys: Array) -> Array:
    """Return keys, if a table has them."""
    try:
        return spec.check_ids(keys, "table request")
    except DataError as error:
        raise ProtocolError("table request", error.required, error.got) from error


def unfit(required: str, arrays: Sequence[Array]) -> ProtocolError:
    """Return the error for arrays that are something else."""
    got = ", ".join(f"{a.shape} {a.dtype}" for a in arrays) or "nothing"
    return ProtocolError("table request", f"must hold {required}", got)
