"""From what was asked of a run to an executor on a cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from distributed import span

from flowml import configuration
from flowml.actions import Load
from flowml.compiler.crossing import step_bytes
from flowml.compiler.emit import emit
from flowml.compiler.place import Groups
from flowml.compiler.promises import resolve
from flowml.compiler.stages import compile_graph
from flowml.dashboard.card import card_of
from flowml.dashboard.follow import open_page
from flowml.errors import PlanError
from flowml.graph import LogicalGraph
from flowml.plan import Plan
from flowml.runtime.attach import Attached, Worker, attached
from flowml.runtime.domain import Layouts
from flowml.runtime.feeding import first_batch, loads
from flowml.runtime.notes import notes, tell_notes
from flowml.runtime.outcome import Order, Outcome
from flowml.runtime.probe import probe, timed_probe
from flowml.runtime.resident import Resident
from flowml.runtime.shipping import check_ships
from flowml.runtime.tasks import run_tasks


@dataclass
class PageLink:
    """Address of the page of a run, from when there is one."""

    link: str = ""


@dataclass(frozen=True)
class Asked:
    """What a user asked of a run on a cluster."""

    graph: LogicalGraph
    replicas: int | None
    groups: Groups
    blas_threads: int
    executor: str
    cluster: Any
    order: Order
    page: PageLink = field(default_factory=PageLink)
    """Filled in while the run goes on."""


def run_on_cluster(asked: Asked, should_stop: Callable[[], bool]) -> Outcome:
    """Find the cluster, compile for its workers, and run.

    Notes
    -----
    What can be checked without a worker is checked before a cluster is started.
    """
    early = compile_graph(
        asked.graph, asked.replicas or 1, asked.groups if asked.replicas else None
    )
    check_ships(early)
    layouts, step_seconds = None, 0.0
    if _all_dealt(early):
        layouts, step_seconds = timed_probe(
            early, _first_batches(early, asked.order), asked.order.seed
        )
    with attached(asked.cluster, asked.replicas) as found, found.client.as_current():
        workers = seat_workers(found, asked.replicas)
        plan = compile_graph(
            asked.graph,
            len(workers),
            asked.groups,
            hosts=[w.host for w in workers],
            blas_threads=asked.blas_threads,
        )
        tell_notes(plan, asked.order)
        addresses = [w.address for w in workers]

        def execute(order: Order) -> Outcome:
            if asked.executor == "tasks":
                return run_tasks(plan, order, found.client, emit, should_stop, workers=addresses)
            resident = Resident(
                plan,
                order,
                found.client,
                workers,
                str(configuration.read("transport")),
                float(configuration.read("window")),
                int(configuration.read("windows-ahead")),
                int(configuration.read("own-copies")),
                should_stop,
                step_seconds,
            )
            return resident.execute(layouts)

        with span("flowml", plan.graph):
            if not configuration.read("dashboard"):
                return execute(asked.order)
            card = card_of(
                asked.graph,
                resolve(asked.graph),
                step_bytes(plan, layouts or {}),
                asked.executor,
                addresses,
            )
            follower = open_page(found.client, card, asked.order)
            asked.page.link = follower.link
            return follower.follow(execute, notes(plan))


def seat_workers(found: Attached, replicas: int | None) -> tuple[Worker, ...]:
    """Return the worker of each rank: neighbours in rank are neighbours on a host."""
    workers = found.workers()
    if not workers:
        raise PlanError("cluster", "needs at least one running worker", "none")
    count = replicas or len(workers)
    used = workers[: min(count, len(workers))]
    return tuple(used[rank * len(used) // count] for rank in range(count))


def _all_dealt(plan: Plan) -> bool:
    return all(o.action.source.dealt for o in plan.steps if isinstance(o.action, Load))


def _first_batches(plan: Plan, order: Order) -> dict[str, tuple[Any, float]]:
    return {o.name: first_batch(o, plan.replicas, order.seed) for o in loads(plan)}


def probe_here(plan: Plan, order: Order) -> Layouts:
    """Try one step on one batch in this process; see :func:`flowml.runtime.probe.probe`."""
    return probe(plan, _first_batches(plan, order), order.seed)
