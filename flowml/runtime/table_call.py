"""Carries the requests of a worker's replicas to the worker that serves the tables: Dask's RPC.

A request is sent again, as it is, until its reply comes: what was lost on the way is made good, and
what was done already is answered from what the server has kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from time import monotonic
from typing import Any

from flowml.protocol.failures import Aborted, PeerLost
from flowml.protocol.table_wire import Frame

PARK_SECONDS = 2.0
"""After which a parked request is answered with "later": a sign of life."""
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.5

Send = Callable[[bytes], Awaitable[Mapping[str, Any] | None]]
"""Sends a request; returns a status and, if that is OK, the reply."""


class TableCall:
    """One worker's way to the server.

    Parameters
    ----------
    send : callable
    loop : asyncio event loop
        Where it runs.
    worker : str
        Address of the server, for messages.
    patience_seconds : float
        How long the server may give no sign of life.
    limit : int
        The longest frame. Bytes.
    """

    def __init__(
        self,
        send: Send,
        loop: asyncio.AbstractEventLoop,
        worker: str,
        patience_seconds: float,
        limit: int,
    ) -> None:
        self._send = send
        self._loop = loop
        self._worker = worker
        self._patience = max(patience_seconds, 2 * PARK_SECONDS)
        self._limit = limit

    def start(self, frame: Frame) -> Future[Frame]:
        """Send a request; the future gets its reply.

        The future gets a PeerLost if the server gives no sign of life, Aborted if it refuses.
        """
        return asyncio.run_coroutine_threadsafe(self._until_answered(frame.encode()), self._loop)

    async def _until_answered(self, content: bytes) -> Frame:
        seen, pause = monotonic(), FIRST_PAUSE
        while True:
            failure: object = "nothing"
            try:
                reply = await asyncio.wait_for(self._send(content), self._patience)
                status = "no answer" if reply is None else str(reply.get("status"))
                if status == "OK" and reply is not None:
                    return Frame.decode(reply["reply"], self._limit)
                if status != "later":
                    raise Aborted("run", "was told to leave", status, member=-1, cause=status)
                seen, pause = monotonic(), FIRST_PAUSE
                if not (reply or {}).get("parked"):  # it has not joined yet
                    await asyncio.sleep(pause)
            except OSError as error:  # TimeoutError is one
                failure = error
            if monotonic() - seen > self._patience:
                raise self._lost(failure)
            if failure != "nothing":
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _lost(self, why: object) -> PeerLost:
        return PeerLost(
            f"worker {self._worker}",
            "must serve the tables that all replicas share",
            str(why) or type(why).__name__,
            member=-1,
            kind="worker",
            worker=self._worker,
            operator="",
        )
