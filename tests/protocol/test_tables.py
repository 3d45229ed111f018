"""The lines to tables: thousands of seeds of a network that loses what it can, planted faults."""

from __future__ import annotations

import inspect
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import ModuleType

import numpy as np
import pytest

from flowml.errors import StaleRunError
from flowml.protocol import one_version, promise_rule, table_client, table_server
from flowml.protocol.failures import ProtocolError
from flowml.protocol.table_client import WINDOW, TableClient
from flowml.protocol.table_server import EARLY, TableServer
from flowml.protocol.table_wire import DELIVER, READ, REFUSED, Act, Frame
from tests.protocol.simulate_tables import FRAMES, RUN, Violation, simulate

SEEDS, AT_ONCE = 10_000, 250


def played(seeds: range) -> tuple[int, int, int, int]:
    """Play some seeds; return events, frames, the fewest frames of a seed, and crashes."""
    simulations = [simulate(seed) for seed in seeds]
    frames = [s.sent for s in simulations]
    crashes = sum(s.incarnation - 1 for s in simulations)
    return sum(s.events for s in simulations), sum(frames), min(frames), crashes


def test_thousands_of_seeds_keep_every_invariant() -> None:
    """The simulator raises with the seed on the first violation: ``simulate(seed)`` repeats it."""
    began = time.perf_counter()
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        parts = [range(start, start + AT_ONCE) for start in range(0, SEEDS, AT_ONCE)]
        events, frames, fewest, crashes = zip(*pool.map(played, parts), strict=True)
    seconds = time.perf_counter() - began
    print(
        f"\n{SEEDS} seeds, {sum(frames)} frames, {sum(crashes)} crashes, {sum(events)} events, "
        f"{sum(events) / seconds:.0f} events/s, {seconds:.1f} s"
    )
    assert min(fewest) >= FRAMES
    assert sum(crashes) > SEEDS / 2


def test_a_seed_replays_identically() -> None:
    one, two = simulate(17), simulate(17)
    assert one.trace == two.trace
    assert one.trace
    assert (one.events, one.sent, one.now) == (two.events, two.sent, two.now)


# -- planted faults ----------------------------------------------------------------------------

PLANTED: dict[str, tuple[ModuleType, dict[str, str]]] = {
    "a repeat is done again": (
        table_server,
        {
            "if frame.seq <= writer.done:": "if False:",
            "setdefault(frame.seq, frame)": "setdefault(max(frame.seq, writer.done + 1), frame)",
            "writer.results = frame.seq,": "writer.results = max(frame.seq, writer.done + 1),",
        },
    ),
    "what was done before a crash counts as done": (
        table_server,
        {"_Writer((done or {}).get(w, 0))": "_kept(tables, w, (done or {}).get(w, 0))"},
    ),
    "an early one is done at once": (
        table_server,
        {"writer.early.get(writer.done + 1)": "next(iter(writer.early.values()), None)"},
    ),
    "a request of an old incarnation is taken": (
        table_server,
        {
            'fence("table request", self.run, self.incarnation, frame.run, '
            "frame.incarnation)": "pass"
        },
    ),
    "a reply of an old incarnation is taken": (
        table_client,
        {'fence("table reply", self.run, self.incarnation, frame.run, frame.incarnation)': "pass"},
    ),
    "nobody is woken by what another has done": (
        table_server,
        {"moved = moved or finished or len(writer.results) > before": "pass"},
    ),
    "only the last reply can be had again": (
        table_server,
        {"[s for s in writer.replies if s <= frame.known]": "[*writer.replies][:-1]"},
    ),
    "a parked request is done before it may": (
        table_server,
        {"if self._tables.may(number, act):": "if True:"},
    ),
    "a parked request begins again": (
        table_server,
        {"                return False": "                writer.results = []; return False"},
    ),
    "who ends is let go before all is answered": (
        table_client,
        {"return not self._open": "return True"},
    ),
    "a repeated reply is taken again": (
        table_client,
        {"if self._open.pop(frame.seq, None) is None:": "if self._open.pop(frame.seq, 0) is None:"},
    ),
    "a copy is of two versions": (
        one_version,
        {"if version() == before:": "if True:"},
    ),
    "a read may be one step later": (
        promise_rule,
        {"gate.complete() < need:": "gate.complete() < need - 1:"},
    ),
}


def plant(monkeypatch: pytest.MonkeyPatch, right: ModuleType, lines: dict[str, str]) -> None:
    """Let the simulator use a module some of whose lines were made wrong."""
    source = inspect.getsource(right)
    for line, wrong in lines.items():
        assert source.count(line) == 1, f"the guard is no longer written as {line!r}"
        source = source.replace(line, wrong)
    module = ModuleType(f"{right.__name__}_planted")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    kept: dict[object, object] = {}

    def kept_writer(tables: object, writer: int, done: int) -> object:
        key = tables.case, tables.number, writer  # type: ignore[attr-defined]
        return kept.setdefault(key, module.__dict__["_Writer"](done))

    module.__dict__["_kept"] = kept_writer
    exec(compile(source, module.__name__, "exec"), module.__dict__)
    for name in ("TableServer", "TableClient", "PromiseRule", "copy_one_version"):
        if name in vars(right) and vars(right)[name].__module__ == right.__name__:
            monkeypatch.setattr(right, name, module.__dict__[name])


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, *PLANTED[name])
    violation = ""
    for seed in range(SEEDS):
        try:
            simulate(seed)
        except Violation as found:
            violation = str(found)
            break
    print(f"\n{name}: {violation[:150]}")
    assert ": Violation: " in violation, "not caught, or it broke something else than an invariant"


# -- one rule at a time ------------------------------------------------------------------------


class Recorded:
    """Tables that note what is done; reads wait for ``open``."""

    def __init__(self) -> None:
        self.done: list[tuple[int, int, int]] = []
        self.open, self.stop = True, 0

    def may(self, writer: int, act: Act) -> bool:
        return self.open or act.kind != READ

    def apply(self, writer: int, act: Act) -> Act:
        self.done.append((writer, act.kind, act.step))
        return act._replace(event=len(self.done))


def line(tables: Recorded, writers: int = 2) -> tuple[TableServer, list[TableClient]]:
    server = TableServer(RUN, 1, tables, range(writers))
    return server, [TableClient(RUN, 1, w) for w in range(writers)]


def test_a_lost_reply_is_sent_again_and_done_once() -> None:
    tables = Recorded()
    server, (client, _) = line(tables)
    frame = client.ask(Act(DELIVER, 0))
    first = server.receive(frame)
    again = server.receive(frame)
    assert first == again
    assert tables.done == [(0, DELIVER, 0)]
    assert client.receive(first[0]) is not None
    assert client.receive(first[0]) is None
    assert client.drained


def test_each_reply_can_be_had_again_until_the_writer_has_it() -> None:
    server, (client, _) = line(Recorded())
    frames = [client.ask(Act(DELIVER, step)) for step in range(3)]
    replies = [server.receive(frame)[0] for frame in frames]
    assert [server.receive(frame) for frame in frames] == [[reply] for reply in replies]
    client.receive(replies[0])
    server.receive(client.ask(Act(DELIVER, 3)))
    assert [server.receive(frame) for frame in frames] == [[], [replies[1]], [replies[2]]]


def test_requests_are_done_in_their_order() -> None:
    tables = Recorded()
    server, (client, _) = line(tables)
    frames = [client.ask(Act(DELIVER, step)) for step in range(3)]
    assert server.receive(frames[2]) == []
    assert server.receive(frames[1]) == []
    assert [reply.seq for reply in server.receive(frames[0])] == [1, 2, 3]
    assert [step for _, _, step in tables.done] == [0, 1, 2]


def test_a_parked_act_goes_on_where_it_stood() -> None:
    tables = Recorded()
    tables.open = False
    server, (client, other) = line(tables)
    frame = client.ask(Act(DELIVER, 0), Act(READ, 1))
    assert server.receive(frame) == []
    assert server.parked() == (0,)
    tables.open = True
    replies = server.receive(other.ask(Act(DELIVER, 0)))
    assert [reply.writer for reply in replies] == [0, 1]
    assert [a.kind for a in replies[0].acts] == [DELIVER, READ]
    assert tables.done == [(0, DELIVER, 0), (0, READ, 1), (1, DELIVER, 0)]


def test_a_run_that_stops_answers_what_is_parked() -> None:
    tables = Recorded()
    tables.open = False
    server, (client, _) = line(tables)
    assert server.receive(client.ask(Act(READ, 0))) == []
    tables.stop = 1
    (reply,) = server.poll()
    assert reply.flags == 1
    assert [act.kind for act in reply.acts] == [REFUSED]
    assert tables.done == []
    client.receive(reply)
    assert client.stop == 1


def test_a_snapshot_goes_on_behind_what_was_done() -> None:
    tables = Recorded()
    server, (client, _) = line(tables)
    client.receive(server.receive(client.ask(Act(DELIVER, 0)))[0])
    later = TableServer(RUN, 2, tables, range(2), server.done())
    fresh = TableClient(RUN, 2, 0, client.done)
    assert later.receive(TableClient(RUN, 2, 0).ask(Act(DELIVER, 0))) == []
    (reply,) = later.receive(fresh.ask(Act(DELIVER, 1)))
    assert reply.seq == 2
    assert [step for _, _, step in tables.done] == [0, 1]


def test_other_runs_and_other_people_are_refused() -> None:
    server, (client, _) = line(Recorded())
    frame = client.ask(Act(READ, 0))
    with pytest.raises(StaleRunError, match="incarnation 2"):
        server.receive(TableClient(RUN, 2, 0).ask(Act(READ, 0)))
    with pytest.raises(StaleRunError):
        server.receive(TableClient(b"s" * 16, 1, 0).ask(Act(READ, 0)))
    with pytest.raises(ProtocolError, match="one of \\[0, 1\\]"):
        server.receive(TableClient(RUN, 1, 7).ask(Act(READ, 0)))
    (reply,) = server.receive(frame)
    with pytest.raises(ProtocolError, match="comes from"):
        server.receive(reply)
    with pytest.raises(ProtocolError, match="must answer a request of replica 1"):
        TableClient(RUN, 1, 1).receive(reply)
    with pytest.raises(ProtocolError, match="must answer"):
        TableClient(RUN, 1, 0).receive(reply)


def test_both_ends_are_bounded() -> None:
    server, (client, _) = line(Recorded())
    for step in range(WINDOW):
        client.ask(Act(DELIVER, step))
    assert not client.has_room
    with pytest.raises(ProtocolError, match="may be under way"):
        client.ask(Act(DELIVER, WINDOW))
    far = Frame(1, RUN, 1, 0, EARLY + 1, (Act(DELIVER, 0),))
    with pytest.raises(ProtocolError, match="ahead"):
        server.receive(far)


def test_a_server_keeps_as_much_after_many_requests_as_after_one() -> None:
    tables = Recorded()
    server, (client, _) = line(tables, 2)
    for step in range(3_000):
        (reply,) = server.receive(client.ask(Act(DELIVER, step)))
        client.receive(reply)
    assert server.done() == {0: 3_000, 1: 0}
    kept = [len(w.early) + len(w.results) + len(w.replies) for w in server._writers.values()]
    assert kept == [1, 0]
    np.testing.assert_array_equal([step for _, _, step in tables.done], np.arange(3_000))
