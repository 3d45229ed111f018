"""The resident executor, driver side: windows of steps on a gang of workers.

The driver places the data, lets the workers meet, and submits thin window tasks two ahead; between
windows it looks at evaluations and reasons to stop, and all the time (oversight.py) at the workers.
Everything that moves in a step moves between the workers themselves.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from distributed import Client, Future

from flowml.errors import FlowmlError, PlanError, WorkerLostError
from flowml.events import Evaluated, RunStarted, Warned, WindowDone, WorkerLost
from flowml.plan import Plan
from flowml.protocol.roster import Roster, Seat
from flowml.runtime import remote
from flowml.runtime.attach import Worker
from flowml.runtime.domain import Layouts
from flowml.runtime.feeding import Feed, expected_steps, steps_per_epoch, total_steps
from flowml.runtime.gang import Committed, Window
from flowml.runtime.gathering import Gathered
from flowml.runtime.loose_hosts import check_hosts
from flowml.runtime.loose_plan import is_loose
from flowml.runtime.outcome import Order, Outcome, evaluation_due, tell_done
from flowml.runtime.oversight import LOOK_SECONDS, Interrupted, Oversight, await_any, over
from flowml.runtime.own_copies import with_own_copies
from flowml.runtime.placing import Placement, evaluation_data, place_data
from flowml.runtime.probe import probe
from flowml.runtime.rescue import by_table, rescued
from flowml.runtime.runspec import RunSpec, without_sources
from flowml.runtime.serial import evaluated_table
from flowml.runtime.shipping import ship_plan
from flowml.runtime.windows import Pending, decisive, longer, wants_window

logger = logging.getLogger(__name__)

FEWEST_FIRST_STEPS, MOST_FIRST_STEPS = 8, 512
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
    own_copies_bytes: int
    should_stop: Callable[[], bool]
    step_seconds: float = 0.0
    """About what a step takes, from a probe; 0: not known."""
    run: bytes = field(default_factory=lambda: uuid.uuid4().bytes)
    incarnation: int = 0
    outcome: Outcome = field(init=False)
    spec: RunSpec | None = None

    def __post_init__(self) -> None:
        """Name the run."""
        name = self.run.hex()
        addresses = tuple(w.address for w in self.workers)
        self.placement = Placement(name, addresses, name[:7] + "0")
        self.outcome = Outcome(self.plan, workers=addresses)
        self.oversight = Oversight(
            self.client,
            self.plan,
            name,
            {
                w: tuple(r for r, a in enumerate(addresses) if a == w)
                for w in self.placement.distinct
            },
            self.order.deadline_seconds,
            self.should_stop,
        )
        self.gathered = Gathered({w.address: w.host for w in self.workers})
        self._seen: Committed = {}
        """The last tables that were sent here for a snapshot or an evaluation."""
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
            feeds = place_data(
                self.plan, self.order, self.client, self.placement, self.oversight.finish
            )
            layouts = self.outcome.layouts = layouts or self._probe(feeds)
            self._check_memory(layouts)
            self._join(feeds, layouts, addresses)
            self._loop(list(feeds.values()))
        except FlowmlError as error:
            self._fail(error)
        except Interrupted:
            self.outcome.status = "stopped"
            self._rescue([])
        finally:
            self.oversight.close()
        self.gathered.put_into(self.outcome, self.order)
        return self.outcome

    def _admit(self) -> None:
        """Wait for a slot on every worker; say who holds them."""
        self.oversight.admit(self._warn)
        name = self.placement.run
        total = expected_steps(self.plan, self.order.seed, self.order.steps, self.order.epochs)
        self.order.tell(RunStarted(name, self.plan.graph, "resident", self.plan.replicas, total))

    def _warn(self, text: str) -> None:
        if self.order.on_event is None:
            logger.warning(text)
        self.order.tell(Warned(text))

    def _submit(
        self,
        kind: str,
        name: str,
        worker: str,
        number: int,
        function: Any,
        *inputs: Any,
        priority: int = 0,
    ) -> Future[Any]:
        return self.oversight.opened(
            self.client.submit(
                function,
                *inputs,
                key=self.placement.key(kind, name, number, worker),
                workers=[worker],
                pure=False,
                priority=priority,
            )
        )

    def _open(self) -> dict[str, tuple[str, str]]:
        name = self.placement.run
        tasks = [
            self._submit("join", "open", w, 0, remote.open_worker, name, self.transport)
            for w in self.placement.distinct
        ]
        return dict(zip(self.placement.distinct, self.oversight.finish(tasks, "join"), strict=True))

    def _probe(self, feeds: dict[str, Feed]) -> Layouts:
        """Fetch one batch of each load and try a step on it here."""
        batches = {}
        for number, (name, feed) in enumerate(feeds.items()):
            rank = next(r for r, o in enumerate(feed.orders) if o.batches())
            task = self._submit(
                "load",
                name,
                self.placement.workers[rank],
                1 << 30 | number,
                remote.first_batch,
                self.placement.run,
                name,
                rank,
                feed,
            )
            batches[name] = self.oversight.finish([task], name)[0]
        return probe(self.plan, batches, self.order.seed)

    def _check_memory(self, layouts: Layouts) -> None:
        """Refuse a run whose shared memory would make Dask pause a worker."""
        roster = Roster.seat(
            self.run, 0, (Seat(r, w.address, w.host) for r, w in enumerate(self.workers))
        )
        plan = self._placed(self.plan, layouts, roster)
        spec = RunSpec(plan, layouts, self.order, {}, roster, {})
        for worker in self.workers:
            _, needed = spec.shared_bytes(spec.domain_of(worker.address))
            allowed = int(worker.memory_limit * PAUSE_SHARE)
            if worker.memory_limit and needed > allowed:
                raise PlanError(
                    f"worker {worker.address}",
                    f"needs {needed / 2**20:,.0f} MiB of shared "
                    "memory, which every process of a host counts as its own",
                    f"{allowed / 2**20:,.0f} MiB before Dask pauses it",
                    "Use fewer replicas a host, or workers with more memory.",
                )

    def _placed(self, plan: Plan, layouts: Layouts, roster: Roster) -> Plan:
        if not is_loose(plan):
            return with_own_copies(plan, layouts, len(roster.domains), self.own_copies_bytes)
        check_hosts(plan, layouts, roster, self.order.longest_message)
        return plan

    def _join(
        self, feeds: dict[str, Feed], layouts: Layouts, addresses: dict[str, tuple[str, str]]
    ) -> None:
        """Let the workers meet; where a host cannot share memory, by RPC."""
        seats = tuple(
            Seat(rank, worker, addresses[worker][0])
            for rank, worker in enumerate(self.placement.workers)
        )
        roster = Roster.seat(self.run, self.incarnation, seats)
        plan = without_sources(self.plan)
        order = replace(self.order, on_event=None)
        while True:
            placed = self._placed(plan, layouts, roster)
            self.spec = RunSpec(
                placed, layouts, order, feeds, roster, {w: a for w, (_, a) in addresses.items()}
            )
            shipped = self.client.scatter(
                ship_plan(self.spec, self.plan), hash=False, broadcast=True
            )
            tasks = [
                self._submit("join", "gang", w, self.incarnation, remote.join_gang, shipped)
                for w in self.placement.distinct
            ]
            answers = self.oversight.finish(tasks, "join")
            refusals = dict(zip(self.placement.distinct, answers, strict=True))
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
        self.oversight.begun = True
        pending: deque[Pending] = deque()
        submitted, number, stopping = 0, 0, False
        while submitted < last or pending:
            while submitted < last and self._wants_window(pending) and not stopping:
                stop = self._window_end(submitted, last, epoch, len(pending))
                pending.append(
                    (
                        number,
                        submitted,
                        stop,
                        self._submit_window(number, submitted, stop, epoch, last, pending),
                    )
                )
                submitted, number = stop, number + 1
            if not pending:
                break
            _, start, stop, futures = pending[0]
            stopping = self._await_window(pending, began, stopping, submitted < last)
            if not over(futures):
                continue
            windows = self.oversight.finish(futures, self._steps_name())
            pending.popleft()
            ended = self._take(windows, start, stop, last, epoch)
            self.outcome.seconds = time.monotonic() - began
            if ended:
                self._take_rest(pending)
                break
        if self.outcome.status == "done" and self.outcome.steps < last:
            self.outcome.status = "stopped"
        self._collect()
        self._evaluate(self.outcome.steps, ends=True)

    def _take_rest(self, pending: deque[Pending]) -> None:
        """Record what replicas did in windows after the one in which another of them stopped."""
        if not is_loose(self.plan):
            return
        for *_, futures in pending:
            self._gather(self.oversight.finish(futures, self._steps_name()))

    def _gather(self, windows: Sequence[Window]) -> None:
        self.gathered.take(windows, self.placement.distinct)
        for window in windows:
            for _, record in window.records:
                tell_done(self.order, record.history, self.placement.workers, record.steps - 1)

    def _wants_window(self, pending: deque[Pending]) -> bool:
        return wants_window(pending, self.windows_ahead, own_pace=is_loose(self.plan))

    def _window_end(self, start: int, last: int, epoch: int, pending: int) -> int:
        """Choose where a window ends: about a second later, and where someone looks."""
        wanted = int(self.steps_per_second * self.window_seconds) or self._first_window_steps()
        stop = min(last, start + longer(wanted, pending, self.windows_ahead))
        looks = [s for s in self.order.snapshots if start < s <= stop]
        for operator in self.plan.evaluations:
            action: Any = operator.action
            every = action.every * (epoch if action.unit == "epochs" else 1)
            looks.append((start // every + 1) * every)
        return min([stop, *looks])

    def _first_window_steps(self) -> int:
        """Return the steps of the first windows: a tenth of one, going by the probe."""
        if not self.step_seconds:
            return FEWEST_FIRST_STEPS
        wanted = int(self.window_seconds / 10 / self.step_seconds)
        return min(max(wanted, FEWEST_FIRST_STEPS), MOST_FIRST_STEPS)

    def _looked_at(self, step: int, last: int, epoch: int) -> bool:
        return step in self.order.snapshots or (
            step < last and bool(evaluation_due(self.plan, step, epoch, last=False))
        )

    def _submit_window(
        self, number: int, start: int, stop: int, epoch: int, last: int, pending: deque[Pending]
    ) -> list[Future[Any]]:
        before = pending[-1][3] if pending else [None] * len(self.placement.distinct)
        snapshot = self._looked_at(stop, last, epoch)
        names = ".".join(o.name for o in self.plan.steps)[:60]
        return [
            self._submit(
                "superstep",
                f"[{names}]",
                w,
                number,
                remote.run_superstep_window,
                self.placement.run,
                self.incarnation,
                number,
                start,
                stop,
                snapshot,
                b,
            )
            for w, b in zip(self.placement.distinct, before, strict=True)
        ]

    def _await_window(
        self, pending: deque[Pending], began: float, stopping: bool, more: bool
    ) -> bool:
        """Wait for the first window, or until another is wanted; return whether the run stops.

        Looks for lost workers and reasons to stop meanwhile.
        """
        futures = pending[0][3]
        while True:
            await_any([*futures, *decisive(pending, self.windows_ahead)], LOOK_SECONDS)
            limit = self.order.max_seconds
            late = limit is not None and time.monotonic() - began >= limit
            if not stopping and (late or self.should_stop()):
                stopping = True
                self.oversight.stop()
            if over(futures):
                return stopping
            # Before the next window: one that is lost may be needed by nobody who goes on.
            self.oversight.look(futures, self._steps_name())
            if more and not stopping and self._wants_window(pending):
                return stopping

    def _steps_name(self) -> str:
        """Return what a window runs, for the message where nobody can say more."""
        return ", ".join(o.name for o in self.plan.steps if o.kind != "here")

    def _take(self, windows: list[Window], start: int, stop: int, last: int, epoch: int) -> bool:
        """Record a window; return whether the run has ended in it."""
        records = [r for w in windows for _, r in w.records]
        for window in windows:
            self.outcome.moved.add(window.moved)
        step = min(r.steps for r in records)
        self.outcome.steps = step
        self._gather(windows)
        seconds = max((w.seconds for w in windows), default=0.0)
        if step > start and seconds > 0:
            rate = (step - start) / seconds
            cap = (self.steps_per_second or self._first_window_steps()) * LARGEST_GROWTH
            self.steps_per_second = min(rate, cap)
        loss = records[0].history["loss"]
        if step > start:
            self.order.tell(
                WindowDone(step - 1, seconds, step - start, float(loss[-1]) if len(loss) else None)
            )
        stopped = any(r.stopped for r in records)
        if stopped or step < stop:
            self.outcome.status = "until" if any(r.ended for r in records) else "stopped"
            return True
        if self._looked_at(stop, last, epoch):
            self._snapshot(stop)
        return False

    def _snapshot(self, step: int) -> None:
        tasks = [
            self._submit(
                "snapshot",
                "tables",
                w,
                step,
                remote.take_snapshot,
                self.placement.run,
                self.incarnation,
                step,
                priority=10,
            )
            for w in self.placement.distinct
        ]
        found: dict[tuple[str, int], Any] = {}
        for part in self.oversight.finish(tasks, "snapshot"):
            found |= part
        self._seen = {step: found}
        if step in self.order.snapshots:
            self.outcome.snapshots[step] = by_table(self.plan, found)
        self._evaluate(step, ends=False, tables=found)

    def _collect(self) -> None:
        tasks = [
            self._submit(
                "snapshot",
                "tables",
                w,
                -1,
                remote.current_tables,
                self.placement.run,
                self.incarnation,
            )
            for w in self.placement.distinct
        ]
        found: dict[tuple[str, int], Any] = {}
        for part in self.oversight.finish(tasks, "snapshot"):
            found |= part
        self.outcome.tables = by_table(self.plan, found)
        if self.outcome.steps in self.order.snapshots:
            self.outcome.snapshots[self.outcome.steps] = self.outcome.tables

    def _evaluate(
        self, step: int, *, ends: bool, tables: dict[tuple[str, int], Any] | None = None
    ) -> None:
        worker = self.placement.workers[0]
        for name in evaluation_due(self.plan, step, self.outcome.steps_per_epoch, ends):
            operator = self.plan.operator(name)
            table = evaluated_table(self.plan, operator)
            value = self.outcome.tables[table][0] if tables is None else tables[table, 0]
            alone = replace(self.plan, operators=(operator,))
            shipped = ship_plan(without_sources(alone).operators[0], alone)
            blocks = evaluation_data(operator, self.client, worker)
            # By itself: what a task holds passes through the scheduler, which is not for tables.
            held = self.client.scatter([{(table, 0): value}], workers=[worker], hash=False)[0]
            task = self._submit(
                "evaluate",
                name,
                worker,
                step,
                remote.evaluate_table,
                shipped,
                held,
                table,
                step,
                *blocks,
                priority=10,
            )
            metrics = self.oversight.finish([task], name)[0]
            self.outcome.metrics.append({"step": step, "name": name, **metrics})
            self.order.tell(Evaluated(step=step, name=name, metrics=metrics))

    # -- what goes wrong ----------------------------------------------------------------------

    def _fail(self, error: FlowmlError) -> None:
        """Keep the error and the last committed tables."""
        self.outcome.error, self.outcome.status = error, "failed"
        if isinstance(error, WorkerLostError) and error.kind == "worker":
            self.order.tell(WorkerLost(error.worker, self.outcome.steps))
        replies: list[Committed] = []
        with suppress(FlowmlError):  # the first error counts; without answers there are no tables
            self.oversight.abort("another replica failed")
            replies = self.oversight.committed()
        self._rescue(replies)

    def _rescue(self, replies: list[Committed]) -> None:
        found = rescued(self.plan, self.order, replies, self._seen)
        self.outcome.steps, self.outcome.tables = found
