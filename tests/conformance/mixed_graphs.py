"""Graphs that mix promises, filters, scopes and kinds of tables."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import flowml as fl
from tests.conformance.catalogue import (
    CLASSES,
    FEATURES,
    IN_STEP_BY_KEY,
    KEYED,
    examples,
    from_file,
    softmax,
)

KEYS, DIM = 20, 2
Mark = Callable[[Any], Any]


def local_steps(codec: Any = None) -> fl.Graph:
    """Local SGD whose differences are compressed."""
    model = softmax()
    initial = model.init(seed=0)
    anchor, local = fl.table("anchor", initial), fl.table("local", initial, scope="replica")
    batch = fl.load(examples(), batch_size=8)
    moved = fl.update(local, fl.gradient(model, local, batch), fl.sgd(0.1))
    gone = fl.map(lambda a, b: {k: a[k] - b[k] for k in a}, anchor, moved.every(3), name="gone")
    mean = fl.aggregate("mean", gone.compress(codec or fl.codecs.top_k(0.3)), weight="equal")
    outer = fl.update(anchor, mean, fl.sgd(1.0))
    return fl.Graph(moved, outer, fl.assign(local, outer))


def quorum(late: str = "carry", every: int = 1) -> fl.Graph:
    model = softmax()
    w = fl.table("w", model.init(seed=0))
    grads = fl.gradient(model, w, fl.load(examples(), batch_size=8))
    mean = fl.aggregate("mean", grads.every(every).quorum(1, late=late))
    return fl.Graph(fl.update(w, mean, fl.sgd(0.1, momentum=0.5)))


def published(name: str, **options: Any) -> fl.Graph:
    """Build a graph of graphs/."""
    return from_file(name, softmax(), examples(), batch_size=8, lr=0.1, **options)


def large_enough() -> fl.Graph:
    """Gaia's filter: what is small beside the parameters waits until it has grown."""
    model = softmax()
    w = fl.table("w", model.init(seed=0))
    grads = fl.gradient(model, w.async_(), fl.load(examples(), batch_size=8))
    return fl.Graph(fl.update(w, grads.when(2.0), fl.sgd(0.1)))


def half_reads() -> fl.Graph:
    """Parameters come as float16, gradients go as int8."""
    model = softmax()
    w = fl.table("w", model.init(seed=0))
    batch = fl.load(examples(), batch_size=8)
    grads = fl.gradient(model, w.stale(2).compress(fl.codecs.float16()), batch)
    return fl.Graph(fl.update(w, grads.compress(fl.codecs.int8()), fl.sgd(0.1)))


def two_promises() -> fl.Graph:
    """Two tables of one model, one stale and one async, and a third that is sync."""
    X, y = examples(dtype="float64")
    target = np.eye(CLASSES)[y]

    def loss(params: Any, batch: Any) -> Any:
        (first, second), (rows, wanted) = params, batch
        error = np.tanh(rows @ first) @ second - wanted
        return np.mean(error * error)

    a = fl.table("a", np.linspace(-1, 1, FEATURES * 4).reshape(FEATURES, 4))
    b = fl.table("b", np.linspace(-1, 1, 4 * CLASSES).reshape(4, CLASSES))
    batch = fl.load((X, target), batch_size=7)
    ga, gb = fl.gradient(loss, (a.stale(2), b.async_()), batch)
    return fl.Graph(
        fl.update(a, fl.aggregate("mean", ga), fl.adam(0.01)),
        fl.update(b, gb, fl.sgd(0.01)),
    )


def kept_periods() -> fl.Graph:
    """Downpour's periods on both edges, and a sum that is kept over three steps."""
    model = softmax()
    w = fl.table("w", model.init(seed=0))
    batch = fl.load(examples(), batch_size=8)
    grads = fl.gradient(model, w.async_().every(2), batch)
    return fl.Graph(fl.update(w, grads.every(3, keep="sum"), fl.adagrad(0.1)))


def answered() -> fl.Graph:
    """The write of a step comes back to the replica that made it, in the same step."""
    model = softmax()
    initial = model.init(seed=0)
    w, seen = fl.table("w", initial), fl.table("seen", initial, scope="replica")
    batch = fl.load(examples(), batch_size=8)
    moved = fl.update(w, fl.gradient(model, w.async_(), batch), fl.sgd(0.1))
    return fl.Graph(moved, fl.assign(seen, moved))


def rows(
    kind: str,
    mark: Mark = lambda handle: handle,
    how: str | None = None,
    rule: Any = None,
    codec: Any = None,
) -> fl.Graph:
    """Three keys an example, pulled towards targets."""
    rng = np.random.default_rng(0)
    ids, wanted = rng.integers(0, KEYS, (60, 3)), rng.normal(size=(60, 3, DIM))
    init = fl.init.normal(0.1, seed=3)
    if kind == "dense":
        u = fl.table("u", np.linspace(0, 1, KEYS * DIM).reshape(KEYS, DIM))
    else:
        known = KEYS if kind == "direct" else None
        u = fl.sparse_table("u", DIM, init=init, dtype="float64", rows=known)
    batch = fl.load((ids, wanted), batch_size=5)
    keys, target = fl.map(lambda b: (b[0], b[1]), batch, outputs=2, name="split")

    @fl.value_and_grad
    def distance(found: Any, target: Any) -> Any:
        return float(((found - target) ** 2).mean()), found - target

    handle = mark(u).at(keys)
    grads = fl.gradient(distance, handle if codec is None else handle.compress(codec), target)
    chosen = rule or fl.adagrad(0.1)
    if how is not None:
        return fl.Graph(fl.update(u, fl.aggregate(how, grads.at(keys)), chosen))
    sent = grads if codec is None else grads.compress(codec)
    return fl.Graph(fl.update(u.at(keys), sent, chosen))


def _of_file(name: str) -> fl.Graph:
    return from_file(name, KEYED[name]())


def _stale(handle: Any) -> Any:
    return handle.stale(2)


def _free(handle: Any) -> Any:
    return handle.async_()


GROUPED = ("hybrid",)
"""Graphs whose replicas meet in groups."""
MIXED: dict[str, Callable[[], fl.Graph]] = {
    "hybrid": partial(published, "hybrid"),
    "delay_compensated": partial(published, "delay_compensated", variance=2.0),
    "local_steps": local_steps,
    "local_steps_low_rank": partial(local_steps, fl.codecs.low_rank(1)),
    "quorum_carry": quorum,
    "backup_workers": partial(published, "backup_workers", momentum=0.5),
    "backup_workers_of_4": partial(published, "backup_workers", replicas=4),
    "quorum_every_2": partial(quorum, "carry", 2),
    "large_enough": large_enough,
    "half_reads": half_reads,
    "two_promises": two_promises,
    "kept_periods": kept_periods,
    "answered": answered,
    "rows_direct_sync": partial(rows, "direct", how="mean"),
    "rows_direct_stale": partial(rows, "direct", _stale),
    "rows_direct_async": partial(rows, "direct", _free, rule=fl.adam(0.05)),
    "rows_hash_sync": partial(rows, "hash", how="sum", rule=fl.sgd(0.1, momentum=0.9)),
    "rows_hash_stale": partial(rows, "hash", _stale, how="mean"),
    "rows_hash_async": partial(rows, "hash", _free),
    "rows_dense_async": partial(rows, "dense", _free),
    "rows_hash_half": partial(rows, "hash", _free, codec=fl.codecs.float16()),
    **{name: partial(_of_file, name) for name in IN_STEP_BY_KEY},
}
"""Each replays to its bytes."""
IN_STEP = (
    "local_steps",
    "local_steps_low_rank",
    "rows_direct_sync",
    "rows_hash_sync",
    *IN_STEP_BY_KEY,
)
"""Those without a loose promise: all executors give the same bytes."""
