"""Every name of Dask and distributed that is not public, each behind a function of ours.

A test imports each of them by its path, so that a release of Dask that moves one fails there and
not in a run.
"""

from __future__ import annotations

import asyncio
from typing import Any

from distributed.protocol import to_serialize
from distributed.protocol.pickle import dumps as dask_dumps


def as_payload(array: Any) -> Any:
    """Mark an array to be sent as it is, without pickle."""
    return to_serialize(array)


def pickled(thing: Any) -> bytes:
    """Return an object pickled as distributed does it: functions by value where needed."""
    return bytes(dask_dumps(thing))


def worker_rpc(worker: Any, address: str) -> Any:
    """Return a pooled connection from one worker to another."""
    return worker.rpc(address)


def event_loop(server: Any) -> asyncio.AbstractEventLoop:
    """Return the event loop of a worker or scheduler."""
    found: asyncio.AbstractEventLoop = server.loop.asyncio_loop
    return found


def add_request(server: Any, name: str, function: Any) -> None:
    """Answer a request by name."""
    server.handlers[name] = function


def add_stream(server: Any, name: str, function: Any) -> None:
    """Take one-way messages by name. The function must never raise: that would end the stream."""
    server.stream_handlers[name] = function


def remove_names(server: Any, *names: str) -> None:
    """Stop answering requests and taking messages."""
    for name in names:
        server.handlers.pop(name, None)
        server.stream_handlers.pop(name, None)


def tell_workers(scheduler: Any, messages: dict[str, list[dict[str, Any]]]) -> None:
    """Send one-way messages from the scheduler to workers."""
    scheduler.send_all({}, messages)


def statistical_profiler(worker: Any) -> Any:
    """Return the callback that samples a worker's threads every 10 ms, or None."""
    return worker.periodic_callbacks.get("profile")


def gather_within(client: Any, futures: Any, seconds: float) -> list[Any] | None:
    """Return the values of futures, or None if they cannot be had in time or at all."""

    async def fetch() -> list[Any]:
        return list(await client.gather(futures, asynchronous=True))

    try:
        return list(client.sync(fetch, callback_timeout=seconds))
    except Exception:  # whatever it is, the values are not to be had
        return None
