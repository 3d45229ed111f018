"""The worker's part of flowml comes and goes without harm to Dask's own streams."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from flowml.runtime.worker_plugin import MESSAGES, FlowWorker


def test_a_message_after_the_end_is_taken_and_ignored() -> None:
    """Dask ends the stream of a worker that has no taker for a message, with a traceback."""
    worker = SimpleNamespace(handlers={}, stream_handlers={}, periodic_callbacks={})

    async def come_and_go() -> None:
        plugin = FlowWorker()
        plugin.setup(worker)
        assert set(worker.stream_handlers) == set(MESSAGES)
        plugin.teardown(worker)

    asyncio.run(come_and_go())
    assert worker.handlers == {}
    for message in MESSAGES:
        assert worker.stream_handlers[message](run="f" * 32, worker="tcp://gone") is None
