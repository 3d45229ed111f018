"""What runs on workers in Dask tasks, and in ``client.run``: short calls into the plugin."""

from __future__ import annotations

from typing import Any

import cloudpickle
from distributed import get_worker

from flowml.data.blocks import evaluation_blocks
from flowml.data.rows import Rows
from flowml.data.source import Partition, count_rows
from flowml.plan import PlanOperator
from flowml.runtime.activities import metered, tell_activities
from flowml.runtime.calls import contained
from flowml.runtime.evaluation import evaluate_source
from flowml.runtime.feeding import Feed, open_stream
from flowml.runtime.gang import Committed, Gang, Window
from flowml.runtime.host_hello import HostUnreachable
from flowml.runtime.runspec import RunSpec
from flowml.runtime.values import copied
from flowml.runtime.watch import Whereabouts
from flowml.runtime.worker_plugin import NAME, FlowWorker
from flowml.types import Pytree


def plugin() -> FlowWorker:
    """Return flowml's part of the worker that this task runs on."""
    found = get_worker().plugins[NAME]
    assert isinstance(found, FlowWorker)
    return found


def open_worker(run: str, transport: str) -> tuple[str, str]:
    """Listen for processes of the same host; return host key and address."""
    return plugin().open(run, transport)


def count_partition(operator: str, shipped: bytes) -> int:
    """Count the rows of a partition where they are not known."""
    with contained(operator):
        partition: Partition = cloudpickle.loads(shipped)
        return count_rows(partition)


def load_rank(run: str, operator: str, rank: int, *parts: Rows | bytes) -> tuple[int, ...]:
    """Give one rank its data; return the rows of each part that is in memory, else -1."""
    plugin().load(run, operator, rank, [_unpacked(p) for p in parts])
    return tuple(len(p) if isinstance(p, Rows) else -1 for p in parts)


def _unpacked(part: Rows | bytes) -> Rows | Partition:
    """Return rows that are in memory as they are, and a shipped partition as itself."""
    if isinstance(part, Rows):
        return part
    partition: Partition = cloudpickle.loads(part)
    return partition


def first_batch(run: str, operator: str, rank: int, feed: Feed) -> tuple[Any, float]:
    """Return a copy of a rank's first batch."""
    parts = plugin().parts(run, operator, rank)
    stream = open_stream(feed, rank, parts, prefetch=False)
    try:
        with contained(operator):
            content, examples = stream.batch(0)
            return copied(content), examples
    finally:
        stream.close()


def join_gang(shipped: bytes, *after: object) -> str:
    """Meet the other workers of a run; return "" or why this host cannot share memory."""
    spec: RunSpec = cloudpickle.loads(shipped)
    try:
        plugin().join(spec)
    except HostUnreachable as error:
        plugin().close_gang(spec.name)
        return str(error)
    return ""


def run_superstep_window(
    run: str,
    incarnation: int,
    number: int,
    start: int,
    stop: int,
    snapshot: bool,
    before: object = None,
) -> Window:
    """Run one window of steps of this worker's ranks."""
    here = plugin()
    gang = here.gang(run, incarnation)
    here.all_met(run)
    plan, before = gang.spec.plan, metered(gang)
    window = gang.run_window(number, start, stop, snapshot)
    tell_activities(plan, window, before, metered(gang))
    here.counts.add(plan.graph, window)
    return window


def take_snapshot(run: str, incarnation: int, step: int) -> dict[tuple[str, int], Pytree]:
    """Return the tables that this worker kept after a step."""
    return plugin().gang(run, incarnation).take_snapshot(step)


def current_tables(run: str, incarnation: int) -> dict[tuple[str, int], Pytree]:
    """Return the tables whose first rank is on this worker."""
    return plugin().gang(run, incarnation).tables()


def evaluate_table(
    operator: bytes,
    tables: dict[tuple[str, int], Pytree],
    table: str,
    step: int,
    *blocks: Rows | bytes,
) -> dict[str, float]:
    """Return the metrics of a table over a whole source."""
    found: PlanOperator = cloudpickle.loads(operator)
    return evaluate_source(found, tables[table, 0], step, evaluation_blocks(map(_unpacked, blocks)))


def request_stop(run: str, dask_worker: Any) -> None:
    """Ask the run to stop at the next barrier (in ``client.run``)."""
    gang = _gang(run, dask_worker)
    if gang is not None:
        gang.request_stop()


def is_here(run: str, dask_worker: Any) -> bool:
    """Answer, and tell whether the run is still known (in ``client.run``)."""
    return _gang(run, dask_worker) is not None


def committed_tables(run: str, dask_worker: Any) -> Committed:
    """Return the last committed tables of a worker's ranks (in ``client.run``)."""
    gang = _gang(run, dask_worker)
    return gang.committed() if gang is not None else {}


def whereabouts(run: str, worker: str, dask_worker: Any) -> Whereabouts | None:
    """Return where another worker was last seen from this one (in ``client.run``)."""
    gang = _gang(run, dask_worker)
    return gang.watch.whereabouts(worker) if gang is not None and gang.watch is not None else None


def _gang(run: str, dask_worker: Any) -> Gang | None:
    found = dask_worker.plugins.get(NAME)
    return None if found is None else found.gangs.get(run)
