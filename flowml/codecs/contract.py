"""What a codec promises, in three pure functions.

The sender calls ``init`` once and ``encode`` for each value; the receiver calls ``decode``. Both
know the shape and the dtype of the values from the plan, so neither travels, and ``decode`` is
given them. The receiver keeps nothing: a payload that is lost, or read twice, spoils no other. To
that end what a payload needs beside numbers, such as the key of a random draw, is in the payload.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias, runtime_checkable

import numpy.typing as npt

from flowml.types import Array

State: TypeAlias = tuple[Array, ...]
"""What a sender keeps between values; with feedback, ``state[0]`` is the residual."""

Payload: TypeAlias = tuple[Array, ...]
"""What travels: numeric arrays of any shape, no objects."""


@runtime_checkable
class Codec(Protocol):
    """The contract of a codec; `flowml.testing.check_codec` checks it.

    A codec can be pickled and holds parameters only. It takes values of float32 and float64 of
    any shape, also ``()`` and shapes without entries.

    Attributes
    ----------
    feedback : bool
        What was not sent is kept in the state and added to the next value.

    Notes
    -----
    - The same arguments give the same result, to the bit; nothing is kept elsewhere.
    - No argument is changed, and no result shares memory with ``values`` or ``payload``: buffers
      may be used again at once.
    - With feedback, ``state[0]`` is the residual, an array of the shape and dtype of the values,
      and what was decoded plus the residual is what was put in, to rounding.
    - A value that is not finite is seen: if one goes in, what is decoded in the same step is not
      finite either. The state stays finite, so the next values are not spoiled.
    """

    @property
    def feedback(self) -> bool:
        """Whether what was not sent is kept for the next value."""
        ...

    def init(self, shape: tuple[int, ...], dtype: npt.DTypeLike, seed: int) -> State:
        """Return the state before the first value.

        Parameters
        ----------
        shape : tuple of int
            Shape of each value.
        dtype : float32 or float64
            Dtype of each value, and of the residual.
        seed : int
            Where random draws start, 0 <= seed < 2**64. Each sender should have its own.
        """
        ...

    def encode(self, values: Array, state: State) -> tuple[Payload, State]:
        """Return what travels, and the new state; ``values`` has the shape and dtype of ``init``.

        Without feedback, the state need not change.
        """
        ...

    def decode(self, payload: Payload, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Return an array of the shape and dtype that was encoded, from nothing but a payload."""
        ...


def nbytes(payload: Payload) -> int:
    """Return how many bytes of numbers travel, without what frames them.

    Examples
    --------
    >>> import numpy as np
    >>> nbytes((np.zeros(3, np.int32), np.zeros(3, np.float32)))
    24
    """
    return sum(part.nbytes for part in payload)
