"""The resident executor, driver side: windows of steps on a gang of workers.

The driver places the data, lets the workers meet, and submits thin window tasks two ahead; between
windows it looks at evaluations, deadlines and lost workers. Everything that moves in a step moves
between the workers themselves.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from distributed import Client, Future, wait

from flowml.errors import FlowmlError, OperatorError, PlanError, WorkerLostError
from flowml.events import Evaluated, RunStarted, WindowDone
from flowml.plan import Plan
from flowml.protocol.failures import Aborted, PeerLost
from flowml.protocol.roster import Roster, Seat
from flowml.runtime import remote
from flowml.runtime.attach import Worker
from flowml.runtime.board import Board
from flowml.runtime.domain import Layouts, map_memory
from flowml.runtime.feeding import Feed, steps_per_epoch, total_steps
from flowml.runtime.gang import Window, first_cause
from flowml.runtime.outcome import HistoryBuilder, Order, Outcome, evaluation_due
from flowml.runtime.placing import Placement, evaluation_data, place_data
from flowml.runtime.probe import probe
from flowml.runtime.runspec import RunSpec, without_sources
from flowml.runtime.serial import evaluated_table
from flowml.runtime.shipping import ship_plan

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
VERDICT_SECONDS = 3.0
"""How long the driver waits for the workers that remain to say what happened."""
FIRST_WINDOW_STEPS = 8
LARGEST_GROWTH = 8
PAUSE_SHARE = 0.8
"""Dask pauses a worker whose memory is fuller than this share of its limit."""


@dataclass
class Resident:
    """One run as its driver sees it."""

    plan: Plan
    order: Order
    client: Client
    workers: tuple[Worker, ...]
    """The worker of each rank."""
    transport: str
    window_seconds: float
    windows_ahead: int
    should_stop: Callable[[], bool]
    run: bytes = field(default_factory=lambda: uuid.uuid4().bytes)
    incarnation: int = 0
    outcome: Outcome = field(init=False)
    spec: RunSpec | None = None

    def __post_init__(self) -> None:
        """Name the run."""
        name = self.run.hex()
        addresses = tuple(w.address for w in self.workers)
        self.placement = Placement(name, addresses, name[:7] + "0")
        self.outcome = Outcome(self.plan)
        self.history = HistoryBuilder()
        self.steps_per_second = 0.0

    # -- before the first step ----------------------------------------------------------------

    def execute(self, layouts: Layouts | None) -> Outcome:
        """Run it all.

        Parameters
        ----------
        layouts : mapping or None
            From a probe in this process; None where the data are on the workers only.
        """
        try:
            self._admit()
            addresses = self._open()
            feeds, loading = place_data(self.plan, self.order, self.client, self.placement)
            self._finish(loading, "load")
            layouts = layouts or self._probe(feeds)
            self._check_memory(layouts)
            self._join(feeds, layouts, addresses)
            self._loop(list(feeds.values()))
        except FlowmlError as error:
            self._fail(error)
        finally:
            self._close()
        self.outcome.history = self.history.columns()
        return self.outcome

    def _ask(self, request: str, **message: Any) -> dict[str, Any]:
        try:
            reply = self.client.sync(getattr(self.client.scheduler, request), **message)
        except (OSError, TimeoutError) as error:
            raise WorkerLostError("scheduler", "must answer", str(error), "Is the cluster still "
                                  "running?", kind="scheduler", worker="") from error
        if reply is None:
            raise PlanError("scheduler", "must have flowml's plugin", "none", "It was restarted: "
                            "run again with a new client.")
        found: dict[str, Any] = reply
        return found

    def _admit(self) -> None:
        """Wait for a slot on every worker; say who holds them."""
        name = self.placement.run
        reply = self._ask("flowml_admit", run=name, client=self.client.id,
                          workers=list(self.placement.distinct), name=self.plan.graph)
        if reply["status"] == "refused":
            raise PlanError("cluster", reply["message"])
        told = False
        while reply["status"] == "queued" and not self.should_stop():
            if not told:
                logger.warning("graph %r %s", self.plan.graph, reply["message"])
                told = True
            time.sleep(POLL_SECONDS)
            reply = self._ask("flowml_standing", run=name)
        self.order.tell(RunStarted(name, self.plan.graph, "resident", self.plan.replicas,
                                   self.order.steps))

    def _submit(self, kind: str, name: str, worker: str, number: int, function: Any,
                *inputs: Any, priority: int = 0) -> Future:
        return self.client.submit(
            function, *inputs, key=self.placement.key(kind, name, number, worker),
            workers=[worker], pure=False, priority=priority,
        )

    def _open(self) -> dict[str, tuple[str, str]]:
        name = self.placement.run
        tasks = [
            self._submit("join", "open", w, 0, remote.open_worker, name, self.transport)
            for w in self.placement.distinct
        ]
        return dict(zip(self.placement.distinct, self._finish(tasks, "join"), strict=True))

    def _probe(self, feeds: dict[str, Feed]) -> Layouts:
        """Fetch one batch of each load and try a step on it here."""
        batches = {}
        for number, (name, feed) in enumerate(feeds.items()):
            rank = next(r for r, o in enumerate(feed.orders) if o.batches())
            task = self._submit("load", name, self.placement.workers[rank], 1 << 30 | number,
                                remote.first_batch, self.placement.run, name, rank, feed)
            batches[name] = self._finish([task], name)[0]
        return probe(self.plan, batches, self.order.seed)

    def _check_memory(self, layouts: Layouts) -> None:
        """Refuse a run whose shared memory would make Dask pause a worker."""
        roster = Roster.seat(self.run, 0, (
            Seat(r, w.address, w.host) for r, w in enumerate(self.workers)))
        spec = RunSpec(self.plan, layouts, self.order, {}, roster, {})
        for worker in self.workers:
            domain = spec.domain_of(worker.address)
            board = Board.nbytes(self.plan.replicas, len(roster.workers))
            needed = map_memory(self.plan, layouts, domain, board).nbytes
            allowed = int(worker.memory_limit * PAUSE_SHARE)
            if worker.memory_limit and needed > allowed:
                raise PlanError(
                    f"worker {worker.address}", f"needs {needed / 2**20:,.0f} MiB of shared "
                    "memory, which every process of a host counts as its own",
                    f"{allowed / 2**20:,.0f} MiB before Dask pauses it",
                    "Use fewer replicas a host, or workers with more memory.",
                )

    def _join(self, feeds: dict[str, Feed], layouts: Layouts,
              addresses: dict[str, tuple[str, str]]) -> None:
        """Let the workers meet; where a host cannot share memory, by RPC."""
        seats = tuple(
            Seat(rank, worker, addresses[worker][0])
            for rank, worker in enumerate(self.placement.workers)
        )
        roster = Roster.seat(self.run, self.incarnation, seats)
        plan = without_sources(self.plan)
        order = replace(self.order, on_event=None)
        while True:
            self.spec = RunSpec(plan, layouts, order, feeds, roster,
                                {w: a for w, (_, a) in addresses.items()})
            shipped = self.client.scatter(
                ship_plan(self.spec, self.plan), hash=False, broadcast=True)
            tasks = [
                self._submit("join", "gang", w, self.incarnation, remote.join_gang, shipped)
                for w in self.placement.distinct
            ]
            refusals = dict(zip(self.placement.distinct, self._finish(tasks, "join"), strict=True))
            unlinked = {roster.domain(w) for w, why in refusals.items() if why}
            if not unlinked:
                return
            for domain in unlinked:
                roster = roster.split(domain)
            self.incarnation += 1
            roster = replace(roster, incarnation=self.incarnation)

    # -- windows ------------------------------------------------------------------------------

    def _loop(self, feeds: list[Feed]) -> None:
        last = total_steps(feeds, self.order.steps, self.order.epochs)
        epoch = steps_per_epoch(feeds)
        self.outcome.steps_per_epoch = epoch
        self.outcome.dropped_rows = {f.name: f.dropped() for f in feeds}
        began = time.monotonic()
        pending: deque[tuple[int, int, int, list[Future]]] = deque()
        submitted, number, stopping = 0, 0, False
        while submitted < last or pending:
            while submitted < last and len(pending) < self.windows_ahead and not stopping:
                stop = self._window_end(submitted, last, epoch)
                pending.append((number, submitted, stop,
                                self._submit_window(number, submitted, stop, epoch, last,
                                                    pending)))
                submitted, number = stop, number + 1
            if not pending:
                break
            _, start, stop, futures = pending[0]
            stopping = self._await_window(futures, began, stopping)
            windows = self._finish(futures, "superstep")
            pending.popleft()
            if self._take(windows, start, stop, last, epoch):
                break
        self.outcome.seconds = time.monotonic() - began
        self._collect()
        self._evaluate(self.outcome.steps, ends=True)

    def _window_end(self, start: int, last: int, epoch: int) -> int:
        """Choose where a window ends: about a second later, and where someone looks."""
        wanted = int(self.steps_per_second * self.window_seconds) or FIRST_WINDOW_STEPS
        stop = min(last, start + max(1, wanted))
        looks = [s for s in self.order.snapshots if start < s <= stop]
        for operator in self.plan.evaluations:
            action: Any = operator.action
            every = action.every * (epoch if action.unit == "epochs" else 1)
            looks.append((start // every + 1) * every)
        return min([stop, *looks])

    def _looked_at(self, step: int, last: int, epoch: int) -> bool:
        return step in self.order.snapshots or (
            step < last and bool(evaluation_due(self.plan, step, epoch, last=False)))

    def _submit_window(self, number: int, start: int, stop: int, epoch: int, last: int,
                       pending: deque[tuple[int, int, int, list[Future]]]) -> list[Future]:
        before = pending[-1][3] if pending else [None] * len(self.placement.distinct)
        snapshot = self._looked_at(stop, last, epoch)
        names = ".".join(o.name for o in self.plan.steps)[:60]
        return [
            self._submit("superstep", f"[{names}]", w, number, remote.run_superstep_window,
                         self.placement.run, self.incarnation, number, start, stop, snapshot, b)
            for w, b in zip(self.placement.distinct, before, strict=True)
        ]

    def _await_window(self, futures: list[Future], began: float, stopping: bool) -> bool:
        """Wait for a window, looking for lost workers and reasons to stop."""
        limit = self.order.max_seconds
        while not _settled(futures):
            late = limit is not None and time.monotonic() - began >= limit
            if not stopping and (late or self.should_stop()):
                stopping = True
                self._on_workers(remote.request_stop, self.placement.workers[:1])
            self._check_lost(futures, "superstep")
        if not stopping and limit is not None and time.monotonic() - began >= limit:
            stopping = True
            self._on_workers(remote.request_stop, self.placement.workers[:1])
        return stopping or self.should_stop()

    def _take(self, windows: list[Window], start: int, stop: int, last: int, epoch: int) -> bool:
        """Record a window; return whether the run has ended in it."""
        records = [r for w in windows for _, r in w.records]
        step = records[0].steps
        self.outcome.steps = step
        for record in records:
            self.history.add(record.history)
        seconds = max((w.seconds for w in windows), default=0.0)
        if step > start and seconds > 0:
            rate = (step - start) / seconds
            cap = self.steps_per_second * LARGEST_GROWTH or FIRST_WINDOW_STEPS * LARGEST_GROWTH
            self.steps_per_second = min(rate, cap)
        loss = records[0].history["loss"]
        self.order.tell(WindowDone(step, seconds, max(step - start, 1),
                                   float(loss[-1]) if len(loss) else None))
        stopped = any(r.stopped for r in records)
        if stopped or step < stop:
            self.outcome.status = "until" if any(r.ended for r in records) else "stopped"
            return True
        if self._looked_at(stop, last, epoch):
            self._snapshot(stop)
        return False

    def _snapshot(self, step: int) -> None:
        tasks = [
            self._submit("snapshot", "tables", w, step, remote.take_snapshot, self.placement.run,
                         self.incarnation, step, priority=10)
            for w in self.placement.distinct
        ]
        found: dict[tuple[str, int], Any] = {}
        for part in self._finish(tasks, "snapshot"):
            found |= part
        if step in self.order.snapshots:
            self.outcome.snapshots[step] = _by_table(self.plan, found)
        self._evaluate(step, ends=False, tables=found)

    def _collect(self) -> None:
        tasks = [
            self._submit("snapshot", "tables", w, -1, remote.current_tables, self.placement.run,
                         self.incarnation)
            for w in self.placement.distinct
        ]
        found: dict[tuple[str, int], Any] = {}
        for part in self._finish(tasks, "snapshot"):
            found |= part
        self.outcome.tables = _by_table(self.plan, found)
        if self.outcome.steps in self.order.snapshots:
            self.outcome.snapshots[self.outcome.steps] = self.outcome.tables

    def _evaluate(self, step: int, *, ends: bool,
                  tables: dict[tuple[str, int], Any] | None = None) -> None:
        worker = self.placement.workers[0]
        for name in evaluation_due(self.plan, step, self.outcome.steps_per_epoch, ends):
            operator = self.plan.operator(name)
            table = evaluated_table(self.plan, operator)
            value = self.outcome.tables[table][0] if tables is None else tables[table, 0]
            alone = replace(self.plan, operators=(operator,))
            shipped = ship_plan(without_sources(alone).operators[0], alone)
            blocks = evaluation_data(operator, self.client, worker)
            task = self._submit("evaluate", name, worker, step, remote.evaluate_table, shipped,
                                {(table, 0): value}, table, step, *blocks, priority=10)
            metrics = self._finish([task], name)[0]
            self.outcome.metrics.append({"step": step, "name": name, **metrics})
            self.order.tell(Evaluated(step=step, name=name, metrics=metrics))

    # -- what goes wrong ----------------------------------------------------------------------

    def _finish(self, futures: list[Future], operator: str) -> list[Any]:
        """Wait for tasks; raise the first cause if one failed."""
        while not _settled(futures):
            self._check_lost(futures, operator)
        failed = [f for f in futures if f.status != "finished"]
        if not failed:
            return list(self.client.gather(futures))
        self._abort("another replica failed")
        self._settle(futures)
        errors = [_error_of(f, operator) for f in futures if f.status not in ("finished", "pending")]
        cause = first_cause(errors)
        if isinstance(cause, Aborted | PeerLost):
            self._check_lost(futures, operator)
        if isinstance(cause, FlowmlError):
            raise cause
        raise OperatorError(f"operator {operator!r}", f"raised {type(cause).__name__}: {cause}",
                            operator=operator, replica=-1, step=self.outcome.steps,
                            worker="", kind="raised") from cause

    def _check_lost(self, futures: list[Future], operator: str) -> None:
        """Raise if a worker of the run has left the cluster."""
        reply = self._ask("flowml_standing", run=self.placement.run)
        if not reply.get("lost"):
            return
        lost = reply["lost"][0]
        self._settle(futures)
        where = operator
        for future in futures:
            if future.status == "error":
                error = _error_of(future, operator)
                if isinstance(error, WorkerLostError) and error.fields.get("operator"):
                    where = str(error.fields["operator"])
        raise WorkerLostError(
            f"worker {lost}", f"was lost in {where!r}, after step {self.outcome.steps}",
            fix="The tables of the last committed step are in error.run.tables.",
            kind="worker", worker=lost, operator=where, step=self.outcome.steps,
        )

    def _settle(self, futures: list[Future]) -> None:
        """Give tasks that have been told to leave the time to do so."""
        end = time.monotonic() + VERDICT_SECONDS
        while time.monotonic() < end:
            reply = self._ask("flowml_standing", run=self.placement.run)
            lost = set(reply.get("lost", ()))
            alive = [f for f in futures if f.key[-1] not in lost]
            if _settled(alive, 0.1):
                return

    def _abort(self, reason: str) -> None:
        self._on_workers(remote.abort_run, self.placement.distinct, reason)

    def _on_workers(self, function: Any, workers: tuple[str, ...], *inputs: Any) -> dict[str, Any]:
        """Run a short function on the workers that are still there."""
        there = [w for w in workers if w in self.client.nthreads()]
        if not there:
            return {}
        found: dict[str, Any] = self.client.run(
            function, self.placement.run, *inputs, workers=there, on_error="return")
        return found

    def _fail(self, error: FlowmlError) -> None:
        """Keep the error and the last committed tables."""
        self.outcome.error, self.outcome.status = error, "failed"
        if error.fields.get("kind") == "scheduler":
            return
        with suppress(OSError, TimeoutError, FlowmlError):
            self._abort(str(error.where))
            replies = self._on_workers(remote.committed_tables, self.placement.distinct)
            found = [r for r in replies.values() if isinstance(r, tuple) and r[0] >= 0]
            newest: dict[tuple[str, int], Any] = {}
            for step, tables in sorted(found, key=lambda r: r[0]):
                newest |= tables
                self.outcome.steps = step
            if newest:
                self.outcome.tables = _by_table(self.plan, newest)

    def _close(self) -> None:
        """Leave nothing behind on workers and scheduler."""
        with suppress(OSError, TimeoutError, FlowmlError):
            self._on_workers(remote.close_run, self.placement.distinct)
            self._ask("flowml_release", run=self.placement.run)


def _settled(futures: list[Future], timeout: float = POLL_SECONDS) -> bool:
    """Wait a moment; tell whether all are finished or one has failed."""
    pending = [f for f in futures if f.status == "pending"]
    if pending:
        with suppress(TimeoutError, CancelledError), pending[0].client.as_current():
            wait(pending, timeout=timeout, return_when="FIRST_COMPLETED")
    return all(f.status != "pending" for f in futures) or any(
        f.status in ("error", "cancelled", "lost") for f in futures)


def _error_of(future: Future, operator: str) -> BaseException:
    if future.status == "finished":
        return Aborted(operator, "was told to leave", member=-1, cause="")
    if future.status != "error":
        return WorkerLostError(f"task of {operator!r}", "must finish", future.status,
                               "Is the scheduler still running?", kind="scheduler", worker="",
                               operator=operator)
    error = future.exception()
    return error if error is not None else RuntimeError("unknown")


def _by_table(plan: Plan, found: dict[tuple[str, int], Any]) -> dict[str, list[Any]]:
    return {
        t.name: [found.get((t.name, i)) for i in range(plan.instances(t.scope))]
        for t in plan.tables
    }
