"""Every name of Dask and distributed that is not public, each behind a function of ours.

A test imports each of them by its path, so that a release of Dask that moves one fails there and
not in a run.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future as Waiting
from contextlib import suppress
from time import time
from typing import Any

import numpy as np
from distributed.client import ClosedClientError
from distributed.metrics import context_meter
from distributed.protocol.pickle import dumps as dask_dumps
from distributed.protocol.serialize import to_serialize
from distributed.scheduler import heartbeat_interval

logger = logging.getLogger(__name__)


def add_route(scheduler: Any, path: str, taker: type, options: dict[str, Any]) -> None:
    """Serve a path of the scheduler's web server, under its prefix; once, however often asked.

    Parameters
    ----------
    path : str
        Without a leading slash.
    taker : type
        A tornado.web.RequestHandler.
    """
    application = scheduler.http_application
    pattern = re.escape(http_prefix(scheduler) + path)
    hosts = [r.target for r in application.default_router.rules if hasattr(r.target, "rules")]
    known = [m.matcher.regex.pattern for h in hosts for m in h.rules if hasattr(m.matcher, "regex")]
    if f"{pattern}$" not in known:
        application.add_handlers(r".*", [(pattern, taker, options)])


def http_prefix(scheduler: Any) -> str:
    """Return what stands before all paths of the scheduler's web server, such as "/" or "/dask/".

    Notes
    -----
    The scheduler does not keep it. Its dashboard does; without one, the first of its own paths
    that ends as it does without a prefix says it.
    """
    application = scheduler.http_application
    for page in application.applications:
        if hasattr(page, "prefix"):
            return str(page.prefix).rstrip("/") + "/"
    for rule in application.wildcard_router.rules:
        pattern = getattr(getattr(rule.matcher, "regex", None), "pattern", "")
        if pattern.endswith("/health$"):
            return str(pattern.removesuffix("health$"))
    return "/"


def as_payload(array: Any) -> Any:
    """Mark an array to be sent as it is, without pickle."""
    return to_serialize(array)


def pickled(thing: Any) -> bytes:
    """Return an object pickled as distributed does it: functions by value where needed."""
    return bytes(dask_dumps(thing))


def worker_rpc(worker: Any, address: str) -> Any:
    """Return a pooled connection from one worker to another."""
    return worker.rpc(address)


def bytes_payload(content: bytes) -> Any:
    """Mark bytes to be sent as they are: they arrive as an array of uint8."""
    return to_serialize(np.frombuffer(content, np.uint8))


def event_loop(server: Any) -> asyncio.AbstractEventLoop:
    """Return the event loop of a worker or scheduler."""
    found: asyncio.AbstractEventLoop = server.loop.asyncio_loop
    return found


def add_request(server: Any, name: str, function: Any) -> None:
    """Answer a request by name."""
    server.handlers[name] = function


def add_stream(server: Any, name: str, function: Any) -> None:
    """Take one-way messages by name; what it raises is logged, since it would end the stream."""

    def take(**message: Any) -> None:
        try:
            function(**message)
        except Exception:
            logger.exception("message %r could not be taken", name)

    server.stream_handlers[name] = take


def remove_names(server: Any, *names: str) -> None:
    """Stop answering requests and taking messages."""
    for name in names:
        server.handlers.pop(name, None)
        server.stream_handlers.pop(name, None)


def tell_workers(scheduler: Any, messages: dict[str, list[dict[str, Any]]]) -> None:
    """Send one-way messages from the scheduler to workers."""
    scheduler.send_all({}, messages)


def tell_from_worker(worker: Any, message: dict[str, Any]) -> None:
    """Send a one-way message to the scheduler, from the event loop of a worker.

    Notes
    -----
    The scheduler must have a taker of that name: without one, it ends the worker's connection.
    """
    worker.batched_send(message)


def tell_from_client(client: Any, message: dict[str, Any]) -> None:
    """Send a one-way message to the scheduler from any thread of a client, unless it is closed.

    Notes
    -----
    The scheduler must have a taker of that name, as above.
    """
    with suppress(ClosedClientError):
        client._send_to_scheduler(message)


def digest(label: str, seconds: float) -> None:
    """Tell Dask's fine performance metrics what seconds of the present task went into.

    Notes
    -----
    Dask keeps every label for the life of the scheduler: no names that change from run to run.
    """
    context_meter.digest_metric(label, seconds, "seconds")


INTERRUPTIONS = ("profile", "tick", "memory_monitor", "monitor")
"""What a worker's event loop does most often: samples its threads, notes that it is awake, looks
at its memory, and at what the machine says of processor, network and disk."""


def interruptions(worker: Any) -> dict[str, Any]:
    """Return the periodic callbacks of a worker that come most often, by name."""
    found = worker.periodic_callbacks
    return {name: found[name] for name in INTERRUPTIONS if name in found}


def gather_within(client: Any, futures: Any, seconds: float) -> list[Any] | None:
    """Return the values of futures, or None if they cannot be had in time or at all."""

    async def fetch() -> list[Any]:
        return list(await client.gather(futures, asynchronous=True))

    try:
        return list(client.sync(fetch, callback_timeout=seconds))
    except Exception:  # whatever it is, the values are not to be had
        return None


def start_gathering(client: Any, futures: Sequence[Any]) -> Waiting[list[Any]]:
    """Begin to fetch the values of futures, without those that are lost meanwhile."""

    async def fetch() -> list[Any]:
        return list(await client.gather(list(futures), errors="skip", asynchronous=True))

    return asyncio.run_coroutine_threadsafe(fetch(), client.loop.asyncio_loop)


def run_within(
    client: Any, function: Callable[..., Any], *inputs: Any, workers: Sequence[str], seconds: float
) -> dict[str, Any]:
    """Run a function on workers' event loops; leave out those that do not answer in time.

    Notes
    -----
    ``client.run`` waits for all of them together and without end: one stopped process would hold
    up whatever is asked of the others.
    """

    async def ask(worker: str) -> Any:
        call = client._run(function, *inputs, workers=[worker], on_error="return")
        return (await asyncio.wait_for(call, seconds))[worker]

    async def ask_all() -> list[Any]:
        return await asyncio.gather(*map(ask, workers), return_exceptions=True)

    answers = client.sync(ask_all)
    return {w: a for w, a in zip(workers, answers, strict=True) if not _missing(a)}


def _missing(answer: Any) -> bool:
    return isinstance(answer, OSError | TimeoutError | asyncio.CancelledError | KeyError)


def silences(scheduler: Any, workers: Sequence[str]) -> dict[str, float]:
    """Return the seconds since the last heartbeat of each worker that has missed ten."""
    beat = heartbeat_interval(len(scheduler.workers))
    now = time()
    found = {w: now - scheduler.workers[w].last_seen for w in workers if w in scheduler.workers}
    return {w: seconds for w, seconds in found.items() if seconds > 10 * beat}
