"""flowml on the Dask scheduler: admits runs to workers and tells them when one is lost."""

from __future__ import annotations

from typing import Any

from distributed.diagnostics.plugin import SchedulerPlugin

from flowml.errors import PlanError
from flowml.protocol.admission import Admission, Queued
from flowml.runtime._dask import add_request, pickled, remove_names, silences, tell_workers
from flowml.runtime.worker_plugin import NAME, FlowWorker

REQUESTS = ("admit", "standing", "abort", "release")


class FlowScheduler(SchedulerPlugin):
    """The part of flowml that lives on the scheduler.

    Notes
    -----
    Slots of a worker are its threads; a run takes one a worker. ``remove_worker`` is atomic with
    the removal itself, so a run learns of a death once and at once. Workers are told by one-way
    messages: nothing here waits for a worker, which may be stopped.
    """

    name = NAME
    idempotent = True

    async def start(self, scheduler: Any) -> None:
        """Start to answer, and install the worker's part."""
        self.scheduler = scheduler
        self.admission = Admission()
        self.lost: dict[str, list[str]] = {}
        self.members: dict[str, tuple[str, ...]] = {}
        for address, state in scheduler.workers.items():
            self.admission.add_worker(address, max(1, state.nthreads))
        for request in REQUESTS:
            add_request(scheduler, f"flowml_{request}", getattr(self, request))
        await scheduler.register_worker_plugin(
            None, pickled(FlowWorker()), name=NAME, idempotent=True
        )

    async def close(self) -> None:
        """Stop to answer."""
        remove_names(self.scheduler, *(f"flowml_{request}" for request in REQUESTS))

    async def admit(self, run: str, client: str, workers: list[str], name: str) -> dict[str, Any]:
        """Ask for one slot of each worker."""
        self.members[run] = tuple(workers)
        self.lost.setdefault(run, [])
        try:
            self.admission.request(run, client, dict.fromkeys(workers, 1), name)
        except PlanError as error:
            self._forget(run)
            return {"status": "refused", "message": str(error), "lost": [], "silent": {}}
        return await self.standing(run)

    async def standing(self, run: str) -> dict[str, Any]:
        """Say whether a run is admitted, whom it waits for, and who of its workers is gone."""
        if run not in self.members:
            return {"status": "unknown", "message": "", "lost": [], "silent": {}}
        found = self.admission.standing(run)
        queued = isinstance(found, Queued)
        return {
            "status": "queued" if queued else "granted",
            "message": waits_for(found) if isinstance(found, Queued) else "",
            "lost": list(self.lost[run]),
            "silent": silences(self.scheduler, self.members[run]),
        }

    async def abort(self, run: str, reason: str) -> dict[str, Any]:
        """Let the ranks of a run leave their loop."""
        self._tell(run, "flowml-abort", reason=reason)
        return {"status": "OK"}

    async def release(self, run: str) -> dict[str, Any]:
        """Let workers forget a run, and give back its slots."""
        self._tell(run, "flowml-close")
        self._forget(run)
        return {"status": "OK"}

    def _tell(self, run: str, message: str, **content: str) -> None:
        there = [w for w in self.members.get(run, ()) if w in self.scheduler.workers]
        tell_workers(self.scheduler, {w: [{"op": message, "run": run, **content}] for w in there})

    def _forget(self, run: str) -> None:
        self.admission.release(run)
        self.members.pop(run, None)
        self.lost.pop(run, None)

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """Count a new worker's slots."""
        self.admission.add_worker(worker, max(1, scheduler.workers[worker].nthreads))

    def remove_worker(
        self, scheduler: Any, worker: str, *, stimulus_id: str = "", **_: Any
    ) -> None:
        """Tell the runs of a worker that it is lost."""
        for run in self.admission.remove_worker(worker):
            if run in self.lost:
                self.lost[run].append(worker)
                self._tell(run, "flowml-lost", worker=worker)

    def remove_client(self, scheduler: Any, client: str) -> None:
        """End the runs of a client that is gone, on their workers too."""
        for run in self.admission.remove_client(client).released:
            self._tell(run, "flowml-abort", reason="its client is gone")
            self._tell(run, "flowml-close")
            self._forget(run)


def waits_for(queued: Queued) -> str:
    """Return whom a run waits for, in the words of graphs and workers."""
    held = ", ".join(f"graph {h.name!r} on {', '.join(h.workers)}" for h in queued.holders)
    ahead = f"; {queued.position} ahead of it in the queue" if queued.position else ""
    return f"waits for {held or 'an earlier run'}{ahead}"
