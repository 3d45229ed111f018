"""A small reverse proxy: everything under /proxy/dask/ goes to another server, without that prefix.

As jupyter-server-proxy does it, with websockets. One request a connection, so that only the first
line of each has to be rewritten.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PREFIX = "/proxy/dask"


@contextmanager
def reverse_proxy(port: int) -> Iterator[str]:
    """Yield the address under which the server at 127.0.0.1:port is found."""
    started = threading.Event()
    found: list[str] = []
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        server = await asyncio.start_server(lambda r, w: _forward(r, w, port), "127.0.0.1", 0)
        found.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{PREFIX}")
        started.set()
        async with server:
            with suppress(asyncio.CancelledError):
                await server.serve_forever()

    def run() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(serving)
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    serving = loop.create_task(serve())
    thread = threading.Thread(target=run, name="reverse proxy")
    thread.start()
    try:
        assert started.wait(10)
        yield found[0]
    finally:
        loop.call_soon_threadsafe(serving.cancel)
        thread.join(10)


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *headers = head.split(b"\r\n")
    method, path, version = first.split(b" ", 2)
    if not path.startswith(PREFIX.encode()):
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    else:
        path = path.removeprefix(PREFIX.encode()) or b"/"
        if not any(h.lower().startswith(b"upgrade:") for h in headers):
            headers = [h for h in headers if not h.lower().startswith(b"connection:")]
            headers.insert(0, b"Connection: close")
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        inner_writer.write(b"\r\n".join([b" ".join((method, path, version)), *headers]))
        await asyncio.gather(_pipe(reader, inner_writer), _pipe(inner_reader, writer))
    with suppress(OSError):
        writer.close()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while content := await reader.read(65536):
            writer.write(content)
            await writer.drain()
    with suppress(OSError):
        writer.close()
