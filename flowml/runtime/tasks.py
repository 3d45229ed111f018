"""The ``tasks`` executor, driver side: windows of unrolled steps as Dask graphs.

Every operator of every step is one Dask task, so all of the dataflow can be seen in Dask's own
dashboard, and Dask places, moves, spills and recomputes the values. A window is submitted when the
one before has ended; of that only the carried state stays.

Dask remembers how each value was made as long as something depends on it, back to the first step.
So once in some thousand tasks the carried state is fetched and scattered anew, which ends its
history.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from dask.task_spec import List, Task, TaskRef
from dask.typing import Key

from flowml.actions import Until
from flowml.errors import FlowmlError, PlanError
from flowml.events import Evaluated, RunStarted, WindowDone
from flowml.plan import Plan
from flowml.runtime.blas import blas_threads
from flowml.runtime.feeding import steps_per_epoch, total_steps
from flowml.runtime.outcome import HistoryBuilder, Order, Outcome, evaluation_due, history_block
from flowml.runtime.runspec import without_sources
from flowml.runtime.serial import evaluated_table
from flowml.runtime.taskcalls import evaluate_table
from flowml.runtime.taskcluster import TaskCluster
from flowml.runtime.taskdata import Placing
from flowml.runtime.tasklookout import Lookout
from flowml.runtime.taskshipment import Shipment
from flowml.runtime.tasktables import by_name, fetch_tables, first_tables, set_down, shown
from flowml.runtime.taskvalues import Record
from flowml.runtime.taskwindow import (
    Carry,
    Course,
    DaskClient,
    Homes,
    Mark,
    Window,
    homes,
    shipment_key,
    table_tasks,
)
from flowml.types import Array

Emit: TypeAlias = Callable[[Course, int, int, Carry], Window]

WINDOW_SECONDS = 2.0
WINDOW_STEPS = 32
WINDOW_STEPS_UNTIL = 4
"""With an end in the graph: later steps are made in vain, and the tables of each are kept."""
WINDOW_TASKS = 2000
LARGEST_GROWTH = 8
"""How many times the steps of the window before, at most."""
REMEMBERED_TASKS = 20_000
"""Tasks whose making Dask remembers before the carried state is scattered anew."""
RESCUE_SECONDS = 5.0
"""How long a cluster in trouble may take to give the last tables."""


def run_tasks(
    plan: Plan,
    order: Order,
    client: DaskClient,
    emit: Emit,
    should_stop: Callable[[], bool] = lambda: False,
    *,
    workers: Sequence[str] | None = None,
) -> Outcome:
    """Run a plan with one Dask task for each operator, step and instance.

    Parameters
    ----------
    emit : callable
        ``flowml.compiler.emit.emit``: the runtime does not know the compiler.
    should_stop : callable
        Asked between windows.
    workers : sequence of str, optional
        Address of each rank's worker; the n-th rank on worker n modulo their number if left out.

    Returns
    -------
    Outcome
        With ``error`` set if the run failed; its tables are then those of the last step that
        could be saved, whose number is ``steps``.

    Raises
    ------
    PlanError
        If the cluster has no worker.
    """
    there = sorted(client.nthreads())
    if not there:
        raise PlanError("cluster", "needs at least one worker", "none")
    seats = tuple(workers or (there[rank % len(there)] for rank in range(plan.replicas)))
    run = TaskRun(plan, order, client, emit, should_stop, seats)
    with blas_threads(plan.blas_threads):  # of this process too: its workers may be threads of it
        try:
            run.begin()
            run.loop()
        except FlowmlError as error:
            run.fail(error)
        finally:
            outcome = run.finish()
    return outcome


@dataclass
class TaskRun:
    """One run as its driver sees it."""

    plan: Plan
    order: Order
    client: DaskClient
    emit: Emit
    should_stop: Callable[[], bool]
    workers: tuple[str, ...]
    """Address by rank."""
    outcome: Outcome = field(init=False)
    course: Course = field(init=False)
    homes: Homes = field(init=False)
    carry: Carry = field(init=False)

    def __post_init__(self) -> None:
        """Name the run and prepare to look after it."""
        self.suffix = uuid.uuid4().hex[:8]
        distinct = tuple(dict.fromkeys(self.workers))
        self.lookout = Lookout(self.client, self.plan, self.order, distinct)
        self.cluster = TaskCluster(self.client, self.lookout, f"flowml-{self.suffix}")
        self.placing = Placing(self.cluster, self.workers)
        self.outcome = Outcome(self.plan, workers=self.workers)
        self.history = HistoryBuilder()
        self.good: dict[tuple[str, int], Key] = {}
        """Keys of the tables after the last committed step."""
        self.remembered_tasks = 0
        self.seconds_per_step = WINDOW_SECONDS
        self.tasks_per_step = 1
        self.ends = any(isinstance(o.action, Until) for o in self.plan.steps)

    def begin(self) -> None:
        """Bring plan, data and tables to the workers."""
        plan, order = self.plan, self.order
        order.tell(RunStarted(self.suffix, plan.graph, "tasks", plan.replicas, order.steps))
        shipment = shipment_key(self.suffix)
        contents = Shipment(without_sources(plan), replace(order, on_event=None), self.suffix)
        self.cluster.put({shipment: contents}, self.lookout.workers)
        names = Course(plan, {}, {}, shipment, self.suffix)
        heads = [*names.heads.items(), *names.table_heads.items()]
        self.lookout.operators = {head: name for name, head in heads}
        feeds, shares = self.placing.feed(plan, order, names.heads)
        self.course = Course(plan, feeds, shares, shipment, self.suffix)
        self.homes = homes(self.course, self.workers)
        self.placed = set(self.cluster.futures)
        tasks, self.carry = table_tasks(self.course)
        self.lookout.settle(self.cluster.submit(tasks, self.carry.keys(), self.homes))
        self.good = shown(self.carry)

    def loop(self) -> None:
        """Run windows of steps until an end."""
        feeds = list(self.course.feeds.values())
        outcome, last = self.outcome, total_steps(feeds, self.order.steps, self.order.epochs)
        outcome.steps_per_epoch = steps_per_epoch(feeds)
        outcome.dropped_rows = {f.name: f.dropped() for f in feeds}
        began = time.monotonic()
        while outcome.steps < last and outcome.status == "done":
            ended = self._run_window(self._window_end(last))
            outcome.seconds = time.monotonic() - began
            late = self.order.max_seconds is not None and outcome.seconds >= self.order.max_seconds
            if ended or late or self.should_stop():
                outcome.status = "until" if ended else "stopped"
            self._look_at_tables(ends=outcome.steps == last or outcome.status != "done")
        outcome.tables = self._tables()

    # --- windows ------------------------------------------------------------------------------

    def _window_end(self, last: int) -> int:
        """Choose where a window ends: in some seconds, and where someone looks."""
        start = self.outcome.steps
        steps = min(
            WINDOW_STEPS_UNTIL if self.ends else WINDOW_STEPS,
            int(WINDOW_SECONDS / self.seconds_per_step),
            WINDOW_TASKS // self.tasks_per_step,
        )
        looks = [s for s in self.order.snapshots if s > start]
        for operator in self.plan.evaluations:
            action: Any = operator.action
            unit = self.outcome.steps_per_epoch if action.unit == "epochs" else 1
            looks.append((start // (action.every * unit) + 1) * action.every * unit)
        return min([last, start + max(1, steps), *looks])

    def _run_window(self, stop: int) -> bool:
        """Run one window and take what it leaves; return whether an end was reached."""
        start, since = self.outcome.steps, time.perf_counter()
        window = self.emit(self.course, start, stop, self.carry)
        futures = self.cluster.submit(window.tasks, window.outputs(), self.homes)
        self.lookout.wait(futures)
        seconds = (time.perf_counter() - since) / (stop - start)
        for mark in window.marks:
            if self._take(mark, window, seconds):
                return True
        self.seconds_per_step = max(seconds, self.seconds_per_step / LARGEST_GROWTH)
        self.tasks_per_step = max(1, len(window.tasks) // (stop - start))
        self.carry = window.carry
        self.remembered_tasks += len(window.tasks)
        if self.remembered_tasks > REMEMBERED_TASKS:
            self.carry, self.remembered_tasks = (
                set_down(self.cluster, self.carry, self.homes, stop),
                0,
            )
            self.good = shown(self.carry)
        self.cluster.keep(self.placed | self.carry.keys() | set(self.good.values()))
        return False

    def _take(self, mark: Mark, window: Window, seconds: float) -> bool:
        """Commit the steps up to a mark; return whether an end was reached in them.

        Only what these steps made counts: a later step of the window may have failed.
        """
        wanted = {mark.record, *mark.tables.values()}
        if mark.stop == window.stop:
            wanted |= window.carry.keys()
        self.lookout.settle(self.cluster.futures[key] for key in wanted)
        record: Record = self.cluster.values([mark.record])[0]
        since = self.outcome.seconds + seconds * (mark.start - window.start)
        self._write_history(mark, record.losses, seconds, since)
        self.good, self.outcome.unsent = dict(mark.tables), mark.unsent
        self.outcome.steps = self.lookout.step = mark.stop
        return record.ended

    def _write_history(self, mark: Mark, losses: Array, seconds: float, since: float) -> None:
        steps = range(mark.start, mark.stop)
        spent, waited = np.full(len(steps), seconds), np.zeros(len(steps))
        for rank in range(self.plan.replicas):
            self.history.add(history_block(steps, rank, losses[:, rank], spent, waited), since)
        known = losses[-1][np.isfinite(losses[-1])]
        loss = float(known.mean()) if len(known) else None
        self.order.tell(WindowDone(mark.stop - 1, seconds * len(steps), len(steps), loss))

    # --- tables -------------------------------------------------------------------------------

    def _look_at_tables(self, *, ends: bool) -> None:
        """Keep a snapshot and make the evaluations that are due."""
        step = self.outcome.steps
        if step in self.order.snapshots:
            self.outcome.snapshots[step] = self._tables()
        for name in evaluation_due(self.plan, step, self.outcome.steps_per_epoch, ends):
            metrics = self._evaluate(name, step)
            self.outcome.metrics.append({"step": step, "name": name, **metrics})
            self.order.tell(Evaluated(step=step, name=name, metrics=metrics))

    def _evaluate(self, name: str, step: int) -> dict[str, float]:
        """Evaluate one table on the worker of rank 0, where the source of the evaluation stays."""
        operator, head, worker = self.plan.operator(name), self.course.heads[name], self.workers[0]
        pieces = self.placing.evaluation(operator, head, worker)
        self.placed.update(pieces)
        table = self.good[evaluated_table(self.plan, operator), 0]
        key = (head, step, 0)
        task = Task(
            key,
            evaluate_table,
            TaskRef(self.course.shipment),
            name,
            step,
            TaskRef(table),
            List(*map(TaskRef, pieces)),
        )
        found: dict[str, float] = self.cluster.fetch({key: task}, self.homes)[0]
        return found

    def _tables(self) -> Any:
        return fetch_tables(self.cluster, self.course, self.homes, self.good, self.outcome.steps)

    # --- ends ---------------------------------------------------------------------------------

    def fail(self, error: FlowmlError) -> None:
        """Keep the error, and the tables of the last committed step if they can be had."""
        outcome = self.outcome
        outcome.error, outcome.status = error, "failed"
        if not self.good:
            return
        found = self.cluster.rescue(list(self.good.values()), RESCUE_SECONDS)
        if found is not None:
            outcome.tables = by_name(self.plan, dict(zip(self.good, found, strict=True)))
        else:
            outcome.steps, outcome.tables = 0, first_tables(self.plan, self.order.seed)

    def finish(self) -> Outcome:
        """Let Dask forget everything of this run, and return what came of it."""
        self.cluster.keep(())
        self.outcome.history = self.history.columns()
        return self.outcome
