"""What a codec makes of values on an edge is the same in every executor, to the byte."""

from __future__ import annotations

from typing import Any

import pytest
from distributed import Client

import flowml as fl
from flowml.errors import PlanError
from tests.conformance.catalogue import COMPRESSED, examples, library, softmax
from tests.conformance.test_conformance import assert_same_bytes, recorded

CODECS: dict[str, Any] = {
    "top_k": fl.codecs.top_k(0.2),
    "random_k": fl.codecs.random_k(0.3),
    "threshold": fl.codecs.threshold(0.05),
    "float16": fl.codecs.float16(),
    "bfloat16": fl.codecs.bfloat16(),
    "int8": fl.codecs.int8(),
    "sign": fl.codecs.sign(),
    "low_rank": fl.codecs.low_rank(1),
}


def compressed(codec: Any, promise: str = "sync") -> fl.Graph:
    model = softmax()
    w = fl.table("w", model.init(seed=0))
    read = w.stale(2) if promise == "stale" else w
    grads = fl.gradient(model, read, fl.load(examples(), batch_size=8)).compress(codec)
    return fl.Graph(fl.update(w, fl.aggregate("mean", grads), fl.sgd(0.1, momentum=0.9)))


@pytest.mark.parametrize("replicas", [1, 2, 5])
@pytest.mark.parametrize("name", COMPRESSED)
def test_graphs_with_a_codec(name: str, replicas: int, client: Client) -> None:
    graph = library(name)()
    truth = recorded(graph, replicas=replicas, executor="serial")
    assert_same_bytes(truth, recorded(graph, replicas=replicas))


@pytest.mark.parametrize("name", CODECS)
def test_each_codec(name: str, client: Client) -> None:
    graph = compressed(CODECS[name])
    truth = recorded(graph, replicas=3, executor="serial")
    assert_same_bytes(truth, recorded(graph, replicas=3))
    assert_same_bytes(truth, graph.simulate(replicas=3, steps=7, snapshots=(1, 2, 7)).outcome)


@pytest.mark.parametrize("name", CODECS)
def test_a_stale_run_with_a_codec_replays(name: str, client: Client) -> None:
    run = compressed(CODECS[name], "stale").run(steps=20, replicas=2, record=True)
    again = run.replay()
    assert all(run.tables["w"][k].tobytes() == again.tables["w"][k].tobytes() for k in "Wb")


def test_tasks_refuse_codecs_and_say_why() -> None:
    with pytest.raises(PlanError, match="sync edges without codecs only"):
        compressed(fl.codecs.sign()).run(steps=1, replicas=2, executor="tasks")
