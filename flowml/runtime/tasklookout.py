"""Waiting for tasks: what failed, who was lost, and who has been silent for too long.

Dask waits for ever where a task is pinned to a worker that is gone, where a worker is paused, and
where one operator never returns. So each wait is cut in slices, and between them the driver looks.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from concurrent.futures import wait as wait_for
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from distributed import KilledWorker, wait

from flowml.errors import FlowmlError, OperatorError, StalledError, WorkerLostError
from flowml.plan import Plan
from flowml.runtime._dask import start_gathering
from flowml.runtime.outcome import Order
from flowml.runtime.taskwindow import DaskClient, DaskFuture
from flowml.runtime.watch import awaited_edge

FIRST_SLICE_SECONDS = 0.1
SLICE_SECONDS = 1.0
AFTER_ERROR_SECONDS = 1.0
"""How long tasks that do not depend on a failed one may go on, to learn which failed first."""
BAD = ("error", "cancelled", "lost")


@dataclass
class Lookout:
    """Watches the tasks of one run.

    Attributes
    ----------
    workers : tuple of str
        Each worker of the run once.
    operators : mapping of str to str
        Name of the operator or table, by the first item of its keys.
    step : int
        Committed steps, for messages.
    """

    client: DaskClient
    plan: Plan
    order: Order
    workers: tuple[str, ...]
    operators: Mapping[str, str] = field(default_factory=dict)
    step: int = 0
    _queues: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    _moved: float = 0.0
    _running: dict[Any, float] = field(default_factory=dict)

    def wait(self, futures: Iterable[DaskFuture]) -> None:
        """Wait until all tasks have ended, or one failed and the others had a second.

        Raises
        ------
        WorkerLostError
            If a worker of the run, or the scheduler, is gone.
        StalledError
            If nothing has moved for the run's deadline, or an operator takes longer than
            ``step_seconds``.
        """
        waiting, seconds = list(futures), FIRST_SLICE_SECONDS
        self._moved, self._running = time.monotonic(), {}
        while not _ended(waiting, seconds):
            if any(f.status in BAD for f in waiting):
                _ended(waiting, AFTER_ERROR_SECONDS)
                return
            self.look()
            seconds = min(2 * seconds, SLICE_SECONDS)

    def settle(self, futures: Iterable[DaskFuture]) -> None:
        """Wait for tasks; raise the first cause where any failed."""
        waited = list(futures)
        self.wait(waited)
        error = self.error(waited)
        if error is not None:
            raise error

    def gather(self, futures: Sequence[DaskFuture]) -> list[Any]:
        """Fetch the values of tasks that have ended well, looking for lost workers meanwhile."""
        coming = start_gathering(self.client, futures)
        try:
            while not wait_for([coming], SLICE_SECONDS).done:
                self.look()
            return coming.result()
        except (OSError, CancelledError, KeyError) as error:
            self.look()
            raise self._lost("", [f.key for f in futures]) from error
        finally:
            coming.cancel()

    def error(self, futures: Sequence[DaskFuture]) -> FlowmlError | None:
        """Return the error of the earliest step among tasks that failed, or None."""
        errors = [self._explained(f) for f in futures if f.status in BAD]
        names = [o.name for o in self.plan.operators]

        def order(error: FlowmlError) -> tuple[int, int, int]:
            found = error.fields
            name = found.get("operator")
            place = names.index(name) if name in names else len(names)
            return int(found.get("step", 0)), place, int(found.get("replica", 0))

        return min(errors, key=order, default=None)

    def look(self) -> None:
        """Look once at workers and tasks; see `wait` for what it raises."""
        try:
            queues = {w: tuple(keys) for w, keys in self.client.processing().items()}
        except (OSError, TimeoutError) as error:
            raise self._scheduler_lost(str(error)) from error
        if self.client.status != "running":
            raise self._scheduler_lost(f"a connection that is {self.client.status}")
        for worker in self.workers:
            if worker not in queues:
                raise self._lost(worker, self._last_tasks(worker))
        now = time.monotonic()
        if queues != self._queues:
            self._queues, self._moved = queues, now
        quiet = now - self._moved
        limit = self.order.step_seconds
        if limit is not None or quiet > self.order.deadline_seconds:
            self._check_running(now, quiet, limit)

    def _check_running(self, now: float, quiet: float, limit: float | None) -> None:
        stacks = self.client.call_stack() or {}
        found = {
            (worker, key): self._running.get((worker, key), now)
            for worker, keys in stacks.items()
            if worker in self.workers
            for key in keys
            if self._operator(key)
        }
        self._running = found
        for (worker, key), since in found.items():
            if limit is not None and now - since > limit:
                raise self._too_long(worker, key, now - since, limit)
        if not found and quiet > self.order.deadline_seconds:
            raise self._silent(quiet, {w for w, keys in stacks.items() if keys})

    # --- errors -------------------------------------------------------------------------------

    def _operator(self, key: Any) -> str:
        head = key[0] if isinstance(key, tuple) else key
        return self.operators.get(str(head), "")

    def _explained(self, future: DaskFuture) -> FlowmlError:
        if future.status == "error":
            error = future.exception()
            if isinstance(error, FlowmlError):
                return error
            if isinstance(error, KilledWorker):
                return self._lost(str(error.last_worker.address), (error.task,))
            name = self._operator(future.key)
            return OperatorError(
                f"operator {name!r}",
                f"its task raised {type(error).__name__}: {error}",
                operator=name,
                replica=-1,
                step=self.step,
                worker="",
                kind="raised",
            )
        try:
            self.look()
        except WorkerLostError as lost:
            return lost
        return self._lost("", (future.key,))

    def _last_tasks(self, worker: str) -> Sequence[Any]:
        """Return the tasks of a worker when it left, those of the earliest step first."""
        found = set(self._queues.get(worker, ()))
        with suppress(OSError, TimeoutError):
            for _, event in self.client.get_events(worker):
                if event.get("action") == "remove-worker":
                    found = set(event["processing-tasks"])
        return sorted(found, key=_place_of)

    def _lost(self, worker: str, keys: Sequence[Any]) -> WorkerLostError:
        """Return the error for a worker that left while it had tasks."""
        name = next((n for n in map(self._operator, keys) if n), "")
        where = f"worker {worker}" if worker else f"operator {name!r}"
        what = f"was lost in {name!r}" if name and worker else "was lost"
        if not worker:
            what = "its result was lost with the worker that held it"
        return WorkerLostError(
            where,
            f"{what}, after step {self.step}",
            fix="The tables of the last step that was kept are in error.run.tables.",
            kind="worker",
            worker=worker,
            operator=name,
            step=self.step,
        )

    def _scheduler_lost(self, why: str) -> WorkerLostError:
        return WorkerLostError(
            "scheduler",
            "must answer",
            why,
            "Is the cluster still running?",
            kind="scheduler",
            worker="",
            operator="",
            step=self.step,
        )

    def _too_long(self, worker: str, key: Any, age: float, limit: float) -> StalledError:
        name, (step, instance) = self._operator(key), _place_of(key)
        edge = awaited_edge(self.plan, name) or f"{name} -> its readers"
        return StalledError(
            f"operator {name!r} in replica {instance}, step {step}, on worker {worker}",
            f"must end within {limit:g} s (step_seconds)",
            f"{age:.1f} s so far; edge {edge} waits for replica {instance} at clock {step}, whose "
            "last message is that its task began",
            "See what it computes, or raise the limit.",
            edge=edge,
            waiting_for=name,
            since_seconds=age,
            clock=step,
            last_message=f"the task of {name!r} began",
            operator=name,
            replica=instance,
            step=step,
            worker=worker,
        )

    def _silent(self, quiet: float, busy: set[str]) -> StalledError:
        states = {}
        with suppress(OSError, TimeoutError):
            states = self.client.scheduler_info(n_workers=-1)["workers"]
        paused = [w for w in self.workers if states.get(w, {}).get("status") == "paused"]
        others = [w for w in self.workers if w in busy]
        why = "nothing runs on its workers"
        if paused:
            why = f"worker {paused[0]} is paused: its memory is full"
        elif others:
            why = f"worker {others[0]} is busy with another client's task"
        queued = [key for keys in self._queues.values() for key in keys if self._operator(key)]
        waited = self._operator(queued[0]) if queued else self.plan.graph
        step, instance = _place_of(queued[0]) if queued else (self.step, -1)
        edge = awaited_edge(self.plan, waited) or f"{waited} -> its readers"
        return StalledError(
            f"tasks of {waited!r}",
            f"must start within the deadline of {self.order.deadline_seconds:g} s",
            f"{quiet:.0f} s in which {why}; edge {edge} waits for replica {instance} at clock "
            f"{step}, and the last message was the end of step {self.step - 1}",
            "Free the worker, or raise deadline=.",
            edge=edge,
            waiting_for=waited,
            since_seconds=quiet,
            clock=step,
            last_message=f"the end of step {self.step - 1}",
        )


def _place_of(key: Any) -> tuple[int, int]:
    """Return the step and the instance that a task's key names; -1 where it names none.

    Examples
    --------
    >>> _place_of(("flowml:map-f.0", 3, 1)), _place_of("flowml:load-x.0")
    ((3, 1), (-1, -1))
    """
    numbers = [part for part in key[1:3] if isinstance(part, int)] if isinstance(key, tuple) else []
    return (numbers[0], numbers[1]) if len(numbers) == 2 else (-1, -1)


def _ended(futures: Sequence[DaskFuture], seconds: float) -> bool:
    """Wait a moment; tell whether every task has ended, well or badly."""
    pending = [f for f in futures if f.status == "pending"]
    if pending:
        with suppress(TimeoutError, CancelledError):
            wait(pending, timeout=seconds)
    return all(f.status != "pending" for f in pending)
