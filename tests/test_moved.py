"""Bytes of the edges of a run: what is written once, what is copied, what a codec makes of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

import flowml as fl
from flowml.compiler.stages import compile_graph
from flowml.layout import layout_of
from flowml.moved import counted_bytes, edge_bytes, payload_bytes, promise_words, total_bytes
from flowml.runtime.moved import Moved
from flowml.runtime.outcome import Outcome
from graphs import local_sgd, ssgd

X = np.random.default_rng(0).normal(size=(120, 6)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 120)
MODEL = fl.models.softmax(6, 3)
TABLE = 4 * (6 * 3 + 3)
"""Bytes of the parameters."""


def outcome(graph: fl.Graph, replicas: int = 2, **facts: Any) -> Outcome:
    return Outcome(compile_graph(graph.logical, replicas), **facts)


def found(graph: fl.Graph, replicas: int = 2, **facts: Any) -> dict[str, Any]:
    return {e.edge: e for e in edge_bytes(outcome(graph, replicas, **facts))}


def test_a_contribution_is_written_once_and_read_by_those_who_keep_copies() -> None:
    edges = found(ssgd.build(MODEL, (X, Y)), replicas=3)
    assert {name: e.a_step for name, e in edges.items()} == {
        "gradient -> mean": 3 * TABLE + 3 * 3 * TABLE
    }
    assert {e.promise for e in edges.values()} == {"sync"}
    assert total_bytes(outcome(ssgd.build(MODEL, (X, Y)), 3, steps=10)) == 120 * TABLE


def test_what_buffers_counted_is_believed_before_the_plan() -> None:
    moved = Moved(Counter({"gradient -> mean": 70}), Counter({"gradient -> mean": 30}))
    edge = found(ssgd.build(MODEL, (X, Y)), moved=moved, steps=10)["gradient -> mean"]
    assert edge.a_step == 10


def test_one_replica_moves_nothing() -> None:
    assert found(ssgd.build(MODEL, (X, Y)), replicas=1) == {}


def test_an_edge_with_a_period_counts_the_steps_in_which_it_is_read() -> None:
    layouts = {("drift", 0): layout_of(MODEL.init(seed=0))}
    edges = found(local_sgd.build(MODEL, (X, Y), period=8), layouts=layouts)
    assert edges["anchor -> drift"].a_step == pytest.approx(2 * TABLE / 8)
    written, read = 2 * TABLE, 2 * TABLE
    assert edges["drift -> mean"].a_step == pytest.approx((written + read) / 8)


def test_a_value_whose_size_nobody_knows_is_not_counted() -> None:
    edges = found(local_sgd.build(MODEL, (X, Y), period=8))
    assert edges["drift -> mean"].a_step is None
    assert total_bytes(outcome(local_sgd.build(MODEL, (X, Y)), steps=5)) is None


@pytest.mark.parametrize(
    ("codec", "nbytes"),
    [(fl.codecs.float16(), 2 * 21), (fl.codecs.top_k(1 / 3), 8 * (6 + 1))],
)
def test_a_codec_is_asked_what_it_sends(codec: Any, nbytes: int) -> None:
    layout = layout_of(MODEL.init(seed=0))
    assert payload_bytes(codec, layout) == nbytes
    w = fl.table("w", MODEL.init(seed=0))
    grads = fl.gradient(MODEL, w, fl.load((X, Y), batch_size=4)).compress(codec)
    edge = found(fl.Graph(fl.update(w, fl.aggregate("mean", grads), fl.sgd(0.1))))[
        "gradient -> mean"
    ]
    assert edge.a_step == pytest.approx(2 * nbytes)
    assert edge.smaller == pytest.approx(TABLE / nbytes)
    assert edge.codec == str(codec)


def test_a_record_is_believed_before_the_plan() -> None:
    w = fl.table("w", MODEL.init(seed=0))
    grads = fl.gradient(MODEL, w.async_(), fl.load((X, Y), batch_size=4))
    graph = fl.Graph(fl.update(w, grads, fl.sgd(0.1)))
    run = graph.run(steps=7, replicas=2, executor="serial", record=True)
    counted = counted_bytes(run.outcome.record)
    assert counted == {"read": 14 * TABLE, "deliver": 14 * TABLE, "leave": 0, "skip": 0}
    assert total_bytes(run.outcome) == 28 * TABLE
    assert found(graph)["w -> gradient"].promise == "async"


def test_the_loosest_promise_of_a_schedule_is_named() -> None:
    assert promise_words(((0, 0.0), (3, 2.0))) == "stale(2)"
    assert promise_words(((0, 0.0), (3, np.inf))) == "async"
