"""What else holds a table for others on Dask, or on Ray: a request pulls, and another one pushes.

Each holds the table in a process of its own and is called from the processes in which flowml's
replicas run. What is pushed depends on what was pulled, so the two cannot be one request.
"""

from __future__ import annotations

import time
from importlib.util import find_spec
from typing import Any

import numpy as np
from distributed import Client
from distributed.protocol import to_serialize
from table_case import TURNS, Case, Times, check, key_sets, pooled

from flowml.types import Array

PULL, PUSH = "flowml_benchmark_pull", "flowml_benchmark_push"
WARM_STEPS = 3


class Table:
    """A table that adds what it is sent and answers with what it has."""

    def __init__(self, case: Case) -> None:
        self._table = case.fresh()

    def pull(self, keys: Array | None = None) -> Array:
        """Return a copy of a table, or of its rows."""
        return self._table.copy() if keys is None else self._table[keys]

    def push(self, value: Array, keys: Array | None = None) -> None:
        """Add to a table, or to its rows."""
        if keys is None:
            self._table += value
        else:
            self._table[keys] += value

    def total(self) -> float:
        """Return the sum."""
        return float(self._table.sum(dtype=np.float64))


def prepared(case: Case, rank: int) -> Array:
    """Make ready what steps send; return their keys."""
    _values[case] = case.value()
    return key_sets(rank)


def arguments(case: Case, step: int, sets: Array) -> tuple[Array, tuple[Array, ...]]:
    """Return what a step pushes, and its keys if it has some.

    Notes
    -----
    Steps before the first one are to warm up; their times are overwritten.
    """
    return _values[case], () if case.kind == "dense" else (sets[step % TURNS],)


_values: dict[Case, Array] = {}


# -- a Dask actor --------------------------------------------------------------------------------


class Actor:
    """A Dask actor on a worker of its own."""

    def __init__(self, client: Client, workers: list[str], server: str) -> None:
        self._client, self._workers, self._server = client, workers, server

    def seconds(self, case: Case, replicas: int, steps: int) -> Times:
        """Return the seconds of a step."""
        table = self._client.submit(Table, case, actor=True, workers=[self._server], pure=False)
        tasks = [
            self._client.submit(call_actor, table, case, rank, steps, workers=[worker], pure=False)
            for rank, worker in enumerate(self._workers[:replicas])
        ]
        found = pooled(self._client.gather(tasks))
        check(case, replicas * (steps + WARM_STEPS), table.result().total().result())
        return found


def call_actor(table: Any, case: Case, rank: int, steps: int) -> Array:
    """Return the seconds of each step; called in a task on a worker."""
    sets, seconds = prepared(case, rank), np.zeros(steps)
    for step in range(-WARM_STEPS, steps):
        began = time.perf_counter()
        value, keys = arguments(case, step, sets)
        table.pull(*keys).result()
        table.push(value, *keys).result()
        seconds[step] = time.perf_counter() - began
    return seconds


# -- worker.rpc ----------------------------------------------------------------------------------


class Rpc:
    """A handler on a worker, called over ``worker.rpc`` from the event loops of others."""

    def __init__(self, client: Client, workers: list[str], server: str) -> None:
        self._client, self._workers, self._server = client, workers, server

    def seconds(self, case: Case, replicas: int, steps: int) -> Times:
        """Return the seconds of a step."""
        self._client.run(serve, case, workers=[self._server])
        ranks = {worker: rank for rank, worker in enumerate(self._workers[:replicas])}
        found = self._client.run(call_rpc, self._server, case, ranks, steps, workers=list(ranks))
        total = self._client.run(stop_serving, workers=[self._server])[self._server]
        check(case, replicas * (steps + WARM_STEPS), total)
        return pooled(list(found.values()))


def serve(case: Case, dask_worker: Any) -> None:
    """Let a worker hold a table."""
    table = Table(case)

    async def pull(keys: Array | None = None) -> Any:
        return to_serialize(table.pull(keys))

    async def push(value: Array, keys: Array | None = None) -> None:
        table.push(value, keys)

    dask_worker.handlers[PULL], dask_worker.handlers[PUSH] = pull, push
    dask_worker.flowml_benchmark_table = table


def stop_serving(dask_worker: Any) -> float:
    """Let a worker hold a table no longer; return its sum."""
    del dask_worker.handlers[PULL], dask_worker.handlers[PUSH]
    table: Table = dask_worker.__dict__.pop("flowml_benchmark_table")
    return table.total()


async def call_rpc(
    server: str, case: Case, ranks: dict[str, int], steps: int, dask_worker: Any
) -> Array:
    """Return the seconds of each step; runs on the event loop of a worker."""
    rank = ranks[dask_worker.address]
    sets, seconds = prepared(case, rank), np.zeros(steps)
    there = dask_worker.rpc(server)
    pull, push = getattr(there, PULL), getattr(there, PUSH)
    for step in range(-WARM_STEPS, steps):
        began = time.perf_counter()
        value, keys = arguments(case, step, sets)
        named = {"keys": to_serialize(keys[0])} if keys else {}
        await pull(**named)
        await push(value=to_serialize(value), **named)
        seconds[step] = time.perf_counter() - began
    return seconds


# -- a Ray actor ---------------------------------------------------------------------------------


def missing_ray() -> str:
    """Return why there is no Ray, or ""."""
    return "" if find_spec("ray") else "ray is not installed"


class Ray:
    """A Ray actor, called from others; Ray starts processes of its own."""

    def __init__(self, replicas: int) -> None:
        import ray  # only here, where it is known to be installed

        self._ray = ray
        ray.init(num_cpus=replicas + 1, include_dashboard=False, log_to_driver=False)

    def seconds(self, case: Case, replicas: int, steps: int) -> Times:
        """Return the seconds of a step."""
        ray = self._ray
        table = ray.remote(Table).remote(case)
        callers = [ray.remote(RayCaller).remote(table) for _ in range(replicas)]
        calls = [caller.call.remote(case, rank, steps) for rank, caller in enumerate(callers)]
        found = pooled(ray.get(calls))
        check(case, replicas * (steps + WARM_STEPS), ray.get(table.total.remote()))
        return found

    def close(self) -> None:
        """End Ray's processes."""
        self._ray.shutdown()


class RayCaller:
    """A process that calls a Ray actor."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def call(self, case: Case, rank: int, steps: int) -> Array:
        """Return the seconds of each step."""
        import ray

        sets, seconds = prepared(case, rank), np.zeros(steps)
        for step in range(-WARM_STEPS, steps):
            began = time.perf_counter()
            value, keys = arguments(case, step, sets)
            ray.get(self._table.pull.remote(*keys))
            ray.get(self._table.push.remote(value, *keys))
            seconds[step] = time.perf_counter() - began
        return seconds
