"""NumPy loops around flowml's models: the floor, one process alone, and that of the MPI program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from sync_case import LEARNING_RATE, REPLICAS, Case, Loop, batch_stream
from sync_processes import Seat

from flowml.data import BatchStream
from flowml.layout import layout_of
from flowml.types import Array


class NumpyLoop:
    """Gather, gradient into a flat buffer, exchange, update.

    Parameters
    ----------
    exchange : callable, optional
        Adds up the flat gradients of all replicas in place.
    replicas : int
        The gradient is divided by it.
    """

    def __init__(
        self,
        model: Any,
        batches: BatchStream,
        exchange: Callable[[Array], Any] | None = None,
        replicas: int = 1,
    ) -> None:
        start = model.init(seed=0)
        layout = layout_of(start)
        (self._flat,), (self._gradient,) = layout.allocate(), layout.allocate()
        layout.write(start, (self._flat,))
        self._params = layout.views((self._flat,), writeable=False)
        self._out = layout.views((self._gradient,))
        self._model, self._batches, self._exchange = model, batches, exchange
        self._rate = np.float32(LEARNING_RATE / replicas)

    def gradient(self, number: int) -> None:
        """Gather the batch of a step and write its gradient."""
        content, _ = self._batches.batch(number)
        self._model.value_and_grad(self._params, content, out=self._out)

    def step(self, number: int) -> None:
        """Make a step."""
        self.gradient(number)
        if self._exchange is not None:
            self._exchange(self._gradient)
        np.multiply(self._gradient, self._rate, out=self._gradient)
        np.subtract(self._flat, self._gradient, out=self._flat)

    def parameters(self) -> Mapping[str, Array]:
        """Return the parameters."""
        found: Mapping[str, Array] = self._params
        return found


class FloorLoop(NumpyLoop):
    """Gather and gradient, and nothing else: no exchange, no update."""

    def step(self, number: int) -> None:
        """Make a step."""
        self.gradient(number)


class Floor:
    """One of two free processes that gather and differentiate as flowml's workers do."""

    def __init__(self, seat: Seat) -> None:
        self._rank, self._share = seat.rank, seat.examples.share(REPLICAS, seat.rank)

    def open(self, case: Case) -> Loop:
        """Return a fresh loop."""
        batches = batch_stream(self._share, self._rank, case.batch)
        return FloorLoop(case.new_model(), batches)


class Alone:
    """One process that takes the batches of all replicas as one."""

    def __init__(self, seat: Seat) -> None:
        self._share = seat.examples.share(1, 0)

    def open(self, case: Case) -> Loop:
        """Return a fresh loop."""
        return NumpyLoop(case.new_model(), batch_stream(self._share, 0, REPLICAS * case.batch))
