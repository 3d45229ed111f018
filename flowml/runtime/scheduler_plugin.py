"""flowml on the Dask scheduler: admits runs to workers and tells them when one is lost."""

from __future__ import annotations

from typing import Any

from distributed.diagnostics.plugin import SchedulerPlugin

from flowml.errors import PlanError
from flowml.protocol.admission import Admission, Granted
from flowml.runtime._dask import add_request, pickled, remove_names, tell_workers
from flowml.runtime.worker_plugin import NAME, FlowWorker


class FlowScheduler(SchedulerPlugin):
    """The part of flowml that lives on the scheduler.

    Notes
    -----
    Slots of a worker are its threads; a run takes one a worker. ``remove_worker`` is atomic with
    the removal itself, so a run learns of a death once and at once.
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
        add_request(scheduler, "flowml_admit", self.admit)
        add_request(scheduler, "flowml_standing", self.standing)
        add_request(scheduler, "flowml_release", self.release)
        await scheduler.register_worker_plugin(
            None, pickled(FlowWorker()), name=NAME, idempotent=True
        )

    async def close(self) -> None:
        """Stop to answer."""
        remove_names(self.scheduler, "flowml_admit", "flowml_standing", "flowml_release")

    async def admit(
        self, run: str, client: str, workers: list[str], name: str
    ) -> dict[str, Any]:
        """Ask for one slot of each worker."""
        self.members[run] = tuple(workers)
        self.lost.setdefault(run, [])
        try:
            self.admission.request(run, client, dict.fromkeys(workers, 1), name)
        except PlanError as error:
            self._forget(run)
            return {"status": "refused", "message": str(error)}
        return await self.standing(run)

    async def standing(self, run: str) -> dict[str, Any]:
        """Say whether a run is admitted, whom it waits for, and which of its workers are lost."""
        if run not in self.members:
            return {"status": "unknown", "message": "", "lost": []}
        found = self.admission.standing(run)
        granted = isinstance(found, Granted)
        return {
            "status": "granted" if granted else "queued",
            "message": "" if granted else str(found),
            "lost": list(self.lost[run]),
        }

    async def release(self, run: str) -> dict[str, Any]:
        """Give back a run's slots."""
        self._forget(run)
        return {"status": "OK"}

    def _forget(self, run: str) -> None:
        self.admission.release(run)
        self.members.pop(run, None)
        self.lost.pop(run, None)

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """Count a new worker's slots."""
        self.admission.add_worker(worker, max(1, scheduler.workers[worker].nthreads))

    def remove_worker(self, scheduler: Any, worker: str, **kwargs: Any) -> None:
        """Tell the runs of a worker that it is lost."""
        for run in self.admission.remove_worker(worker):
            if run not in self.lost:
                continue
            self.lost[run].append(worker)
            message = {"op": "flowml-abort", "run": run, "worker": worker}
            others = [w for w in self.members[run] if w != worker and w in scheduler.workers]
            tell_workers(scheduler, {w: [message] for w in others})

    def remove_client(self, scheduler: Any, client: str) -> None:
        """End the runs of a client that is gone."""
        for run in self.admission.remove_client(client).released:
            workers = [w for w in self.members.get(run, ()) if w in scheduler.workers]
            message = {"op": "flowml-abort", "run": run, "worker": f"(client {client})"}
            tell_workers(scheduler, {w: [message] for w in workers})
            self._forget(run)
