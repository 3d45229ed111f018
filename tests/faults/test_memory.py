"""A source several times as large as a worker's memory trains below its limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

import flowml as fl
from flowml.data.rows import Rows
from flowml.events import Event, WindowDone
from tests.faults.bed import WAIT_SECONDS, bed, eventually

LIMIT = 512 * 2**20
WIDTH, PART_ROWS, PARTS = 2000, 2500, 108
"""A part has 20 MB, the source 2.16 GB: 4 times the limit of a worker. Dask pauses one at 80 % of
that, and what a process needs before it reads anything counts too."""


@dataclass(frozen=True)
class LargePart:
    number: int
    rows: int = PART_ROWS

    @property
    def name(self) -> str:
        return f"part {self.number}"

    def read(self) -> Rows:
        X = np.full((PART_ROWS, WIDTH), self.number / PARTS, "float32")
        X[:, 0] = np.arange(PART_ROWS)
        return Rows((X, np.arange(PART_ROWS) % 2))


@dataclass(frozen=True)
class LargeSource:
    dealt = False
    name = "large"

    def rows(self) -> Rows:
        raise AssertionError("a source of parts is not read as a whole")

    def partitions(self) -> tuple[LargePart, ...]:
        return tuple(LargePart(n) for n in range(PARTS))

    def token(self) -> str:
        return "large"


def times_looked(dask_worker: Any) -> int:
    """Return how often Dask has looked at the memory of the process: twice a second."""
    return int(dask_worker.monitor.count)


def highest(dask_worker: Any) -> int:
    """Return the most memory that Dask has seen the process have, bytes."""
    return int(max(dask_worker.monitor.quantities["memory"]))


def test_a_source_of_four_times_the_memory() -> None:
    model = fl.models.softmax(WIDTH, 2)
    w = fl.table("w", model.init(seed=0))
    batch = fl.load(LargeSource(), batch_size=500)
    mean = fl.aggregate("mean", fl.gradient(model, w, batch))
    graph = fl.Graph(fl.update(w, mean, fl.sgd(0.01)))
    states: set[str] = set()
    with bed(memory_limit=LIMIT) as found:
        before = found.pids()

        def listen(event: Event) -> None:
            if isinstance(event, WindowDone):
                workers = found.client.scheduler_info(n_workers=-1)["workers"]
                states.update(worker["status"] for worker in workers.values())

        run = graph.start(epochs=2, replicas=2, on_event=listen).wait(4 * WAIT_SECONDS)
        looks = found.client.run(times_looked)
        eventually(lambda: all(n > looks[w] for w, n in found.client.run(times_looked).items()))
        memory = found.client.run(highest)
        assert run.status == "done"
        assert run.steps == 2 * PARTS * PART_ROWS // (2 * 500)
        assert found.pids() == before, "no worker was started again"
    assert states == {"running"}, "no worker was paused"
    assert max(memory.values()) < LIMIT
