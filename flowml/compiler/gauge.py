"""A short measurement: what the parts of a replica's step cost, in this process."""

from __future__ import annotations

from dataclasses import replace

from flowml.actions import Load
from flowml.compiler.measured import Measured
from flowml.compiler.own_pace import slack_of
from flowml.compiler.stages import compile_graph
from flowml.compiler.traffic import LONGEST_AVERAGE
from flowml.data.stream import BatchStream
from flowml.graph import LogicalGraph
from flowml.plan import Firing, Plan, PlanOperator
from flowml.runtime.blas import blas_threads
from flowml.runtime.cores import usable_cores
from flowml.runtime.domain import Layouts
from flowml.runtime.feeding import loads, local_feed, open_stream
from flowml.runtime.figures import Figures
from flowml.runtime.loose_plan import is_loose, split
from flowml.runtime.outcome import Order
from flowml.runtime.probe import probe
from flowml.runtime.program import cycle
from flowml.runtime.stopwatch import Timings, time_parts

PROBE_SECONDS = 0.4
LARGEST_FACTOR = 8
"""Batches that are measured as one; a larger total is extrapolated from so many."""


def measure(graph: LogicalGraph, replicas: int, *, threads: int = 1, seed: int = 0) -> Measured:
    """Run the parts of a replica's step a few times in this process, with the runtime's own code.

    Parameters
    ----------
    graph : LogicalGraph
    replicas : int
        Decides the share of a load without a batch size, and the batch of ``whole``.
    threads : int
        BLAS threads.

    Raises
    ------
    FlowmlError
        What the first step of a run would raise.

    Notes
    -----
    Takes up to a second beside reading the data. Nothing of it remains: operators are pure, and
    tables are copies. The replica is alone: several that are busy together are slower, which
    ``graph.measure(cluster=)`` finds out.
    """
    alone = one_replica(graph, threads)
    layouts, timings = _timed(alone, replicas, seed)
    factor = min(replicas, LARGEST_FACTOR)
    whole = {}
    if replicas > 1:
        whole = _timed(with_batches(alone, factor), max(1, replicas // factor), seed)[1].means()
    return Measured(
        timings.means(),
        whole,
        float(factor),
        (timings,),
        layouts,
        timings.payloads,
        replicas,
        Figures(cores=usable_cores()),
    )


def one_replica(graph: LogicalGraph, threads: int = 1) -> Plan:
    """Return the plan for one replica, in one group, with every edge delivering in every step.

    Notes
    -----
    Without quorums: one replica is all there are.
    """
    plan = compile_graph(graph, 1, 1, blas_threads=threads).every_step()
    operators = tuple(
        replace(o, inputs=tuple(replace(p, members=None) for p in o.inputs)) for o in plan.operators
    )
    return replace(plan, operators=operators)


def steps_between(plan: Plan) -> int:
    """Return the steps from one meeting of the replicas to the next; 0: they do not wait so."""
    if is_loose(plan):
        return 1 if slack_of(split(plan)) == 0 else 0
    firing, length = Firing(plan), min(cycle(plan), LONGEST_AVERAGE)
    meetings = sum(bool(firing.meeting(step)) for step in range(2 * length, 3 * length))
    return round(length / meetings) if meetings else 0


def with_batches(plan: Plan, factor: int) -> Plan:
    """Return the plan with batches ``factor`` times as large."""

    def larger(operator: PlanOperator) -> PlanOperator:
        action = operator.action
        if not isinstance(action, Load) or action.batch_size is None:
            return operator
        return replace(operator, action=replace(action, batch_size=action.batch_size * factor))

    return replace(plan, operators=tuple(larger(o) for o in plan.operators))


def _timed(plan: Plan, shares: int, seed: int) -> tuple[Layouts, Timings]:
    """Return layouts, and timings of the parts on one share of the data."""
    streams: dict[str, BatchStream] = {}
    for operator in loads(plan):
        feed, parts = local_feed(operator, shares, seed)
        rank = next(r for r, order in enumerate(feed.orders) if order.batches())
        streams[operator.name] = open_stream(feed, rank, parts[rank], prefetch=False)
    try:
        layouts = probe(plan, {name: s.batch(0) for name, s in streams.items()}, seed)
        order = Order(1, None, seed=seed, on_nonfinite="ignore")
        with blas_threads(plan.blas_threads):
            return layouts, time_parts(plan, layouts, streams, order, PROBE_SECONDS)
    finally:
        for stream in streams.values():
            stream.close()
