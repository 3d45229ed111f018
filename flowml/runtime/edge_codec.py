"""What a codec makes of the values on one edge of one replica, with what it keeps between them."""

from __future__ import annotations

import numpy as np
import optree

from flowml.codecs.contract import Codec, Payload, State, nbytes
from flowml.data.share import random_seed
from flowml.layout import Layout
from flowml.runtime.values import Value
from flowml.types import Array


def encoded(codec: Codec, values: Array) -> Payload:
    """Return what travels where a sender keeps nothing: of a read, or of rows that come and go."""
    return codec.encode(values, codec.init(values.shape, values.dtype, 0))[0]


def decoded(codec: Codec, payload: Payload, like: Array) -> Array:
    """Return what the other end has, an array like the one that was encoded."""
    return codec.decode(payload, like.shape, like.dtype)


class EdgeCodec:
    """The sender's end of an edge with a codec: each leaf of a value by itself.

    Parameters
    ----------
    codec : Codec
    layout : Layout
        Of the values on the edge.
    edge : str
        Its name, for the seeds.
    replica, run_seed : int
        The sender; each draws for itself.

    Attributes
    ----------
    payloads : list of Payload
        What was made of the last value, leaf by leaf.
    sent_bytes : int
        Of all values so far.
    """

    def __init__(
        self, codec: Codec, layout: Layout, edge: str, replica: int, run_seed: int
    ) -> None:
        self._codec = codec
        self.payloads: list[Payload] = []
        self.sent_bytes = 0
        seeds = np.random.SeedSequence((run_seed, random_seed(edge), replica)).generate_state(
            len(layout.leaves), np.uint64
        )
        self._states: list[State] = [
            codec.init(leaf.shape, layout.dtypes[leaf.buffer], int(seed))
            for leaf, seed in zip(layout.leaves, seeds, strict=True)
        ]

    @property
    def moved(self) -> int:
        """Bytes of the last value."""
        return sum(map(nbytes, self.payloads))

    def send(self, value: Value) -> Value:
        """Return what the other end decodes; a value without examples is not sent."""
        if value.empty:
            return value
        leaves, structure = optree.tree_flatten(value.content)
        self.payloads = []
        decoded = [self._leaf(n, np.asarray(leaf)) for n, leaf in enumerate(leaves)]
        self.sent_bytes += self.moved
        return Value(optree.tree_unflatten(structure, decoded), value.examples)

    def _leaf(self, number: int, values: Array) -> Array:
        payload, self._states[number] = self._codec.encode(values, self._states[number])
        self.payloads.append(payload)
        return self._codec.decode(payload, values.shape, values.dtype)
