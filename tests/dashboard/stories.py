"""Graphs and messages that the tests of the dashboard tell of."""

from __future__ import annotations

from typing import Any

import numpy as np

import flowml as fl
from flowml.compiler.crossing import step_bytes
from flowml.compiler.promises import resolve
from flowml.compiler.stages import compile_graph
from flowml.dashboard.card import RunCard, card_of
from flowml.dashboard.follow import as_message
from flowml.dashboard.runstate import RunState
from flowml.events import Event

FEATURES, CLASSES = 16, 4
WORKERS = ("tcp://a:1", "tcp://b:2")
TABLE_BYTES = 4 * (FEATURES + 1) * CLASSES


def examples(rows: int = 200) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(rows, FEATURES)).astype("float32")
    return X, np.argmax(X @ rng.normal(size=(FEATURES, CLASSES)), axis=1)


def ssp_graph(staleness: int = 3, name: str = "ssp", codec: Any = None) -> fl.Graph:
    """Return a graph with one stale read: load, gradient, update_w and an evaluation."""
    model = fl.models.softmax(FEATURES, CLASSES)
    w = fl.table("w", model.init(seed=0))
    grads = fl.gradient(model, w.stale(staleness), fl.load(examples(), batch_size=16))
    grads = grads if codec is None else grads.compress(codec)
    test = fl.evaluate(
        lambda params, rows: {"loss": model.loss(params, rows)},
        w,
        examples(),
        every=20,
        name="test",
    )
    return fl.Graph(fl.update(w, grads, fl.sgd(0.01)), test, name=name)


def sync_graph(name: str = "sync") -> fl.Graph:
    """Return synchronous SGD: load, gradient, mean and update_w."""
    model = fl.models.softmax(FEATURES, CLASSES)
    w = fl.table("w", model.init(seed=0))
    grads = fl.gradient(model, w, fl.load(examples(), batch_size=16))
    return fl.Graph(fl.update(w, fl.aggregate("mean", grads), fl.sgd(0.1)), name=name)


def card(graph: fl.Graph, workers: tuple[str, ...] = WORKERS) -> RunCard:
    """Return the card of a graph on some workers."""
    plan = compile_graph(graph.logical, len(workers))
    promises = resolve(graph.logical)
    return card_of(graph.logical, promises, step_bytes(plan, {}), "resident", workers)


def opened(graph: fl.Graph, workers: tuple[str, ...] = WORKERS) -> RunState:
    """Return the state of a run that the scheduler has just heard of, at second 100."""
    return RunState("ab12cd34", card(graph, workers).as_message(), "client-1", 100.0, 1e9)


def tell(run: RunState, event: Event, at: float) -> None:
    """Let a run take an event at so many seconds after its beginning."""
    run.take(as_message(event), 100.0 + at)


def report(
    worker: int, step: int, spent: dict[tuple[str, str], float], **more: Any
) -> dict[str, Any]:
    """Return what a worker with one rank reports."""
    rank = {
        "rank": worker,
        "step": step,
        "within": ("compute", "gradient"),
        "since": 0.01,
        "spent": [(part, name, seconds) for (part, name), seconds in spent.items()],
    }
    nothing = {"clocks": [], "lags": [], "sent": [], "between_hosts": 0.0}
    return {"worker": WORKERS[worker], "ranks": [rank], **nothing, **more}
