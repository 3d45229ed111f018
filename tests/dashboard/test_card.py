"""What the scheduler is told of a run before it begins."""

import msgpack
import numpy as np
import pytest

import flowml as fl
from flowml.compiler.crossing import step_bytes
from flowml.compiler.stages import compile_graph
from tests.dashboard.stories import TABLE_BYTES, WORKERS, card, examples, ssp_graph, sync_graph


def edges(graph):
    return {edge.name: edge for edge in card(graph).edges}


def test_a_stale_read_has_its_bound_and_is_loose():
    found = edges(ssp_graph(staleness=3))["w -> gradient"]
    assert (found.promise, found.bound, found.loose, found.loop) == ("stale(3)", 3, True, False)


def test_an_async_read_has_no_bound():
    model = fl.models.softmax(16, 4)
    w = fl.table("w", model.init(seed=0))
    grads = fl.gradient(model, w.async_(), fl.load(examples(), batch_size=16))
    found = edges(fl.Graph(fl.update(w, grads, fl.sgd(0.1))))["w -> gradient"]
    assert (found.promise, found.bound, found.loose) == ("async", None, True)


def test_the_write_of_a_table_closes_the_loop_and_promises_nothing():
    found = edges(sync_graph())["update_w -> w"]
    assert (found.promise, found.loop, found.words) == ("", True, "")


@pytest.mark.parametrize("make", [sync_graph, ssp_graph])
def test_what_crosses_is_counted_over_all_replicas(make):
    found = {name: edge.step_bytes for name, edge in edges(make()).items()}
    inward = "gradient -> mean" if make is sync_graph else "gradient -> update_w"
    assert found[inward] == len(WORKERS) * TABLE_BYTES
    copies = 0 if make is sync_graph else len(WORKERS) * TABLE_BYTES
    assert found["w -> gradient"] == copies, "each replica of a sync run has the table itself"
    assert found["load -> gradient"] == 0.0


def test_a_table_made_by_a_function_is_not_made_for_the_card():
    def init(here):
        raise AssertionError("called")

    w = fl.table("w", init)
    grads = fl.gradient(fl.models.softmax(16, 4), w, fl.load(examples(), batch_size=16))
    graph = fl.Graph(fl.update(w, fl.aggregate("mean", grads), fl.sgd(0.1)))
    found = step_bytes(compile_graph(graph.logical, 2), {})
    assert found == {"w -> gradient": None, "gradient -> mean": None}


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_how_many_rows_travel_is_not_known_before(kind):
    batch = fl.load(examples(), batch_size=16)
    ids = fl.map(lambda rows: np.arange(len(rows[0])) % 3, batch, name="ids")
    made = np.zeros((3, 2), "float32")
    table = fl.table("s", made) if kind == "dense" else fl.sparse_table("s", 2)
    rows = fl.map(lambda r: -r, table.at(ids), name="rows")
    graph = fl.Graph(fl.update(table.at(ids), rows, fl.sgd(0.1)))
    found = {name: edge.step_bytes for name, edge in edges(graph).items()}
    assert found["s -> rows"] is None


def test_nothing_crosses_with_one_replica():
    assert step_bytes(compile_graph(sync_graph().logical, 1), {}) == {}


def test_the_promises_of_all_edges_are_one_line():
    assert card(sync_graph()).promises == "sync"
    assert card(ssp_graph()).promises == (
        "stale(3) on w -> gradient; stale(3) from its loop on gradient -> update_w"
    )
    coded = card(ssp_graph(codec=fl.codecs.top_k(0.1))).promises
    assert "top_k(0.1) on gradient -> update_w" in coded


def test_boxes_and_lines_are_placed():
    found = card(ssp_graph())
    assert {v.name for v in found.vertices} == {"w", "load", "gradient", "update_w", "test"}
    for vertex in found.vertices:
        assert 0 <= vertex.left < vertex.left + vertex.width <= found.width
        assert 0 <= vertex.top < found.height
    assert all(edge.line.startswith("M") for edge in found.edges)


def test_it_travels_as_a_message():
    message = card(ssp_graph()).as_message()
    back = msgpack.unpackb(msgpack.packb(message))
    assert back["graph"] == "ssp"
    assert back["workers"] == list(WORKERS)
