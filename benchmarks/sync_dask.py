"""A hand-written Dask graph: every operator of every step a task."""

from __future__ import annotations

import time
import uuid
from typing import Any

import numpy as np
from dask.task_spec import Task, TaskRef
from distributed import Client
from sync_case import ENTROPY, LEARNING_RATE, REPLICAS, Case, Examples, batch_order

from flowml.data import Rows, deal
from flowml.types import Array

Params = dict[str, Array]


def take(share: Rows, index: Array) -> Any:
    """Gather a batch."""
    return share.take(index).value()


def differentiate(model: Any, params: Params, batch: Any) -> Params:
    """Return the gradient."""
    gradient: Params = model.value_and_grad(params, batch)[1]
    return gradient


def mean(*gradients: Params) -> Params:
    """Return the mean of the replicas' gradients."""
    share = np.float32(1 / len(gradients))
    return {n: np.add(*(g[n] for g in gradients)) * share for n in gradients[0]}


def update(params: Params, gradient: Params) -> Params:
    """Return the next parameters."""
    return {n: leaf - np.float32(LEARNING_RATE) * gradient[n] for n, leaf in params.items()}


class DaskGraph:
    """Windows of unrolled steps, each one ``client.get``.

    Parameters
    ----------
    unrolled : int
        Steps a graph. The parameters come back to the client after each.
    """

    def __init__(self, client: Client, examples: Examples, unrolled: int) -> None:
        self._client, self.unrolled = client, unrolled
        shares = deal(Rows(examples.arrays()), REPLICAS, seed=ENTROPY)
        self._rows = [len(share) for share in shares]
        workers = sorted(client.scheduler_info()["workers"])[:REPLICAS]
        self._shares = [
            client.scatter([share], workers=[worker], hash=False)[0]
            for share, worker in zip(shares, workers, strict=True)
        ]

    def seconds(self, case: Case, steps: int) -> float:
        """Return the wall time of a step; ``steps`` is a multiple of ``unrolled``."""
        began = time.perf_counter()
        self.parameters(case, steps)
        return (time.perf_counter() - began) / steps

    def parameters(self, case: Case, steps: int) -> Params:
        """Return the parameters after some steps."""
        model = case.new_model()
        params: Params = model.init(seed=0)
        orders = [batch_order(n, rank, case.batch) for rank, n in enumerate(self._rows)]
        for start in range(0, steps, self.unrolled):
            stop = min(start + self.unrolled, steps)
            tasks, last = self._window(model, orders, params, start, stop)
            params = self._client.get(tasks, last)
        return params

    def close(self) -> None:
        """Let go of the data."""
        self._client.cancel(self._shares)

    def _window(
        self, model: Any, orders: list[Any], params: Params, start: int, stop: int
    ) -> tuple[dict[Any, Task], Any]:
        """Return the tasks of some steps, and the key of the parameters that they end with."""
        token = uuid.uuid4().hex[:8]
        tasks: dict[Any, Task] = {}

        def add(name: str, step: int, rank: int, function: Any, *inputs: Any) -> TaskRef:
            key = (f"{name}-{token}", step, rank)
            tasks[key] = Task(key, function, *inputs)
            return TaskRef(key)

        current: Any = add("start", start, 0, dict, params)
        for step in range(start, stop):
            gradients = []
            for rank, order in enumerate(orders):
                ((_, index),) = order.pieces(*divmod(step, order.batches()))
                batch = add("load", step, rank, take, self._shares[rank], index)
                gradients.append(add("gradient", step, rank, differentiate, model, current, batch))
            whole = add("mean", step, 0, mean, *gradients)
            current = add("update", step, 0, update, current, whole)
        return tasks, current.key
