"""A short measurement in this process: what the operators of a plan cost on this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from statistics import median
from time import perf_counter

from flowml.actions import Load
from flowml.compiler.stages import compile_graph
from flowml.data.stream import BatchStream
from flowml.graph import LogicalGraph
from flowml.plan import Plan, PlanOperator
from flowml.runtime.blas import blas_threads
from flowml.runtime.domain import Layouts
from flowml.runtime.feeding import loads, local_feed, open_stream
from flowml.runtime.inputs import Pattern
from flowml.runtime.outcome import Order
from flowml.runtime.probe import probe
from flowml.runtime.program import BODIES
from flowml.runtime.rank import Rank
from flowml.runtime.threads import thread_ranks

# Orders of magnitude of small programs on one 2-core machine; nothing here measures them on yours.
BARRIER_SECONDS = 10e-6
"""One barrier of two processes on one host: a message each way on a unix socket."""
MESSAGE_SECONDS = 0.85e-3
"""One exchange of 31 kB between workers over their own RPC."""
COPY_BYTES_PER_SECOND = 4e9
"""What one core reads and adds in shared memory."""
NETWORK_BYTES_PER_SECOND = 0.4e9
"""What an exchange of some megabytes over RPC carries."""

CALL_SECONDS = 15e-6
"""What one operator costs a rank however short its slice is."""

WARM_UP, REPEATS, PROBE_SECONDS = 2, 9, 0.4
LARGEST_FACTOR = 8
"""Batches that are measured as one; a larger total is extrapolated from so many."""


@dataclass(frozen=True)
class Measured:
    """What a step is made of, in seconds and bytes.

    Attributes
    ----------
    gradient_seconds : mapping of str to float
        Each operator on the batch of one replica, not only gradients.
    whole_seconds : mapping of str to float
        Each operator on the batches of all replicas as one; empty: so many times as long.
    layouts : mapping of (operator, output) to Layout
        Of what operators make; tables as (table, -1).
    barrier_seconds, message_seconds : float
        A barrier on one host; an exchange between two hosts.
    copy_bytes_per_second, network_bytes_per_second : float
    cores : int
        That the replicas share.
    """

    gradient_seconds: Mapping[str, float]
    whole_seconds: Mapping[str, float] = field(default_factory=dict)
    layouts: Layouts = field(default_factory=dict)
    barrier_seconds: float = BARRIER_SECONDS
    message_seconds: float = MESSAGE_SECONDS
    copy_bytes_per_second: float = COPY_BYTES_PER_SECOND
    network_bytes_per_second: float = NETWORK_BYTES_PER_SECOND
    cores: int = 1


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def measure(graph: LogicalGraph, replicas: int, *, threads: int = 1, seed: int = 0) -> Measured:
    """Run the operators of a graph a few times in this process, with the runtime's own code.

    Parameters
    ----------
    graph : LogicalGraph
    replicas : int
        Decides the share of a load without a batch size, and the batch of ``whole_seconds``.
    threads : int
        BLAS threads.

    Raises
    ------
    FlowmlError
        What the first step of a run would raise.

    Notes
    -----
    Takes up to a second beside reading the data. Nothing of it remains: operators are pure, and
    tables are copies.
    """
    alone = _every_step(compile_graph(graph, 1, 1, blas_threads=threads))
    layouts, seconds = _timed(alone, replicas, seed)
    factor = min(replicas, LARGEST_FACTOR)
    whole = seconds
    if replicas > 1:
        _, whole = _timed(_with_batches(alone, factor), max(1, replicas // factor), seed)
        whole = {name: spent * replicas / factor for name, spent in whole.items()}
    return Measured(seconds, whole, layouts, cores=usable_cores())


def _every_step(plan: Plan) -> Plan:
    """Return the plan with every edge delivering in every step, in one group."""
    operators = tuple(
        replace(o, inputs=tuple(replace(p, every=1) for p in o.inputs)) for o in plan.operators
    )
    return replace(plan, operators=operators)


def _with_batches(plan: Plan, factor: int) -> Plan:
    """Return the plan with batches ``factor`` times as large."""

    def larger(operator: PlanOperator) -> PlanOperator:
        action = operator.action
        if not isinstance(action, Load) or action.batch_size is None:
            return operator
        return replace(operator, action=replace(action, batch_size=action.batch_size * factor))

    return replace(plan, operators=tuple(larger(o) for o in plan.operators))


def _timed(plan: Plan, shares: int, seed: int) -> tuple[Layouts, dict[str, float]]:
    """Return layouts, and the median seconds of each operator on one share of the data."""
    streams: dict[str, BatchStream] = {}
    for operator in loads(plan):
        feed, parts = local_feed(operator, shares, seed)
        rank = next(r for r, order in enumerate(feed.orders) if order.batches())
        streams[operator.name] = open_stream(feed, rank, parts[rank], prefetch=False)
    try:
        layouts = probe(plan, {name: s.batch(0) for name, s in streams.items()}, seed)
        order = Order(1, None, seed=seed, on_nonfinite="ignore")
        (rank_state,) = thread_ranks(plan, layouts, order, [streams])
        with blas_threads(plan.blas_threads):
            return layouts, _repeated(rank_state)
    finally:
        for stream in streams.values():
            stream.close()


def _repeated(rank: Rank) -> dict[str, float]:
    acts = [(o.name, BODIES[o.kind](Pattern(rank, 0), o)) for o in rank.plan.steps]
    found: dict[str, list[float]] = {name: [] for name, _ in acts}
    until = perf_counter() + PROBE_SECONDS
    for step in range(WARM_UP + REPEATS):
        for name, act in acts:
            since = perf_counter()
            act(step)
            found[name].append(perf_counter() - since)
        for table in rank.plan.tables:
            rank.tables[table.name].commit(len(table.writes))
        if step >= WARM_UP and perf_counter() > until:
            break
    return {name: median(seconds[WARM_UP:] or seconds) for name, seconds in found.items()}
