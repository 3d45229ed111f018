"""What straggler.py runs: one problem, three worlds, and seven ways to wait for one another.

A replica sleeps in an operator of its own before it differentiates, so that a step is nearly all
sleep and any machine can run four of them side by side. In the simulator the operator does not
sleep, and the same times are made up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

import flowml as fl
from flowml.types import Array

REPLICAS, BATCH, PERIOD = 4, 32, 8
FEATURES, CLASSES = 64, 10
QUORUM = 3
SLOW_REPLICA = REPLICAS - 1


@dataclass(frozen=True)
class World:
    """Who is slow, and when."""

    name: str
    says: str
    slow: Mapping[int, float] = field(default_factory=dict)
    """Replicas that always are, by a factor."""
    share: float = 0.0
    """Share of all steps, at random, that are slower."""
    factor: float = 1.0
    """By how much those are."""

    def naps(self, place: Any) -> float:
        """Return how often the usual time a replica sleeps in a step; ``place`` is fl.here."""
        found = self.slow.get(place.replica, 1.0)
        return found * self.factor if self.share and place.rng().random() < self.share else found

    def compute(self, nap: float, work: float, spread: float) -> fl.simulate.Compute:
        """Return the same in virtual time: naps are longer, and what is computed is not.

        Parameters
        ----------
        nap, work : float
            Seconds of a usual step, asleep and not.
        spread : float
            Standard deviation of the logarithm of a step's time.
        """
        usual = nap + work
        return fl.simulate.Compute(
            usual,
            spread,
            {rank: (nap * times + work) / usual for rank, times in self.slow.items()},
            self.share,
            (nap * self.factor + work) / usual,
        )


EVEN = World("even", "all replicas alike")
WORLDS = (
    EVEN,
    World("slow", "one replica always 5 times slower", {SLOW_REPLICA: 5.0}),
    World("random", "every replica 10 times slower in a tenth of its steps", {}, 0.1, 10.0),
)


@dataclass(frozen=True)
class Watched:
    """Softmax regression whose loss is over all examples, while its gradient is of a batch.

    So the history of any run says when which loss was reached: that of the parameters that a
    replica has read, known when its step has ended.
    """

    examples: tuple[Array, Array]

    def value_and_grad(self, params: Any, batch: Any) -> tuple[float, Any]:
        """Return the loss over all examples, and the gradient of that over a batch."""
        model = fl.models.softmax(FEATURES, CLASSES)
        return model.loss(params, self.examples), model.value_and_grad(params, batch)[1]


def examples() -> tuple[Array, Array]:
    """Return scikit-learn's digits: X, float32 from 0 to 1, shape (1797, 64), and y."""
    X, y = load_digits(return_X_y=True)
    return (X / 16).astype(np.float32), y


def asleep(world: World, nap: float, batch: Any, place: Any) -> Any:
    """Return the batch after a nap."""
    time.sleep(nap * world.naps(place))
    return batch


def awake(batch: Any, place: Any) -> Any:
    """Return the batch at once: in virtual time a nap is no work."""
    return batch


Build = Callable[[Watched, Any, float], fl.Graph]
"""Makes a graph from a model, the handle of its batches and a rate."""


def synchronous(model: Watched, batch: Any, lr: float, quorum: int = 0) -> fl.Graph:
    """Return SGD on the mean of all replicas, or of the first so many (Chen et al. 2016)."""
    w = fl.table("w", start())
    grads = fl.gradient(model, w, batch)
    coming = grads.quorum(quorum, late="drop") if quorum else grads
    return fl.Graph(fl.update(w, fl.aggregate("mean", coming), fl.sgd(lr)))


def pushing(model: Watched, batch: Any, lr: float, staleness: int | None) -> fl.Graph:
    """Return SGD that applies each gradient when it comes: a quarter of the rate of a mean."""
    w = fl.table("w", start())
    read = w.async_() if staleness is None else w.stale(staleness)
    return fl.Graph(fl.update(w, fl.gradient(model, read, batch), fl.sgd(lr / REPLICAS)))


def in_turns(model: Watched, batch: Any, lr: float) -> fl.Graph:
    """Return local SGD: replicas agree on their mean after each period."""
    local = fl.table("w", start(), scope="replica")
    moved = fl.update(local, fl.gradient(model, local, batch), fl.sgd(lr))
    mean = fl.aggregate("mean", moved.every(PERIOD), weight="equal")
    return fl.Graph(moved, fl.assign(local, mean))


CONTENDERS: Mapping[str, Build] = {
    "sync": synchronous,
    f"quorum {QUORUM}": partial(synchronous, quorum=QUORUM),
    "stale 1": partial(pushing, staleness=1),
    "stale 4": partial(pushing, staleness=4),
    "stale 16": partial(pushing, staleness=16),
    "async": partial(pushing, staleness=None),
    f"local {PERIOD}": in_turns,
}
LOCAL = f"local {PERIOD}"


def start() -> dict[str, Array]:
    """Return the parameters that all begin with."""
    found: dict[str, Array] = fl.models.softmax(FEATURES, CLASSES).init()
    return found


def graph_of(name: str, lr: float, pause: Callable[[Any, Any], Any]) -> fl.Graph:
    """Return a contender's graph; ``pause`` gets each batch and its place."""
    source = examples()
    loaded = fl.load(source, batch_size=BATCH, drop_last=True)
    batch = fl.map(pause, loaded, fl.here(), name="pause")
    return CONTENDERS[name](Watched(source), batch, lr)


def reached(history: Mapping[str, Array], name: str, target: float) -> tuple[float, float]:
    """Return the seconds and the examples after which a loss is known; infinite if it never is.

    Notes
    -----
    Under local steps the parameters that count are the mean, which replicas have once a period.
    """
    ends, losses = history["began"] + history["seconds"], history["loss"]
    order = np.argsort(ends, kind="stable")
    below = losses <= target
    if name == LOCAL:
        below &= history["step"] % PERIOD == 0
    found = np.flatnonzero(below[order])
    if not len(found):
        return math.inf, math.inf
    return float(ends[order][found[0]]), float((found[0] + 1) * BATCH)
