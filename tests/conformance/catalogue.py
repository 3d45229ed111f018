"""Graphs that exercise every part of the runtime, on data whose shares are unequal."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import flowml as fl

GRAPHS = Path(__file__).parents[2] / "graphs"
ROWS, FEATURES, CLASSES = 83, 12, 3


def examples(seed: int = 0, dtype: str = "float32") -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(ROWS, FEATURES)).astype(dtype)
    return X, rng.integers(0, CLASSES, ROWS)


def softmax(dtype: str = "float32") -> Any:
    return fl.models.softmax(FEATURES, CLASSES, dtype=dtype)


def from_file(name: str, *inputs: Any, **options: Any) -> fl.Graph:
    """Build a graph of graphs/."""
    spec = importlib.util.spec_from_file_location(f"graph_{name}", GRAPHS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where a dataclass looks for its own module
    spec.loader.exec_module(module)
    build: Callable[..., fl.Graph] = module.build
    return build(*inputs, **options)


def sgd_with(rule: Any, **options: Any) -> fl.Graph:
    model = softmax()
    w = fl.table("w", model.init(seed=0))
    batch = fl.load(examples(), batch_size=options.pop("batch_size", 8), **options)
    return fl.Graph(fl.update(w, fl.aggregate("mean", fl.gradient(model, w, batch)), rule))


def pushes() -> fl.Graph:
    model = softmax()
    w = fl.table("w", model.init(seed=0))
    batch = fl.load(examples(), batch_size=8)
    return fl.Graph(fl.update(w, fl.gradient(model, w, batch), fl.sgd(0.1, momentum=0.5)))


def pushes_to_a_group() -> fl.Graph:
    model = softmax()
    copy = fl.table("copy", model.init(seed=0), scope="host")
    w = fl.table("w", model.init(seed=0))
    batch = fl.load(examples(), batch_size=8)
    near = fl.update(copy, fl.gradient(model, copy, batch), fl.sgd(0.05))
    mean = fl.assign(w, fl.aggregate("mean", near.every(2)))
    return fl.Graph(near, mean, fl.assign(copy, mean))


def median_kept() -> fl.Graph:
    model = softmax()
    w = fl.table("w", model.init(seed=0))
    batch = fl.load(examples(), batch_size=8)
    middle = fl.aggregate("median", fl.gradient(model, w, batch))
    return fl.Graph(fl.update(w, middle.every(2, keep="sum"), fl.sgd(0.1)))


def two_tables_with_aux() -> fl.Graph:
    X, y = examples(dtype="float64")
    target = np.eye(CLASSES)[y]

    def loss(params: Any, batch: Any) -> Any:
        (first, second), (rows, wanted) = params, batch
        error = np.tanh(rows @ first) @ second - wanted
        return np.mean(error * error)

    a = fl.table("a", np.linspace(-1, 1, FEATURES * 4).reshape(FEATURES, 4))
    b = fl.table("b", np.linspace(-1, 1, 4 * CLASSES).reshape(4, CLASSES))
    batch = fl.load((X, target), batch_size=7)
    ga, gb = fl.gradient(loss, (a, b), batch)
    return fl.Graph(
        fl.update(a, fl.aggregate("mean", ga), fl.adam(0.01)),
        fl.update(b, fl.aggregate("mean", gb, name="mean_b"), fl.rmsprop(0.01)),
    )


def noise_and_weights() -> fl.Graph:
    model = softmax()
    w = fl.table("w", model.init(seed=0))
    here = fl.here(seed=3)
    batch = fl.load(examples(), batch_size=8)
    grads = fl.gradient(model, w, batch)
    noisy = fl.map(
        lambda g, place: {
            k: v + place.rng().normal(size=v.shape).astype(v.dtype) * 0.01 for k, v in g.items()
        },
        grads,
        here,
        name="noisy",
    )
    weight = fl.map(lambda g: 1.0 + float(np.abs(g["W"]).sum()), grads, name="weight")
    mean = fl.aggregate("mean", noisy, weight=weight)
    size = fl.map(lambda m: float(np.square(m["W"]).sum()), mean, name="size")
    return fl.Graph(fl.update(w, mean, fl.sgd(0.1)), fl.until(lambda s: s < 1e-12, size))


def slow_pull() -> fl.Graph:
    """Local tables refreshed from the global one every three steps, pushed every two."""
    model = softmax()
    w = fl.table("w", model.init(seed=0))
    local = fl.table("local", lambda here: model.init(seed=here.replica), scope="replica")
    batch = fl.load(examples(), batch_size=8)
    fresh = fl.assign(local, w.every(3))
    grads = fl.gradient(model, fresh, batch)
    mean = fl.aggregate("mean", grads.every(2))
    return fl.Graph(
        fresh, fl.update(local, grads, fl.sgd(0.1)), fl.update(w, mean, fl.adagrad(0.1))
    )


def library(name: str) -> Callable[[], fl.Graph]:
    def make() -> fl.Graph:
        rows = examples()
        if name == "kmeans":
            return from_file(name, rows[0], clusters=3, tol=0.0)
        if name == "admm":
            X, y = examples(dtype="float64")
            return from_file(name, (X, y.astype(float)))
        if name in ("batch_gradient",):
            return from_file(name, softmax("float64"), rows, momentum=0.9, lr=0.1)
        return from_file(name, softmax(), rows, batch_size=8, lr=0.1)

    return make


LOOSE: dict[str, tuple[dict[str, Any], float, int]] = {
    "asgd": ({}, math.inf, 1),
    "ssp": ({"staleness": 2}, 2, 1),
    "downpour": ({"n_fetch": 3, "n_push": 2}, math.inf, 3),
    "easgd": ({"period": 3}, math.inf, 1),
    "warm_then_async": ({"warm": 12}, math.inf, 1),
    "adaptive_delay": ({}, math.inf, 1),
    "delay_compensated": ({"variance": 2.0, "decay": 0.9}, math.inf, 1),
    "sparse_logistic": ({"bits": 5, "degree": 2, "l1": 0.3}, math.inf, 1),
    "skip_gram": ({"dimensions": 3, "window": 2, "drawn": 3}, math.inf, 1),
}
"""Graphs of graphs/ with stale or async edges: options, promised staleness, steps of a read."""


def categories() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 20, (ROWS, 3)), rng.integers(0, 2, ROWS)


def text() -> Any:
    return np.random.default_rng(0).integers(-1, 30, (ROWS, 9))


def ratings() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    cells = np.argwhere(rng.random((15, 11)) < 0.5)
    return cells, rng.normal(size=len(cells))


KEYED: dict[str, Callable[[], Any]] = {
    "sparse_logistic": categories,
    "skip_gram": text,
    "rotated_mf": ratings,
}
"""Graphs of graphs/ over tables of rows, which no model of `fl.models` fits: their sources."""


def loose(name: str, dtype: str = "float32", **options: Any) -> fl.Graph:
    """Build a graph of LOOSE."""
    fixed, _, _ = LOOSE[name]
    inputs = (KEYED[name](),) if name in KEYED else (softmax(dtype), examples(dtype=dtype))
    return from_file(name, *inputs, batch_size=8, lr=0.1, **fixed | options)


COMPRESSED = ("power_sgd", "sign_sgd", "top_k_ssgd")
"""Graphs of graphs/ with a codec on an edge."""
UNEVEN = ("backup_workers", "hybrid")
"""Graphs of graphs/ whose replicas do not all deliver in each step: see mixed_graphs.py."""
IN_STEP_BY_KEY = ("rotated_mf",)
"""Graphs of graphs/ that go in step, with rows by key, which Dask tasks do not carry."""
OTHERS = {*LOOSE, *COMPRESSED, *UNEVEN, *IN_STEP_BY_KEY}

CATALOGUE: dict[str, Callable[[], fl.Graph]] = {
    "momentum": lambda: sgd_with(fl.sgd(0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)),
    "adam": lambda: sgd_with(fl.adam(0.01)),
    "clipped": lambda: sgd_with(fl.clip_norm(0.1, fl.adamw(0.01))),
    "short_last_batches": lambda: sgd_with(fl.sgd(0.1), batch_size=11),
    "dropped_rows": lambda: sgd_with(fl.sgd(0.1), batch_size=9, drop_last=True),
    "whole_shares": lambda: sgd_with(fl.sgd(0.1), batch_size=None),
    "pushes": pushes,
    "pushes_to_a_group": pushes_to_a_group,
    "median_kept": median_kept,
    "two_tables_with_aux": two_tables_with_aux,
    "noise_and_weights": noise_and_weights,
    "slow_pull": slow_pull,
    **{p.stem: library(p.stem) for p in sorted(GRAPHS.glob("*.py")) if p.stem not in OTHERS},
}
