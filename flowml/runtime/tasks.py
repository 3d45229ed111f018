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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import optree
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.task_spec import List, Task, TaskRef
from dask.typing import Key
from distributed import Client, Future

from flowml.actions import Until
from flowml.errors import FlowmlError
from flowml.events import Evaluated, Finished, RunStarted, WindowDone
from flowml.plan import Plan
from flowml.runtime._dask import gather_within
from flowml.runtime.blas import blas_threads
from flowml.runtime.feeding import steps_per_epoch, total_steps
from flowml.runtime.outcome import (
    HistoryBuilder,
    Order,
    Outcome,
    Tables,
    evaluation_due,
    history_block,
)
from flowml.runtime.runspec import without_sources
from flowml.runtime.serial import evaluated_table
from flowml.runtime.taskcalls import Shipment, evaluate_table, show, table_value
from flowml.runtime.taskdata import Placing, open_course
from flowml.runtime.tasklookout import Lookout
from flowml.runtime.taskvalues import Flat, Record, TableState
from flowml.runtime.taskwindow import (
    Carry,
    Course,
    Homes,
    Mark,
    TableKeys,
    Tasks,
    Window,
    homes,
    shipment_key,
    table_tasks,
)
from flowml.runtime.tablestate import make_instance
from flowml.types import Array

Emit: TypeAlias = Callable[[Course, int, int, Carry], Window]

WINDOW_SECONDS = 2.0
WINDOW_STEPS = 32
WINDOW_STEPS_UNTIL = 4
"""With an end in the graph: later steps are made in vain, and the tables of each are kept."""
WINDOW_TASKS = 2000
HISTORY_TASKS = 20_000
"""Tasks whose making Dask remembers before the carried state is scattered anew."""
RESCUE_SECONDS = 5.0


def run_tasks(
    plan: Plan,
    order: Order,
    client: Client,
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
    """
    there = sorted(client.nthreads())
    seats = tuple(workers or (there[rank % len(there)] for rank in range(plan.replicas)))
    run = TaskRun(plan, order, client, emit, should_stop, seats)
    with blas_threads(plan.blas_threads):  # of this process too: its workers may be threads of it
        try:
            run.begin()
            run.loop()
        except FlowmlError as error:
            run.fail(error)
        finally:
            run.release()
    return run.finished()


@dataclass
class TaskRun:
    """One run as its driver sees it."""

    plan: Plan
    order: Order
    client: Client
    emit: Emit
    should_stop: Callable[[], bool]
    workers: tuple[str, ...]
    """Address by rank."""
    suffix: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    outcome: Outcome = field(init=False)
    course: Course = field(init=False)
    carry: Carry = field(init=False)
    homes: Homes = field(init=False)

    def __post_init__(self) -> None:
        """Prepare to look and to place."""
        distinct = tuple(dict.fromkeys(self.workers))
        self.outcome = Outcome(self.plan)
        self.lookout = Lookout(self.client, self.plan, self.order, distinct)
        self.placing = Placing(self.client, self.workers, self.lookout.settle)
        self.history = HistoryBuilder()
        self.futures: dict[Key, Future] = {}
        self.good: dict[tuple[str, int], Key] = {}
        """Keys of the tables after the last committed step."""
        self.unsent: tuple[str, ...] = ()
        self.tasks_since_fresh = 0
        self.seconds_per_step = WINDOW_SECONDS
        self.tasks_per_step = 1

    # --- before the first step ----------------------------------------------------------------

    def begin(self) -> None:
        """Bring plan, data and tables to the workers."""
        self.order.tell(RunStarted(self.suffix, self.plan.graph, "tasks", self.plan.replicas,
                                   self.order.steps))
        shipment = shipment_key(self.suffix)
        order = replace(self.order, on_event=None)
        self.placing.put(
            {shipment: Shipment(without_sources(self.plan), order, self.suffix)},
            self.lookout.workers,
        )
        names = Course(self.plan, {}, {}, shipment, self.suffix)
        self.lookout.operators = {head: name for name, head in names.heads.items()}
        self.course = open_course(self.plan, self.order, self.placing, shipment, self.suffix)
        self.homes = homes(self.course, self.workers)
        tasks, self.carry = table_tasks(self.course)
        self.futures = self._submit(tasks, self.carry.keys())
        self.lookout.settle(self.futures.values())
        self.good = _shown(self.carry)

    def _submit(
        self, tasks: Tasks, outputs: Iterable[Key], place: Callable[[Key], list[str]] | None = None
    ) -> dict[Key, Future]:
        """Submit a graph as it is; Dask asks on its scheduler where each task belongs."""
        layer = MaterializedLayer(tasks, annotations={"workers": place or self.homes})
        graph = HighLevelGraph({f"flowml-{self.suffix}": layer}, {f"flowml-{self.suffix}": set()})
        keys = list(outputs)
        return dict(zip(keys, self.client.get(graph, keys, sync=False), strict=True))

    # --- windows ------------------------------------------------------------------------------

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

    def _window_end(self, last: int) -> int:
        """Choose where a window ends: in some seconds, and where someone looks."""
        start, ends = self.outcome.steps, any(
            isinstance(o.action, Until) for o in self.plan.steps
        )
        steps = min(
            WINDOW_STEPS_UNTIL if ends else WINDOW_STEPS,
            int(WINDOW_SECONDS / max(self.seconds_per_step, 1e-6)),
            WINDOW_TASKS // self.tasks_per_step,
        )
        looks = [s for s in self.order.snapshots if s > start]
        for operator in self.plan.evaluations:
            action: Any = operator.action
            every = action.every * (
                self.outcome.steps_per_epoch if action.unit == "epochs" else 1
            )
            looks.append((start // every + 1) * every)
        return min([last, start + max(1, steps), *looks])

    def _run_window(self, stop: int) -> bool:
        """Run one window and take what it leaves; return whether an end was reached."""
        start, since = self.outcome.steps, time.perf_counter()
        window = self.emit(self.course, start, stop, self.carry)
        made = self._submit(window.tasks, window.outputs())
        self.futures |= made
        self.lookout.wait(made.values())
        seconds = (time.perf_counter() - since) / (stop - start)
        self.seconds_per_step = max(seconds, self.seconds_per_step / 8)
        self.tasks_per_step = max(1, len(window.tasks) // (stop - start))
        for mark in window.marks:
            if self._take(mark, window, seconds):
                return True
        self.carry = window.carry
        self.tasks_since_fresh += len(window.tasks)
        self._forget()
        if self.tasks_since_fresh > HISTORY_TASKS:
            self._freshen()
        return False

    def _take(self, mark: Mark, window: Window, seconds: float) -> bool:
        """Commit the steps up to a mark; return whether an end was reached in them."""
        wanted = {mark.record, *mark.tables.values()}
        if mark.stop == window.stop:
            wanted |= window.carry.keys()
        error = self.lookout.error([self.futures[k] for k in wanted if k in self.futures])
        if error is not None:
            raise error
        record: Record = self.client.gather(self.futures[mark.record])
        self._write_history(mark, record.losses, seconds)
        self.good, self.unsent = dict(mark.tables), mark.unsent
        self.outcome.steps = self.lookout.step = mark.stop
        return record.ended

    def _write_history(self, mark: Mark, losses: Array, seconds: float) -> None:
        steps = range(mark.start, mark.stop)
        spent, waited = np.full(len(steps), seconds), np.zeros(len(steps))
        for rank in range(self.plan.replicas):
            self.history.add(history_block(steps, rank, losses[:, rank], spent, waited))
        known = losses[-1][np.isfinite(losses[-1])]
        loss = float(known.mean()) if len(known) else None
        self.order.tell(WindowDone(mark.stop - 1, seconds * len(steps), len(steps), loss))

    def _forget(self) -> None:
        """Let go of all but the carried state."""
        keep = self.carry.keys() | set(self.good.values())
        self.futures = {k: f for k, f in self.futures.items() if k in keep}

    def _freshen(self) -> None:
        """Scatter the carried state anew, so that Dask forgets how it was made."""
        old = [k for k in self.carry.keys() - set(self.carry.loads.values()) if k in self.futures]
        values = self.client.gather([self.futures[k] for k in old])
        names: dict[Key, Key] = {}
        step = self.outcome.steps
        before = self.placing.futures
        self.placing.futures = {}
        for number, (key, value) in enumerate(zip(old, values, strict=True)):
            assert isinstance(key, tuple)
            names[key] = (key[0], step, key[2], "fresh", number, step)
            self.placing.put({names[key]: value}, self.homes(key))
        fresh, self.placing.futures = self.placing.futures, before
        self.carry = _renamed(self.carry, names)
        self.good = _shown(self.carry)
        self.futures |= fresh
        self._forget()
        self.tasks_since_fresh = 0

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
        operator, head = self.plan.operator(name), self.course.heads[name]
        worker = self.workers[0]
        pieces = self.placing.evaluation(operator, head, worker)
        table = self.good[evaluated_table(self.plan, operator), 0]
        key = (head, step, 0)
        task = Task(key, evaluate_table, TaskRef(self.course.shipment), name, step,
                    TaskRef(table), List(*map(TaskRef, pieces)))
        future = self._submit({key: task}, [key], lambda _: [worker])[key]
        self.lookout.settle([future])
        found: dict[str, float] = self.client.gather(future)
        return found

    def _tables(self) -> Tables:
        """Fetch the tables of the last committed step, without the state of their rules."""
        tasks: Tasks = {}
        keys: dict[tuple[str, int], Key] = {}
        for (table, instance), key in self.good.items():
            name = (self.course.table_heads[table], self.outcome.steps, instance, "value")
            tasks[name] = Task(name, _alone, TaskRef(key))
            keys[table, instance] = name
        futures = self._submit(tasks, keys.values())
        self.lookout.settle(futures.values())
        found = self.client.gather([futures[k] for k in keys.values()])
        return self._by_name(dict(zip(keys, found, strict=True)))

    def _by_name(self, found: Mapping[tuple[str, int], Flat | TableState]) -> Tables:
        return {
            t.name: [optree.tree_map(np.array, table_value(found[t.name, i]))
                     for i in range(self.plan.instances(t.scope))]
            for t in self.plan.tables
        }

    # --- ends ---------------------------------------------------------------------------------

    def fail(self, error: FlowmlError) -> None:
        """Keep the error, and the tables of the last committed step if they can be had."""
        self.outcome.error, self.outcome.status = error, "failed"
        kept = [self.futures.get(key) for key in self.good.values()]
        if not kept or any(f is None for f in kept):
            return
        values = gather_within(self.client, kept, RESCUE_SECONDS)
        if values is not None:
            self.outcome.tables = self._by_name(dict(zip(self.good, values, strict=True)))
            return
        self.outcome.steps = 0
        self.outcome.tables = self._first_tables()

    def _first_tables(self) -> Tables:
        """Return the tables as they stood before step 0: all that a lost cluster leaves."""
        out: Tables = {}
        for table in self.plan.tables:
            made = [make_instance(self.plan, table, i, self.order.seed)
                    for i in range(self.plan.instances(table.scope))]
            out[table.name] = [optree.tree_map(np.array, m.view(m.current)) for m in made]
        return out

    def release(self) -> None:
        """Let Dask forget everything of this run."""
        for future in [*self.futures.values(), *self.placing.futures.values()]:
            future.release()
        self.futures, self.placing.futures = {}, {}

    def finished(self) -> Outcome:
        """Return what came of the run."""
        self.outcome.history = self.history.columns()
        self.outcome.unsent = self.unsent
        self.order.tell(Finished(self.outcome.status, self.outcome.steps, self.outcome.seconds))
        return self.outcome


def _shown(carry: Carry) -> dict[tuple[str, int], Key]:
    return {at: keys.shown for at, keys in carry.tables.items()}


def _alone(table: Flat | TableState) -> Flat:
    return show(table) if isinstance(table, TableState) else table


def _renamed(carry: Carry, names: Mapping[Key, Key]) -> Carry:
    def new(key: Key) -> Key:
        return names.get(key, key)

    return Carry(
        {at: TableKeys(new(k.state), new(k.shown)) for at, k in carry.tables.items()},
        {at: new(k) for at, k in carry.kept.items()},
        {at: new(k) for at, k in carry.held.items()},
        carry.loads,
    )
