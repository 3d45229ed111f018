"""What a run on a cluster says that it moved is what explain predicts, within one percent."""

from __future__ import annotations

from collections.abc import Sequence

import dask
import pytest
from distributed import Client

from flowml.compiler.explain import explain
from flowml.compiler.gauge import measure
from flowml.errors import PlanError
from flowml.run import Graph
from flowml.runtime.moved import Moved
from tests.conformance.catalogue import examples, from_file, softmax

PAPERS = {
    "ssgd": {"batch_size": 8},
    "local_sgd": {"batch_size": 8, "period": 4},
    "ssp": {"batch_size": 8, "staleness": 2},
    "batch_gradient": {},
    "top_k_ssgd": {"batch_size": 8},
}
STEPS = 400
"""A hundred periods: an edge that delivers one time less while it fills up is one percent."""
ROWS = 80
"""Two shares of five full batches."""


def graph_of(name: str) -> Graph:
    X, y = examples()
    return from_file(name, softmax(), (X[:ROWS], y[:ROWS]), lr=0.05, **PAPERS[name])


def predicted(graph: Graph, hosts: Sequence[str] | None = None) -> Moved:
    explanation = explain(graph.logical, 2, probe=measure(graph.logical, 2), hosts=hosts)
    moved = Moved()
    for edge in explanation.edges:
        moved.written[edge.edge] += round(STEPS * edge.written_bytes)
        moved.read[edge.edge] += round(STEPS * edge.read_bytes)
        moved.messages += round(STEPS * edge.messages)
        moved.message_bytes += round(STEPS * edge.message_bytes)
    return moved


@pytest.mark.parametrize("own_copies", ["128 KiB", "0 B"])
@pytest.mark.parametrize("name", PAPERS)
def test_predicted_bytes_are_counted_bytes(name: str, own_copies: str, client: Client) -> None:
    graph = graph_of(name)
    with dask.config.set({"flowml.own-copies": own_copies}):
        run = graph.run(steps=STEPS, replicas=2, record=True)
        expected = predicted(graph)
    moved = run.moved
    assert sum(moved.written.values()) > 0
    assert sum(moved.read.values()) > 0
    for edge, nbytes in {**expected.written, **moved.written}.items():
        assert moved.written[edge] == pytest.approx(expected.written[edge], rel=0.01), (
            edge,
            nbytes,
        )
    for edge, nbytes in {**expected.read, **moved.read}.items():
        assert moved.read[edge] == pytest.approx(expected.read[edge], rel=0.01), (edge, nbytes)
    assert (moved.messages, moved.message_bytes) == (0, 0)


@pytest.mark.parametrize("name", ["ssgd", "local_sgd", "batch_gradient"])
def test_predicted_messages_are_counted_messages(name: str, client: Client) -> None:
    graph = graph_of(name)
    with dask.config.set({"flowml.transport": "rpc"}):
        moved = graph.run(steps=STEPS, replicas=2).moved
        expected = predicted(graph, hosts=["a", "b"])
    assert moved.messages > 0
    assert moved.messages == pytest.approx(expected.messages, rel=0.01)
    assert moved.message_bytes == pytest.approx(expected.message_bytes, rel=0.01)


def test_a_loose_run_that_was_not_recorded_does_not_know(client: Client) -> None:
    run = graph_of("ssp").run(steps=3, replicas=2)
    with pytest.raises(PlanError, match="has no record of reads and deliveries"):
        _ = run.moved


def test_alone_nothing_moves(client: Client) -> None:
    moved = graph_of("ssgd").run(steps=3, replicas=1).moved
    assert moved == Moved()
