"""What a codec makes of values on an edge is the same in every executor, to the byte."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from distributed import Client

import flowml as fl
from flowml.errors import PlanError
from tests.conformance.catalogue import COMPRESSED, examples, library, softmax
from tests.conformance.mixed_graphs import MIXED
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


REFUSED: dict[str, Callable[[], fl.Graph]] = {
    "codec": partial(compressed, fl.codecs.sign()),
    "stale": partial(compressed, fl.codecs.sign(), "stale"),
    **{name: MIXED[name] for name in ("quorum_carry", "large_enough", "rows_hash_sync")},
}


@pytest.mark.parametrize("name", REFUSED)
def test_tasks_refuse_what_a_task_cannot_wait_for_and_say_why(name: str) -> None:
    with pytest.raises(PlanError, match="sync edges that carry whole values only") as caught:
        REFUSED[name]().run(steps=1, replicas=2, executor="tasks")
    for words in ("stale", "compressed", "quorum", "threshold", "rows by key", "Leave executor="):
        assert words in str(caught.value)
