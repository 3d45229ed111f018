"""flowml on a Dask worker: holds the gangs of its runs and answers other workers.

Handlers run on the worker's event loop and only pass things on; ranks run in threads of the gang.
A run that has ended leaves its name for a while: a task of it that comes late is refused and cannot
bring anything of it back.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

from distributed.diagnostics.plugin import WorkerPlugin
from tornado.ioloop import PeriodicCallback

from flowml.data.rows import Rows
from flowml.data.source import Partition
from flowml.errors import FlowmlError, StaleRunError
from flowml.protocol.failures import Aborted
from flowml.protocol.mailbox import Parcel
from flowml.runtime._dask import (
    add_request,
    add_stream,
    bytes_payload,
    event_loop,
    remove_names,
    worker_rpc,
)
from flowml.runtime.courier import RpcCourier
from flowml.runtime.feeding import RESIDENT_BYTES
from flowml.runtime.gang import Gang
from flowml.runtime.host_hello import HostListener
from flowml.runtime.host_key import host_key
from flowml.runtime.loop_settings import LoopSettings
from flowml.runtime.loose_gang import LooseGang
from flowml.runtime.loose_memory import HOME
from flowml.runtime.prometheus import export, withdraw
from flowml.runtime.reports import WATCH, Reporter
from flowml.runtime.runspec import RunSpec
from flowml.runtime.table_call import PARK_SECONDS, TableCall
from flowml.runtime.watch import BEAT_SECONDS
from flowml.runtime.worker_counts import WorkerCounts

NAME = "flowml"
MESSAGES = ("flowml-lost", "flowml-abort", "flowml-close", WATCH)
"""What the scheduler tells a worker."""
ENDED_RUNS = 1000
"""Names of ended runs that a worker remembers."""
RESIDENT_SHARE = 4
"""Partitions may fill a quarter of the worker's memory limit."""


class FlowWorker(WorkerPlugin):
    """The part of flowml that lives on each worker."""

    name = NAME

    def setup(self, worker: Any) -> None:
        """Start to answer."""
        self.worker = worker
        self.settings = LoopSettings(worker)
        self.gangs: dict[str, Gang] = {}
        self._couriers: dict[str, RpcCourier] = {}
        self._listeners: dict[str, HostListener] = {}
        self._parts: dict[str, dict[tuple[str, int], Sequence[Rows | Partition]]] = {}
        self._ended: deque[str] = deque(maxlen=ENDED_RUNS)
        self._lock = threading.RLock()  # tasks and handlers run in different threads
        add_request(worker, "flowml_exchange", self.take_parcel)
        add_request(worker, "flowml_pulse", self.pulse)
        add_request(worker, "flowml_tables", self.take_request)
        self.reporter = Reporter(worker, self.gangs)
        self.counts = WorkerCounts(self.gangs)
        export(self.counts.samples)
        takers = self.worker_lost, self.abort, self.close, self.reporter.watch
        for message, taker in zip(MESSAGES, takers, strict=True):
            add_stream(worker, message, taker)
        self._beat = PeriodicCallback(self.beat, BEAT_SECONDS * 1000)
        self._beat.start()

    def teardown(self, worker: Any) -> None:
        """Let go of everything."""
        self._beat.stop()
        self.reporter.close()
        withdraw(self.counts.samples)
        for run in [*self.gangs, *self._listeners, *self._parts]:
            self.close(run)
        remove_names(worker, "flowml_exchange", "flowml_pulse", "flowml_tables")
        for message in MESSAGES:  # one that is on its way, without a taker, breaks Dask's stream
            add_stream(worker, message, ignored)

    def open(self, run: str, transport: str) -> tuple[str, str]:
        """Listen for the other processes of this host; return the host key and the address."""
        key = host_key(transport)
        if transport == "rpc":
            return key, ""
        with self._lock:
            self._refuse_ended(run)
            if run not in self._listeners:
                self._listeners[run] = HostListener()
            return key, self._listeners[run].address

    def load(self, run: str, operator: str, rank: int, parts: Sequence[Rows | Partition]) -> None:
        """Take the data of one rank."""
        with self._lock:
            self._refuse_ended(run)
            self._parts.setdefault(run, {})[operator, rank] = parts

    def parts(self, run: str, operator: str, rank: int) -> Sequence[Rows | Partition]:
        """Return the data of one rank, before it has joined."""
        return self._parts[run][operator, rank]

    def listener(self, run: str) -> HostListener | None:
        """Return where this process awaits the others of its host, before it has joined."""
        return self._listeners.get(run)

    def close_gang(self, run: str) -> None:
        """Forget a gang that could not meet, but keep its data for another try."""
        gang = self.gangs.pop(run, None)
        if gang is not None:
            gang.close()

    def join(self, spec: RunSpec) -> None:
        """Make this worker's gang and meet the others."""
        run, me = spec.name, self.worker.address
        self.close_gang(run)
        limit = self.worker.memory_manager.memory_limit
        ranks = max(1, len(spec.roster.ranks(me)))
        resident = limit // RESIDENT_SHARE // ranks if limit else RESIDENT_BYTES
        with self._lock:
            self._refuse_ended(run)
            courier = None
            if len(spec.roster.domains) > 1:
                courier = self._couriers[run] = RpcCourier(self.worker, spec, me)
            gang = self.gangs[run] = self._gang(spec, courier, resident)
            for (operator, rank), parts in self._parts.get(run, {}).items():
                gang.load(operator, rank, parts)
            self.settings.begin(run, spec.plan.blas_threads)
        gang.join(self._listeners.get(run))

    def _gang(self, spec: RunSpec, courier: RpcCourier | None, resident: int) -> Gang:
        me = self.worker.address
        if spec.loose is None:
            return Gang(spec, me, courier, resident)
        gang = LooseGang(spec, me, courier, resident)
        if spec.domain_of(me).number != HOME:
            gang.tables_at = self._tables_at(spec)
        return gang

    def _tables_at(self, spec: RunSpec) -> TableCall:
        """Return the way to the first worker of the domain that holds the tables."""
        home, order = spec.roster.domains[HOME][0], spec.order

        async def send(content: bytes) -> Any:
            rpc = worker_rpc(self.worker, home)
            return await rpc.flowml_tables(run=spec.name, content=bytes_payload(content))

        loop = event_loop(self.worker)
        return TableCall(send, loop, home, order.deadline_seconds, order.longest_message)

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
                f"worker {self.worker.address}",
                "must hold the state of the run",
                "a task of a run that has ended, or whose worker was restarted",
                "Start the run again.",
            )
        gang.spec.roster.fence(bytes.fromhex(run), incarnation, "task")
        return gang

    def all_met(self, run: str) -> None:
        """Let go of what only a further try to meet would need."""
        with self._lock:
            listener = self._listeners.pop(run, None)
            self._parts.pop(run, None)
        if listener is not None:
            listener.close()

    def _refuse_ended(self, run: str) -> None:
        if run in self._ended:
            raise StaleRunError(f"worker {self.worker.address}", "the run has ended here")

    def close(self, run: str) -> None:
        """Forget a run. Must not raise: it is a stream handler."""
        with self._lock:
            if run not in self._ended:
                self._ended.append(run)
            gang = self.gangs.pop(run, None)
            listener = self._listeners.pop(run, None)
            self._parts.pop(run, None)
            self._couriers.pop(run, None)
        if gang is not None:
            gang.close(listener)  # its threads may still meet there
        elif listener is not None:
            listener.close()
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
            return {"status": "the run has ended" if run.hex() in self._ended else "later"}
        try:
            courier.put(Parcel(run, incarnation, exchange, sender, stop, content))
        except FlowmlError as error:
            return {"status": str(error)}
        return {"status": "OK"}

    async def take_request(self, run: str, content: Any) -> dict[str, Any]:
        """Take in a request of a replica of another host; answer when it is done."""
        gang = self.gangs.get(run)
        asked = gang.ask_tables(content) if isinstance(gang, LooseGang) else None
        if asked is None:
            return {"status": "the run has ended" if run in self._ended else "later"}
        try:
            reply = await asyncio.wait_for(asyncio.wrap_future(asked), PARK_SECONDS)
        except TimeoutError:
            return {"status": "later", "parked": True}
        except Exception as error:  # whatever an operator raised: the sender's run is over too
            return {"status": str(error) or type(error).__name__}
        return {"status": "OK", "reply": bytes_payload(reply)}

    async def pulse(self, run: str) -> dict[str, str]:
        """Answer, as long as this worker is in the run."""
        return {"status": "OK" if run in self.gangs else "gone"}

    def worker_lost(self, run: str, worker: str) -> None:
        """End a run because a worker of it was lost. Must not raise: it is a stream handler."""
        gang = self.gangs.get(run)
        if gang is not None and gang.watch is not None:
            gang.abort(gang.watch.lost(worker))
        else:
            self.abort(run, f"worker {worker} was lost")

    def abort(self, run: str, reason: str) -> None:
        """Let the ranks of a run leave. Must not raise: it is a stream handler."""
        gang = self.gangs.get(run)
        if gang is not None:
            gang.abort(Aborted("run", "was told to leave", reason, member=-1, cause=reason))


def ignored(**_: Any) -> None:
    """Take a message for a plugin that has been taken down."""
