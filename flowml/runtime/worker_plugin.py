"""flowml on a Dask worker: holds the gangs of its runs and answers other workers.

Handlers run on the worker's event loop and only pass things on; ranks run in Dask's task threads
or in threads of the gang.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from distributed.diagnostics.plugin import WorkerPlugin
from tornado.ioloop import PeriodicCallback

from flowml.data.rows import Rows
from flowml.data.source import Partition
from flowml.errors import FlowmlError, StaleRunError, WorkerLostError
from flowml.protocol.mailbox import Parcel
from flowml.runtime._dask import add_request, add_stream, remove_names
from flowml.runtime.courier import RpcCourier
from flowml.runtime.feeding import RESIDENT_BYTES
from flowml.runtime.gang import Gang
from flowml.runtime.host_hello import HostListener
from flowml.runtime.host_key import host_key
from flowml.runtime.process_settings import ProcessSettings
from flowml.runtime.runspec import RunSpec

logger = logging.getLogger(__name__)

NAME = "flowml"
BEAT_SECONDS = 0.5
RESIDENT_SHARE = 4
"""Partitions may fill a quarter of the worker's memory limit."""


class FlowWorker(WorkerPlugin):
    """The part of flowml that lives on each worker."""

    name = NAME

    def setup(self, worker: Any) -> None:
        """Start to answer."""
        self.worker = worker
        self.settings = ProcessSettings(worker)
        self.gangs: dict[str, Gang] = {}
        self._couriers: dict[str, RpcCourier] = {}
        self._listeners: dict[str, HostListener] = {}
        self._parts: dict[str, dict[tuple[str, int], Sequence[Rows | Partition]]] = {}
        add_request(worker, "flowml_exchange", self.take_parcel)
        add_request(worker, "flowml_pulse", self.pulse)
        add_stream(worker, "flowml-abort", self.abort_from_scheduler)
        self._beat = PeriodicCallback(self.beat, BEAT_SECONDS * 1000)
        self._beat.start()

    def teardown(self, worker: Any) -> None:
        """Let go of everything."""
        self._beat.stop()
        for run in [*self.gangs, *self._listeners, *self._parts]:
            self.close(run)
        remove_names(worker, "flowml_exchange", "flowml_pulse", "flowml-abort")

    def open(self, run: str, transport: str) -> tuple[str, str]:
        """Listen for the other processes of this host; return the host key and the address."""
        key = host_key(transport)
        if transport == "rpc":
            return key, ""
        listener = self._listeners.setdefault(run, HostListener())
        return key, listener.address

    def load(self, run: str, operator: str, rank: int, parts: Sequence[Rows | Partition]) -> None:
        """Take the data of one rank."""
        self._parts.setdefault(run, {})[operator, rank] = parts

    def parts(self, run: str, operator: str, rank: int) -> Sequence[Rows | Partition]:
        """Return the data of one rank, before it has joined."""
        return self._parts[run][operator, rank]

    def close_gang(self, run: str) -> None:
        """Forget a gang that could not meet, but keep its data for another try."""
        gang = self.gangs.pop(run, None)
        if gang is not None:
            gang.close()

    def join(self, spec: RunSpec) -> None:
        """Make this worker's gang and meet the others."""
        run, me = spec.name, self.worker.address
        stale = self.gangs.pop(run, None)
        if stale is not None:
            stale.close()
        courier = None
        if len(spec.roster.domains) > 1:
            courier = self._couriers[run] = RpcCourier(self.worker, spec, me)
        ranks = max(1, len(spec.roster.ranks(me)))
        limit = self.worker.memory_manager.memory_limit
        resident = limit // RESIDENT_SHARE // ranks if limit else RESIDENT_BYTES
        gang = Gang(spec, me, courier, resident)
        for (operator, rank), parts in self._parts.get(run, {}).items():
            gang.load(operator, rank, parts)
        self.settings.begin(run, spec.plan.blas_threads)
        self.gangs[run] = gang
        gang.join(self._listeners.get(run))
        listener = self._listeners.pop(run, None)
        if listener is not None:
            listener.close()
        self._parts.pop(run, None)

    def gang(self, run: str, incarnation: int) -> Gang:
        """Return the gang of a run.

        Raises
        ------
        StaleRunError
            If this worker does not know the run in this incarnation.
        """
        gang = self.gangs.get(run)
        if gang is None:
            raise StaleRunError(
                f"worker {self.worker.address}", "must hold the state of the run",
                "a task of a run that has ended, or whose worker was restarted",
                "Start the run again.",
            )
        gang.spec.roster.fence(bytes.fromhex(run), incarnation, "task")
        return gang

    def close(self, run: str) -> None:
        """Forget a run."""
        gang = self.gangs.pop(run, None)
        listener = self._listeners.pop(run, None)
        self._parts.pop(run, None)
        self._couriers.pop(run, None)
        if listener is not None:
            listener.close()
        if gang is not None:
            gang.close()
        self.settings.end(run)

    def beat(self) -> None:
        """Tell the other processes of this host that this one gets to run."""
        paused = self.worker.status.name == "paused"
        limit = self.worker.memory_manager.memory_limit
        percent = 0
        if paused and limit:
            percent = int(100 * self.worker.monitor.get_process_memory() / limit)
        for gang in list(self.gangs.values()):
            gang.beat(percent)

    async def take_parcel(
        self, run: bytes, incarnation: int, exchange: int, sender: int, stop: bool, content: Any
    ) -> dict[str, str]:
        """Take in a partial sum from another host."""
        courier = self._couriers.get(run.hex())
        if courier is None:
            return {"status": "later"}
        try:
            courier.put(Parcel(run, incarnation, exchange, sender, stop, content))
        except FlowmlError as error:
            return {"status": str(error)}
        return {"status": "OK"}

    async def pulse(self, run: str) -> dict[str, str]:
        """Answer, as long as this worker is in the run."""
        return {"status": "OK" if run in self.gangs else "gone"}

    def abort_from_scheduler(self, run: str, worker: str) -> None:
        """End a run because a worker of it was lost. Must not raise: it is a stream handler."""
        gang = self.gangs.get(run)
        if gang is not None:
            gang.abort(WorkerLostError(
                f"worker {worker}", "left the cluster", kind="worker", worker=worker, operator="",
            ))
