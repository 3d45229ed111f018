"""Parcels between domains over the workers' own Dask RPC: no port, no TLS of our own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from time import monotonic
from typing import Any

from flowml.protocol.failures import PeerLost
from flowml.protocol.mailbox import Mailbox, Parcel
from flowml.runtime._dask import as_payload, event_loop, worker_rpc
from flowml.runtime.moved import Moved
from flowml.runtime.runspec import RunSpec
from flowml.types import Array

SLICE_SECONDS = 0.25
TRIES = 3
LONGEST_PULSE_SECONDS = 10.0


class RpcCourier:
    """Swaps parcels with the leaders of the other domains.

    Parameters
    ----------
    dask_worker : distributed.Worker
        Whose RPC carries the parcels.
    spec : RunSpec
    me : str
        Its address.

    Attributes
    ----------
    on_silence : callable of (str, float)
        Called in the waiting thread with the address of a worker that does not answer and the
        seconds waited; it may raise. Does nothing unless set.

    Notes
    -----
    ``swap`` is called by one thread at a time; ``put`` and ``fail`` come from the event loop.
    """

    def __init__(self, dask_worker: Any, spec: RunSpec, me: str) -> None:
        self._worker = dask_worker
        self._loop = event_loop(dask_worker)
        self._spec = spec
        self._domain = spec.roster.domains.index(spec.roster.domain(me))
        self._leaders = {
            d: workers[0] for d, workers in enumerate(spec.roster.domains) if d != self._domain
        }
        roster = spec.roster
        self._mailbox = Mailbox(self._leaders, roster.run, roster.incarnation)
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._sent = Moved()
        self._asked: dict[str, float] = {}
        self.on_silence: Callable[[str, float], None] = _keep_waiting

    def put(self, parcel: Parcel) -> None:
        """Take in what another leader sent."""
        with self._changed:
            self._mailbox.put(parcel)
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Make a waiting swap, and every later one, raise ``error``."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def check(self, worker: str, waited: float) -> None:
        """Ask an awaited worker for a sign of life, once a deadline; say so if none comes.

        Parameters
        ----------
        waited : float
            Seconds so far.
        """
        deadline, now = self._spec.order.deadline_seconds, monotonic()
        if waited < deadline or now - self._asked.get(worker, -deadline) < deadline:
            return
        self._asked[worker] = now
        if not self._is_alive(worker):
            self.on_silence(worker, waited)

    def swap(self, parcels: Mapping[int, Array], stop: bool) -> tuple[dict[int, Array], bool]:
        """Send one parcel a domain, await one from each.

        Raises
        ------
        PeerLost
            Naming the worker that is gone.
        BaseException
            What ``fail`` was given, or what ``on_silence`` raised.
        """
        roster, number = self._spec.roster, self._mailbox.exchange
        sending = [
            self._submit(
                self._deliver(
                    domain,
                    Parcel(
                        roster.run,
                        roster.incarnation,
                        number,
                        self._domain,
                        stop,
                        parcels.get(domain),
                    ),
                )
            )
            for domain in self._leaders
        ]
        try:
            self._await_all(dict(zip(self._leaders, sending, strict=True)))
        except BaseException:
            for future in sending:  # it may be waiting for a process that is stopped
                future.cancel()
            raise
        self._sent.messages += len(self._leaders)
        self._sent.message_bytes += sum(p.nbytes for p in parcels.values())
        with self._changed:
            found = self._mailbox.take()
        asked = any(p.stop for p in found.values())
        return {d: p.content for d, p in found.items()}, asked

    def take_sent(self) -> Moved:
        """Return the messages that were sent since the last call."""
        sent, self._sent = self._sent, Moved()
        return sent

    def _await_all(self, sending: Mapping[int, Future[None]]) -> None:
        began = monotonic()
        while True:
            with self._changed:
                if self._error is not None:
                    raise self._error
                missing = self._mailbox.missing()
                if missing:
                    self._changed.wait(SLICE_SECONDS)
                    missing = self._mailbox.missing()
            for future in sending.values():
                if future.done():
                    future.result()
            unsent = [d for d, f in sending.items() if not f.done()]
            if not missing and not unsent:
                return
            if not missing:
                with self._changed:
                    self._changed.wait(0.0005)
            if monotonic() - began > self._spec.order.deadline_seconds:
                began = self._check_pulse({*missing, *unsent}, began)

    def _check_pulse(self, awaited: set[int], began: float) -> float:
        """Return a new start of the wait, after asking all whom we wait for to answer."""
        for domain in sorted(awaited):
            if not self._is_alive(self._leaders[domain]):
                self.on_silence(self._leaders[domain], monotonic() - began)
        return monotonic()

    def _is_alive(self, address: str) -> bool:
        pulse = self._submit(self._pulse(address))
        try:
            return bool(pulse.result(min(self._spec.order.deadline_seconds, LONGEST_PULSE_SECONDS)))
        except (TimeoutError, OSError):
            pulse.cancel()
            return False

    def _submit(self, coroutine: Any) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def _pulse(self, address: str) -> bool:
        reply = await worker_rpc(self._worker, address).flowml_pulse(run=self._spec.name)
        return bool(reply and reply.get("status") == "OK")

    async def _deliver(self, domain: int, parcel: Parcel) -> None:
        """Send a parcel until it is acknowledged; the receiver drops repeats."""
        address = self._leaders[domain]
        content = None if parcel.content is None else as_payload(parcel.content)
        failure: object = "nothing"
        attempt = 0
        while attempt < TRIES:
            try:
                reply = await worker_rpc(self._worker, address).flowml_exchange(
                    run=parcel.run,
                    incarnation=parcel.incarnation,
                    exchange=parcel.exchange,
                    sender=parcel.sender,
                    stop=parcel.stop,
                    content=content,
                )
            except OSError as error:
                failure = error
                attempt += 1
                await asyncio.sleep(0.1 * attempt)
                continue
            status = "no answer" if reply is None else reply.get("status")
            if status == "OK" or self._error is not None:
                return
            if status != "later":
                failure = status
                break
            await asyncio.sleep(0.01)  # it has not joined yet
        raise PeerLost(
            f"worker {address}",
            "must take part in the exchange between hosts",
            str(failure),
            member=-1,
            kind="worker",
            worker=address,
            operator="",
        )


def _keep_waiting(address: str, waited_seconds: float) -> None:
    """Wait on, whoever is silent."""
