"""One step in the driver: layouts of what crosses, and mistakes found before any worker."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import flowml as fl
from flowml.cluster_run import probe_here
from flowml.compiler.stages import compile_graph
from flowml.layout import layout_of
from flowml.plan import Plan
from flowml.runtime.outcome import Order
from flowml.runtime.probe import probe

X = np.ones((12, 3), "float32")
Y = np.array([0, 1] * 6)
MODEL = fl.models.softmax(3, 2)


def plan(*sinks: Any, replicas: int = 3, groups: Any = None) -> Plan:
    return compile_graph(fl.Graph(*sinks).logical, replicas, groups)


def here(plan: Plan) -> Any:
    return probe_here(plan, Order(1, None))


def test_layouts_of_tables_and_of_all_arrays() -> None:
    w = fl.table("w", MODEL.init(seed=0))
    grad = fl.gradient(MODEL, w, fl.load((X, Y), batch_size=4), name="grad")
    size, text = fl.map(lambda g: (np.ones(2, "i4"), "text"), grad, outputs=2, name="pair")
    seen = fl.map(lambda t, s: s, text, size, name="seen")
    found = here(
        plan(
            fl.update(w, fl.aggregate("mean", grad, name="mean"), fl.sgd(0.1)),
            fl.assign(fl.table("n", np.zeros(2, "i4")), fl.aggregate("sum", seen, name="sum")),
        )
    )
    like_w = layout_of(MODEL.init(seed=0))
    assert found["w", -1] == found["grad", 0] == found["mean", 0] == like_w
    assert found["pair", 0] == found["sum", 0] == found["n", -1] == layout_of(np.ones(2, "i4"))
    assert ("pair", 1) not in found
    assert ("update_w", 0) not in found


def test_periods_are_left_out_so_that_everything_is_tried() -> None:
    w = fl.table("w", MODEL.init(seed=0))
    grad = fl.gradient(MODEL, w, fl.load((X, Y), batch_size=4))
    late = fl.map(lambda g: 1 / 0, grad.every(1000), name="late")
    with pytest.raises(fl.OperatorError, match="operator 'late'"):
        here(plan(fl.update(w, fl.aggregate("mean", late), fl.sgd(0.1))))


def test_nothing_of_the_step_remains() -> None:
    w = fl.table("w", np.zeros(3, "float32"))
    x = fl.load(X, batch_size=4)
    total = fl.aggregate("sum", fl.map(lambda x: x.sum(0), x))
    graph = fl.Graph(fl.update(w, total, fl.add()))
    first = here(compile_graph(graph.logical, 3))
    assert here(compile_graph(graph.logical, 3)) == first
    run = graph.run(steps=1, executor="serial", replicas=3)
    assert run.tables["w"].tolist() == [12, 12, 12]


def test_a_value_that_is_not_finite_is_left_to_the_run() -> None:
    w = fl.table("w", np.zeros(3, "float32"))
    value = fl.map(lambda x: np.full(3, np.nan, "float32"), fl.load(X, batch_size=4), name="nan")
    found = here(plan(fl.assign(w, fl.aggregate("mean", value))))
    assert ("nan", 0) in found


def test_what_crosses_must_be_arrays() -> None:
    w = fl.table("w", np.zeros(3, "float32"))
    x = fl.load(X, batch_size=4)
    word = fl.map(lambda x: "text", x, name="word")
    count = fl.map(lambda x, w: np.ones(3, "f4"), x, word, name="count")
    inside = here(plan(fl.assign(w, fl.aggregate("sum", count))))
    assert ("word", 0) not in inside
    across = fl.aggregate("median", word, name="middle")
    with pytest.raises(fl.OperatorError, match=r"operator '(word|middle)'") as caught:
        here(plan(fl.assign(w, across)))
    assert "pytree" in str(caught.value)
    assert "numeric arrays" in str(caught.value)


def test_labels_that_a_loss_cannot_take() -> None:
    w = fl.table("w", MODEL.init(seed=0))
    grad = fl.gradient(MODEL, w, fl.load((X, Y + 5), batch_size=4, name="train"), name="grad")
    with pytest.raises(fl.FlowmlError, match="operator 'grad'") as caught:
        here(plan(fl.update(w, fl.aggregate("mean", grad), fl.sgd(0.1))))
    assert isinstance(caught.value, ValueError)
    assert "labels" in str(caught.value)


def test_the_first_replica_with_rows_is_tried() -> None:
    """Most replicas of this run have nothing; the batch is taken from one that has."""
    w = fl.table("w", np.zeros(3, "float32"))
    x = fl.load(X[:2], batch_size=4)
    value = fl.map(lambda x: x.sum(0), x, name="sum_of")
    found = here(plan(fl.assign(w, fl.aggregate("sum", value)), replicas=7))
    assert found["sum_of", 0] == layout_of(np.zeros(3, "float32"))


def test_groups_and_replica_tables_have_one_layout() -> None:
    copy = fl.table("copy", np.zeros(3, "float32"), scope="rack")
    local = fl.table("local", lambda place: np.full(2, place.replica), scope="replica")
    value = fl.map(lambda x, c: x.sum(0) + c, fl.load(X, batch_size=4), copy)
    keep = fl.map(lambda x, m: m + 0, value, local)
    found = here(plan(fl.update(copy, value, fl.add()), fl.assign(local, keep), groups=2))
    assert found["copy", -1] == layout_of(np.zeros(3, "float32"))
    assert found["local", -1] == layout_of(np.zeros(2, int))


def test_batches_may_come_from_elsewhere_and_the_worker_is_named() -> None:
    w = fl.table("w", np.zeros(3, "float32"))
    value = fl.map(lambda x: None, fl.load(X, batch_size=4, name="rows"), name="bad")
    made = plan(fl.assign(w, fl.aggregate("sum", value)))
    with pytest.raises(fl.OperatorError, match="must return a value, got None"):
        probe(made, {"rows": (X[:4], 4.0)}, 0, "tcp://worker")
