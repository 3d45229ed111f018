"""The driver's eye on the workers of a run: waiting for tasks without ever waiting for the dead.

Dask runs lost tasks again, and waits for ever for those that are pinned to a worker that is gone.
A run cannot use either: its state went with the worker. So every wait is cut into slices, and in
between the driver asks the scheduler who was lost and who is silent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from distributed import Client, Future, wait

from flowml.errors import (
    FlowmlError,
    OperatorError,
    PlanError,
    StaleRunError,
    StalledError,
    WorkerLostError,
)
from flowml.plan import Plan
from flowml.protocol.failures import Aborted
from flowml.runtime import remote
from flowml.runtime._dask import run_within, start_gathering
from flowml.runtime.gang import Committed, first_cause
from flowml.runtime.watch import Whereabouts, lost_error, silent_error

SLICE_SECONDS = 0.2
LOOK_SECONDS = 0.5
"""How often the driver wakes while windows run, and looks after the workers: all of that takes the
cores from their steps."""
VERDICT_SECONDS = 3.0
"""How long the driver waits for the workers that remain to say what happened."""
ANSWER_SECONDS = 2.0
"""How long a short question to a worker may take."""
COPY_SECONDS = 30.0
"""How long workers may take to send the last committed tables."""
ASK_SECONDS = 10.0
"""How long the scheduler may take to answer."""


class Interrupted(Exception):
    """The run is to stop and has not begun its first step."""


@dataclass
class Oversight:
    """The workers of one run, as its driver sees them.

    Attributes
    ----------
    plan : Plan
    run : str
    ranks : mapping of str to tuple of int
        Ranks of each worker, by address.
    deadline_seconds : float
        Longest silence of a worker.
    should_stop : callable
        Asked while the run has not begun its first step.
    begun : bool
        Whether it has.
    lost : str
        The worker that was found to be lost or silent, if one was: it is asked no more.
    """

    client: Client
    plan: Plan
    run: str
    ranks: dict[str, tuple[int, ...]]
    deadline_seconds: float
    should_stop: Callable[[], bool]
    begun: bool = False
    lost: str = ""
    _open: set[Future[Any]] = field(default_factory=set)
    _silent_since: dict[str, float] = field(default_factory=dict)

    def admit(self, tell: Callable[[str], None]) -> None:
        """Wait for a slot on every worker; ``tell`` is told, once, who holds them.

        Raises
        ------
        PlanError
            If the scheduler refuses.
        WorkerLostError, StalledError, Interrupted
            As for :meth:`look`.
        """
        reply = self.ask(
            "flowml_admit",
            run=self.run,
            client=self.client.id,
            workers=list(self.ranks),
            name=self.plan.graph,
        )
        if reply["status"] == "refused":
            raise PlanError("cluster", reply["message"])
        if reply["status"] == "queued":
            tell(f"graph {self.plan.graph!r} {reply['message']}")
        while reply["status"] == "queued":
            time.sleep(SLICE_SECONDS)
            reply = self.look((), "admission")

    # -- questions ----------------------------------------------------------------------------

    def ask(self, request: str, **message: Any) -> dict[str, Any]:
        """Ask flowml's part of the scheduler.

        Raises
        ------
        WorkerLostError
            With kind "scheduler", if it does not answer.
        """
        if self.client.status != "running":  # a client that connects again has lost its tasks
            raise self._no_scheduler(f"a connection that is {self.client.status}")
        try:
            reply = self.client.sync(
                getattr(self.client.scheduler, request), callback_timeout=ASK_SECONDS, **message
            )
        except (OSError, TimeoutError) as error:
            raise self._no_scheduler(type(error).__name__) from error
        if reply is None:
            raise PlanError(
                "scheduler",
                "must have flowml's plugin",
                "none",
                "It was restarted: run again with a new client.",
            )
        found: dict[str, Any] = reply
        return found

    def _no_scheduler(self, why: str) -> WorkerLostError:
        return WorkerLostError(
            "scheduler",
            "must answer",
            why,
            "Is the cluster still running?",
            kind="scheduler",
            worker="",
            operator="",
        )

    def question(self, function: Any, *inputs: Any, seconds: float = ANSWER_SECONDS) -> list[Any]:
        """Run a short function on the workers that are left; return what came in time."""
        return list(self._answers(function, *inputs, workers=self.ranks, seconds=seconds).values())

    def _answers(
        self, function: Any, *inputs: Any, workers: Iterable[str], seconds: float = ANSWER_SECONDS
    ) -> dict[str, Any]:
        there = self.client.nthreads()
        asked = [w for w in workers if w in there and w != self.lost]
        found = run_within(self.client, function, self.run, *inputs, workers=asked, seconds=seconds)
        return {w: a for w, a in found.items() if not isinstance(a, BaseException)}

    def stop(self) -> None:
        """Ask for an end at the next barrier."""
        self.question(remote.request_stop)

    def committed(self) -> list[Committed]:
        """Return the last committed tables of each worker that answers."""
        present = self._answers(remote.is_here, workers=self.ranks)
        found = self._answers(remote.committed_tables, workers=present, seconds=COPY_SECONDS)
        return list(found.values())

    # -- waiting ------------------------------------------------------------------------------

    def opened(self, future: Future[Any]) -> Future[Any]:
        """Remember a task until it is finished, to be let go of if it never is."""
        self._open.add(future)
        return future

    def finish(self, futures: Sequence[Future[Any]], operator: str) -> list[Any]:
        """Wait for tasks and return what they return.

        Parameters
        ----------
        futures : sequence of Future
            The last item of each key is the worker that the task is pinned to.
        operator : str
            For messages; several with commas between.

        Raises
        ------
        FlowmlError
            The first cause, if a task failed or a worker was lost or silent.
        """
        self._open.update(futures)
        while not settled(futures):
            self.look(futures, operator)
        if any(f.status != "finished" for f in futures):
            raise self._verdict(futures, operator)
        values = self._fetch(futures, operator)
        self._open.difference_update(futures)
        return values

    def _fetch(self, futures: Sequence[Future[Any]], operator: str) -> list[Any]:
        """Return the values of finished tasks, unless a worker that holds one is lost now."""
        coming = start_gathering(self.client, futures)
        try:
            while True:
                with suppress(TimeoutError):
                    values = coming.result(SLICE_SECONDS)
                    if len(values) == len(futures):
                        return values
                    raise self._verdict(futures, operator)
                self.look(futures, operator)
        finally:
            coming.cancel()

    def look(self, futures: Sequence[Future[Any]], operator: str) -> dict[str, Any]:
        """Look once whether all workers are there; return how the run stands.

        Raises
        ------
        WorkerLostError, StalledError
            Naming the worker and the operator that it was in.
        Interrupted
            If the run is to stop before its first step.
        """
        if not self.begun and self.should_stop():
            raise Interrupted
        reply = self.ask("flowml_standing", run=self.run)
        if reply["status"] == "unknown":
            raise self._no_scheduler("one that does not know this run")
        for worker in reply["lost"]:
            raise self._lost(worker, futures, operator)
        silent = {w: s for w, s in reply["silent"].items() if s > self.deadline_seconds}
        now = time.monotonic()
        # Twice with a second between: a scheduler that was held up has signs of life to read first.
        self._silent_since = {w: self._silent_since.get(w, now) for w in silent}
        for worker, since in self._silent_since.items():
            if now - since > 1.0:
                raise self._silence(worker, silent[worker], futures, operator)
        return reply

    def _settle(self, futures: Sequence[Future[Any]]) -> None:
        """Give tasks that have been told to leave the time to do so."""
        end = time.monotonic() + VERDICT_SECONDS
        while time.monotonic() < end:
            gone = {self.lost, *self.ask("flowml_standing", run=self.run)["lost"]}
            waiting = [f for f in futures if f.status == "pending" and worker_of(f) not in gone]
            if not waiting:
                return
            with suppress(TimeoutError, CancelledError):
                wait(waiting, timeout=SLICE_SECONDS)

    # -- verdicts -----------------------------------------------------------------------------

    def _verdict(self, futures: Sequence[Future[Any]], operator: str) -> FlowmlError:
        """Return the first cause of the failure of some tasks."""
        self.abort("another replica failed")
        self.lost = self._found_silent(futures, operator)
        self._settle(futures)
        errors = errors_of(futures, operator)
        cause = first_cause(errors, self.plan)
        if isinstance(cause, WorkerLostError) and cause.worker:
            return self._lost(cause.worker, futures, operator)
        if isinstance(cause, Aborted | StaleRunError | WorkerLostError):
            lost = self.ask("flowml_standing", run=self.run)["lost"]
            if lost:
                return self._lost(lost[0], futures, operator)
        if isinstance(cause, Aborted):
            return WorkerLostError(
                "run",
                "was ended on its workers",
                cause.got,
                "Start it again.",
                kind="scheduler",
                worker="",
                operator=operator,
            )
        if isinstance(cause, FlowmlError):
            return cause
        if type(cause).__module__.startswith("distributed"):
            return WorkerLostError(
                f"operator {operator!r}",
                "must run on its worker",
                type(cause).__name__,
                kind="worker",
                worker="",
                operator=operator,
            )
        return OperatorError(
            f"operator {operator!r}",
            f"raised {type(cause).__name__}: {cause}",
            operator=operator,
            replica=-1,
            step=0,
            worker="",
            kind="raised",
        )

    def _found_silent(self, futures: Sequence[Future[Any]], operator: str) -> str:
        """Return the worker that another one found to be silent, or "": it answers nobody."""
        stalls = [e for e in errors_of(futures, operator) if isinstance(e, StalledError)]
        named = [str(e.fields["waiting_for"]) for e in stalls]
        return next((w for w in named if w in self.ranks), "")

    def _lost(self, worker: str, futures: Sequence[Future[Any]], operator: str) -> FlowmlError:
        self.lost = worker
        self._settle(futures)
        return lost_error(worker, self._whereabouts(worker, operator), self.ranks.get(worker, ()))

    def _silence(
        self, worker: str, seconds: float, futures: Sequence[Future[Any]], operator: str
    ) -> FlowmlError:
        self.lost = worker
        self.abort(f"worker {worker} is silent")
        self._settle(futures)
        where = self._whereabouts(worker, operator)
        return silent_error(worker, where, self.ranks[worker], seconds, self.deadline_seconds)

    def _whereabouts(self, worker: str, operator: str) -> Whereabouts:
        """Ask the others where a worker was; those of its own host know best."""
        found = [w for w in self.question(remote.whereabouts, worker) if w is not None]
        names = ", ".join(map(repr, operator.split(", ")))
        unknown = Whereabouts(operator, f"{names}", 0, False)
        return max(found, key=lambda w: w.exact, default=unknown)

    # -- ends ---------------------------------------------------------------------------------

    def abort(self, reason: str) -> None:
        """Let the ranks leave, without waiting for them."""
        self.ask("flowml_abort", run=self.run, reason=reason)

    def close(self) -> None:
        """Leave nothing behind on workers and scheduler."""
        for future in self._open:
            future.release()
        self._open.clear()
        with suppress(FlowmlError):  # without a scheduler there is nobody to leave anything with
            self.ask("flowml_release", run=self.run)


def await_any(futures: Sequence[Future[Any]], timeout: float = SLICE_SECONDS) -> None:
    """Wait a moment, or until one that is not finished is."""
    pending = [f for f in futures if f.status == "pending"]
    if pending:
        with suppress(TimeoutError, CancelledError):
            wait(pending, timeout=timeout, return_when="FIRST_COMPLETED")


def over(futures: Sequence[Future[Any]]) -> bool:
    """Tell whether all are finished or one has failed."""
    return all(f.status != "pending" for f in futures) or any(
        f.status in ("error", "cancelled", "lost") for f in futures
    )


def settled(futures: Sequence[Future[Any]], timeout: float = SLICE_SECONDS) -> bool:
    """Wait a moment; tell whether all are finished or one has failed."""
    await_any(futures, timeout)
    return over(futures)


def worker_of(future: Future[Any]) -> str:
    """Return the worker that a task of a run is pinned to: the last item of its key."""
    key = future.key
    return str(key[-1]) if isinstance(key, tuple) else ""


def errors_of(futures: Sequence[Future[Any]], operator: str) -> list[BaseException]:
    """Return the errors of those tasks that have failed."""
    return [error_of(f, operator) for f in futures if f.status not in ("finished", "pending")]


def error_of(future: Future[Any], operator: str) -> BaseException:
    """Return the error of a task that did not finish."""
    if future.status != "error":
        return WorkerLostError(
            f"operator {operator!r}",
            "its task must finish",
            str(future.status),
            "Is the scheduler still running?",
            kind="scheduler",
            worker="",
            operator=operator,
        )
    error: BaseException | None = future.exception()
    return error if error is not None else RuntimeError("unknown")
