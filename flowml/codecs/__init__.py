"""How a value is made smaller on an edge: the codecs that ``.compress`` accepts.

A codec is a frozen value with three pure functions, ``init``, ``encode`` and ``decode``; the
contract is `Codec`. They can be called as they are. On an edge from replicas to a sum or a push the
sender encodes each leaf and the other end gets what is decoded; on one host that lies in shared
memory, and the ledger counts the bytes that a network would carry.

A codec with ``feedback`` keeps what it could not send: with a residual ``e`` and a value ``g``,
``e' = (g + e) - decode(encode(g + e))``, so the sum of what was decoded plus the residual equals
the sum of what was put in. Such a codec has state and belongs on edges that carry updates; on an
edge out of a table only codecs with ``feedback=False`` are legal.

Bytes of a payload, for n entries of ``itemsize`` bytes, k of them sent:

- ``top_k``, ``threshold``: ``k * (4 + itemsize)``; 8 instead of 4 from 2**31 entries on;
- ``random_k``: ``16 + k * itemsize``;
- ``float16``, ``bfloat16``: ``2 * n``;
- ``int8``: ``n + itemsize``;
- ``sign``: ``ceil(n / 8) + itemsize``;
- ``low_rank``: ``rank * (rows + columns) * itemsize``, or ``n * itemsize`` where that is not more.
"""

from __future__ import annotations

from flowml.codecs.contract import Codec, Payload, State, nbytes
from flowml.codecs.floats import BFloat16, Float16, bfloat16, float16
from flowml.codecs.int8 import Int8, int8
from flowml.codecs.low_rank import LowRank, low_rank
from flowml.codecs.random_k import RandomK, random_k
from flowml.codecs.sign import Sign, sign
from flowml.codecs.threshold import Threshold, threshold
from flowml.codecs.top_k import TopK, top_k

__all__ = [
    "BFloat16",
    "Codec",
    "Float16",
    "Int8",
    "LowRank",
    "Payload",
    "RandomK",
    "Sign",
    "State",
    "Threshold",
    "TopK",
    "bfloat16",
    "float16",
    "int8",
    "low_rank",
    "nbytes",
    "random_k",
    "sign",
    "threshold",
    "top_k",
]
