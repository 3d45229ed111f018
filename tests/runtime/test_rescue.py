"""What is left of a run that failed: the last step of which most tables are there."""

from __future__ import annotations

import flowml as fl
from flowml.compiler.stages import compile_graph
from flowml.runtime.outcome import Order
from flowml.runtime.rescue import rescued
from tests.faults.bed import examples, training


def test_a_shared_table_is_whole_once_one_rank_has_it() -> None:
    plan = compile_graph(training().logical, 3, None)
    replies = [{6: {("w", 0): "w6"}}, {7: {("w", 0): "w7"}}]
    assert rescued(plan, Order(40, None), replies, {}) == (7, {"w": ["w7"]})


def test_of_tables_of_replicas_the_step_that_has_most() -> None:
    plan = compile_graph(own_tables().logical, 3, None)
    replies = [{6: {("w", 0): "a6", ("w", 1): "b6"}}, {7: {("w", 2): "c7"}}]
    assert rescued(plan, Order(40, None), replies, {}) == (6, {"w": ["a6", "b6", None]})


def own_tables() -> fl.Graph:
    """Return a graph whose replicas never meet."""
    model = fl.models.softmax(12, 3)
    w = fl.table("w", model.init(seed=0), scope="replica")
    batch = fl.load(examples(), batch_size=8)
    return fl.Graph(fl.update(w, fl.gradient(model, w, batch), fl.sgd(0.1)))
