"""Requests to tables over Dask's own transports: each is done once, whatever is lost on the way."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from distributed.core import Server, rpc

from flowml.errors import FlowmlError
from flowml.protocol.failures import Aborted, PeerLost
from flowml.protocol.promise_specs import Missing
from flowml.protocol.table_client import TableClient
from flowml.protocol.table_server import TableServer
from flowml.protocol.table_wire import DELIVER, READ, REFUSED, Act, Frame, Item
from flowml.runtime import table_call
from flowml.runtime._dask import bytes_payload
from flowml.runtime.table_call import TableCall
from flowml.runtime.table_desk import TableDesk

RUN, LIMIT = b"r" * 16, 1 << 20
WRITERS, CALLS = 4, 1_000


class Recorded:
    """Tables that note what is done; a read waits until ``open``."""

    def __init__(self) -> None:
        self.done: list[tuple[int, int, int]] = []
        self.open, self.stop = True, 0

    def check(self, frame: Frame) -> None:
        if any(act.place for act in frame.acts):
            raise FlowmlError("request", "must be about place 0")

    def missing(self, writer: int, act: Act) -> Missing | None:
        return None if self.open or act.kind != READ else Missing("w -> g", (0,), act.step)

    def may(self, writer: int, act: Act) -> bool:
        return self.missing(writer, act) is None

    def apply(self, writer: int, act: Act) -> Act:
        if act.step == 13 and act.kind == READ:
            raise ValueError("an unlucky step")
        self.done.append((writer, act.kind, act.step))
        return act._replace(event=len(self.done), items=())


class Served:
    """A server of Dask's in a thread, with a desk behind one handler."""

    def __init__(self, address: str) -> None:
        self.tables = Recorded()
        self.errors: list[BaseException] = []
        self.silences: list[tuple[int, Missing, float]] = []
        server = TableServer(RUN, 1, self.tables, range(WRITERS))
        self.desk = TableDesk(
            server,
            self.tables,  # type: ignore[arg-type]
            LIMIT,
            self.errors.append,
            lambda *seen: self.silences.append(seen),
        )
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.server = self.on_loop(self._listen(address))
        self.rpc = self.on_loop(self._connect())

    def on_loop(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    async def _listen(self, address: str) -> Server:
        server = Server({"tables": self._take})
        await server.listen(address)
        return server

    async def _connect(self) -> Any:
        return rpc(self.server.address)

    async def _take(self, content: Any) -> dict[str, Any]:
        asked = asyncio.wrap_future(self.desk.ask(content))
        try:
            reply = await asyncio.wait_for(asked, 0.3)
        except TimeoutError:
            return {"status": "later", "parked": True}
        except Exception as error:
            return {"status": str(error)}
        return {"status": "OK", "reply": bytes_payload(reply)}

    async def send(self, content: bytes) -> Mapping[str, Any]:
        found: Mapping[str, Any] = await self.rpc.tables(content=bytes_payload(content))
        return found

    def call(self, send: Any = None, patience: float = 30.0) -> TableCall:
        return TableCall(send or self.send, self.loop, "far", patience, LIMIT)

    def close(self) -> None:
        self.desk.close()
        self.on_loop(self._close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        self.loop.close()

    async def _close(self) -> None:
        await self.rpc.close_rpc()
        await self.server.close()


@pytest.fixture(params=["tcp://127.0.0.1", "inproc://"])
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    found = Served(request.param)
    yield found
    found.close()


def lossy(served: Served, seed: int) -> Any:
    """Return a way that loses a quarter of requests, and of replies, and repeats a quarter."""
    rng = random.Random(seed)

    async def send(content: bytes) -> Mapping[str, Any]:
        if rng.random() < 0.25:
            raise OSError("the request is lost")
        sent = [served.send(content) for _ in range(2 if rng.random() < 0.25 else 1)]
        replies = await asyncio.gather(*sent)
        if rng.random() < 0.25:
            raise TimeoutError("the reply is lost")
        return replies[-1]

    return send


def test_each_request_is_done_once(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_call, "FIRST_PAUSE", 0.0)

    def write(writer: int) -> list[int]:
        client, call = TableClient(RUN, 1, writer), served.call(lossy(served, writer))
        open_requests, seen = [], []
        for step in range(CALLS):
            open_requests.append(call.start(client.ask(Act(DELIVER, step, items=(Item(0),)))))
            if len(open_requests) == 4:  # so that some come early
                for request in open_requests:
                    seen += [act.step for act in client.receive(request.result(60)) or ()]
                open_requests = []
        assert client.drained
        return seen

    with ThreadPoolExecutor(WRITERS) as pool:
        answered = list(pool.map(write, range(WRITERS)))
    assert answered == [list(range(CALLS))] * WRITERS
    done = served.tables.done
    assert sorted(done) == [(w, DELIVER, step) for w in range(WRITERS) for step in range(CALLS)]
    for writer in range(WRITERS):
        assert [step for w, _, step in done if w == writer] == list(range(CALLS))
    assert served.errors == []


def test_who_must_wait_is_told_so_and_answered_later(served: Served) -> None:
    served.tables.open = False
    client, call = TableClient(RUN, 1, 0), served.call()
    request = call.start(client.ask(Act(READ, 0)))
    with pytest.raises(TimeoutError):
        request.result(0.8)  # "later" has come twice
    assert served.silences
    assert served.silences[-1][:2] == (0, Missing("w -> g", (0,), 0))
    served.tables.open = True
    assert [act.kind for act in request.result(10).acts] == [READ]


def test_a_run_that_stops_refuses_who_waits(served: Served) -> None:
    served.tables.open = False
    client, call = TableClient(RUN, 1, 0), served.call()
    request = call.start(client.ask(Act(READ, 0)))
    served.tables.stop = 2
    reply = request.result(10)
    assert ([act.kind for act in reply.acts], reply.flags) == ([REFUSED], 2)


def test_what_does_not_fit_is_refused_and_nothing_of_it_is_done(served: Served) -> None:
    client, call = TableClient(RUN, 1, 0), served.call()
    acts = Act(DELIVER, 0), Act(DELIVER, 0, place=7)
    with pytest.raises(Aborted, match="must be about place 0"):
        call.start(client.ask(*acts)).result(10)
    other = TableClient(RUN, 2, 0)
    with pytest.raises(Aborted, match="incarnation 2"):
        call.start(other.ask(Act(DELIVER, 0))).result(10)
    assert served.tables.done == []
    assert served.errors == []


def test_bytes_that_are_no_frame_do_nothing(served: Served) -> None:
    for content in (b"", b"flTA", bytes(200), b"x" * (LIMIT + 1)):
        assert "table message" in served.on_loop(served.send(content))["status"]
    assert served.tables.done == []
    client, call = TableClient(RUN, 1, 0), served.call()
    assert call.start(client.ask(Act(DELIVER, 0))).result(10).acts


def test_an_operator_that_fails_ends_the_run(served: Served) -> None:
    client, call = TableClient(RUN, 1, 0), served.call()
    with pytest.raises(Aborted, match="an unlucky step"):
        call.start(client.ask(Act(READ, 13))).result(10)
    assert [str(error) for error in served.errors] == ["an unlucky step"]


def test_a_server_that_gives_no_sign_of_life_is_lost(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(content: bytes) -> Mapping[str, Any]:
        raise OSError("nobody there")

    async def sit(content: bytes) -> Mapping[str, Any]:
        await asyncio.sleep(60)
        return {}

    monkeypatch.setattr(table_call, "PARK_SECONDS", 0.1)
    for send in (refuse, sit):
        request = served.call(send, 0.5).start(TableClient(RUN, 1, 0).ask(Act(READ, 0)))
        with pytest.raises(PeerLost, match="must serve the tables"):
            request.result(10)
