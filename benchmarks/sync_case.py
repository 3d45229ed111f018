"""What every contender of sync_step.py computes: one model, the same batches, the same order.

Rows are dealt to the replicas, and put in a new order each epoch, by flowml's own functions; a last
batch that is not full is dropped, so that every step has as many examples.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import flowml as fl
from flowml.data import BatchOrder, BatchStream, Rows, Share, deal, random_seed
from flowml.types import Array

REPLICAS = 2
LEARNING_RATE = 0.001
PIXELS, CLASSES, HIDDEN = 784, 10, 128
LOAD = "load"
"""Name of the load operator; it enters the seeds of the order of rows."""
ENTROPY = (0, 0, random_seed(LOAD))
WARM_STEPS = 5
"""Steps before the clock starts, in which memory is touched for the first time."""


@dataclass(frozen=True)
class Case:
    """One setting: a model and a number of examples a replica and step."""

    model: str
    """``softmax`` or ``mlp``."""
    batch: int

    def new_model(self) -> Any:
        """Return the model."""
        if self.model == "softmax":
            return fl.models.softmax(PIXELS, CLASSES)
        return fl.models.mlp([PIXELS, HIDDEN, CLASSES])


@dataclass(frozen=True)
class Examples:
    """Where the examples come from; each process that needs them makes or reads them itself."""

    rows: int
    folder: str | None
    """Folder with Fashion-MNIST in it; random numbers when None."""

    def arrays(self) -> tuple[Array, Array]:
        """Return X, float32 of shape (rows, 784), and y, int64 of shape (rows,)."""
        if self.folder is None:
            rng = np.random.default_rng(0)
            X = rng.random((self.rows, PIXELS), np.float32)
            return X, rng.integers(0, CLASSES, self.rows)
        images, labels = (
            next(iter(sorted(Path(self.folder).glob(f"train-{kind}-ubyte*"))))
            for kind in ("images-idx3", "labels-idx1")
        )
        X, y = fl.data.idx(str(images), str(labels), scale=1 / 255).rows().columns
        return np.ascontiguousarray(X[: self.rows]), np.ascontiguousarray(y[: self.rows])

    def share(self, replicas: int, rank: int) -> Rows:
        """Return what one of some replicas is dealt."""
        return deal(Rows(self.arrays()), replicas, seed=ENTROPY)[rank]


def chosen_examples(rows: int) -> Examples:
    """Return Fashion-MNIST if the variable FLOWML_DATA names a folder that has it, else random."""
    folder = Path(os.environ.get("FLOWML_DATA", "")) / "fashion-mnist"
    real = bool(os.environ.get("FLOWML_DATA")) and any(folder.glob("train-images-idx3-ubyte*"))
    return Examples(rows - rows % REPLICAS, str(folder) if real else None)


def batch_order(rows: int, rank: int, batch: int) -> BatchOrder:
    """Return which rows of a share make which batch: shuffled anew each epoch."""
    return BatchOrder(Share((rows,), (rank,), rank), batch, True, True, ENTROPY)


def batch_stream(share: Rows, rank: int, batch: int) -> BatchStream:
    """Return the batches of a share that is in memory."""
    order = batch_order(len(share), rank, batch)
    return BatchStream(order, [share], steps_per_epoch=order.batches(), resident_bytes=0)


class Loop(Protocol):
    """Training, one step at a time."""

    def step(self, number: int) -> None:
        """Make a step."""

    def parameters(self) -> Mapping[str, Array]:
        """Return the parameters, named and shaped as flowml's model does."""


def seconds_a_step(loop: Loop, steps: int, ready: Callable[[], Any]) -> float:
    """Return the wall time of a step; the clock starts when ``ready`` returns."""
    for number in range(WARM_STEPS):
        loop.step(number)
    ready()
    began = time.perf_counter()
    for number in range(WARM_STEPS, WARM_STEPS + steps):
        loop.step(number)
    return (time.perf_counter() - began) / steps


def parameters_after(loop: Loop, steps: int) -> dict[str, Array]:
    """Return the parameters after some steps from the start."""
    for number in range(steps):
        loop.step(number)
    return {name: np.array(leaf) for name, leaf in loop.parameters().items()}
