"""Which executor runs a graph: what is refused at once, and what then runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from flowml.cluster_run import Asked, probe_here, run_on_cluster
from flowml.compiler.loose import shape_refusals
from flowml.compiler.stages import compile_graph
from flowml.dashboard.follow import finished
from flowml.errors import PlanError, raise_all
from flowml.events import Event, RunStarted
from flowml.execution import Execute
from flowml.plan import Plan
from flowml.progress import ProgressLine
from flowml.runtime.attach import leave_pool
from flowml.runtime.feeding import expected_steps
from flowml.runtime.interleaved import run_interleaved
from flowml.runtime.loose_plan import is_loose
from flowml.runtime.notes import tell_notes
from flowml.runtime.outcome import Order, Outcome
from flowml.runtime.serial import run_serial
from flowml.runtime.shipping import check_ships
from flowml.simulate.models import Compute, Faults, Network, Timed
from flowml.simulate.virtual import run_virtual

MadeUp = tuple[Compute | Timed, Network, Faults]
MADE_UP: MadeUp = (Compute(), Network(), Faults())
"""The cluster of a simulation where nobody describes another one."""


def execution_of(asked: Asked, made_up: MadeUp = MADE_UP) -> Execute:
    """Return what runs a graph, and notes what was asked.

    Raises
    ------
    PlanError
        What can be refused before a cluster is looked for.
    """
    execute = _executor(asked, made_up)

    def run(stop: Callable[[], bool]) -> Outcome:
        outcome = execute(stop)
        outcome.executor, outcome.order = asked.executor, asked.order
        return outcome

    return run


def dry_run_of(asked: Asked) -> Execute:
    """Return what checks pickling, shapes, dtypes and one step in this process."""
    plan = _local_plan(asked)

    def run(stop: Callable[[], bool]) -> Outcome:
        check_ships(plan)
        began = time.monotonic()
        probe_here(plan, asked.order)
        return Outcome(plan, seconds=time.monotonic() - began)

    return run


def told(line: ProgressLine, order: Order, execute: Execute) -> Execute:
    """Tell the end of a run, and take its line off the terminal however it ends."""

    def run(stop: Callable[[], bool]) -> Outcome:
        with line:
            outcome = execute(stop)
            order.tell(finished(outcome))
            return outcome

    return run


def heard_by_both(
    line: ProgressLine, on_event: Callable[[Event], None] | None
) -> Callable[[Event], None] | None:
    """Return a listener for a progress line and the user's own, whichever there are."""
    if on_event is None:
        return line if line.visible else None
    listener = on_event

    def tell(event: Event) -> None:
        line(event)
        listener(event)

    return tell


def _executor(asked: Asked, made_up: MadeUp) -> Execute:
    _check_length(asked)
    if asked.executor == "serial":
        plan = _local_plan(asked)
        return lambda stop: _serial(plan, asked.order, stop)
    if asked.executor == "simulated":
        return _simulation(asked, *made_up)
    # Tell what is wrong before a cluster is looked for.
    early = _local_plan(asked if asked.replicas else replace(asked, groups=None))
    if asked.executor == "tasks" and is_loose(early):
        raise PlanError(
            asked.graph.label,
            "the executor 'tasks' runs sync edges that carry whole values only: a Dask task waits "
            "for all its inputs",
            "stale, async or compressed edges, a quorum, a threshold, rows by key or a rule that "
            "looks at what a replica read",
            "Leave executor= out, or mark all edges .sync().",
        )
    leave_pool()
    return lambda stop: run_on_cluster(asked, stop)


def _check_length(asked: Asked) -> None:
    if asked.order.steps is None and asked.order.epochs is None:
        raise PlanError(
            asked.graph.label,
            "a run needs steps= or epochs=",
            "neither",
            "For example graph.run(epochs=10).",
        )


def _simulation(
    asked: Asked, compute: Compute | Timed, network: Network, faults: Faults
) -> Execute:
    plan = _local_plan(asked)
    raise_all(asked.graph.label, shape_refusals(asked.graph))
    layouts = probe_here(plan, asked.order)
    return lambda stop: run_virtual(plan, asked.order, layouts, compute, network, faults, stop)


def _serial(plan: Plan, order: Order, stop: Callable[[], bool]) -> Outcome:
    total = expected_steps(plan, order.seed, order.steps, order.epochs)
    order.tell(RunStarted("", plan.graph, "serial", plan.replicas, total))
    tell_notes(plan, order)
    if is_loose(plan):
        return run_interleaved(plan, order, probe_here(plan, order), stop)
    return run_serial(plan, order, stop)


def _local_plan(asked: Asked) -> Plan:
    return compile_graph(
        asked.graph, asked.replicas or 1, asked.groups, blas_threads=asked.blas_threads
    )
