"""Serves replicas of other hosts at the memory that those of this host share.

Requests come in a queue, one thread takes them: whatever they do is done under the host's lock, one
at a time, so more threads would only wait for each other. Who may not go on yet is parked, and
looked at again after every request, and every half a millisecond for what replicas here have done.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from time import monotonic
from typing import Any

from flowml.errors import FlowmlError
from flowml.plan import Firing
from flowml.protocol.failures import ProtocolError
from flowml.protocol.promise_rule import ENDED, NO_STOP
from flowml.protocol.promise_specs import Missing
from flowml.protocol.table_server import TableServer
from flowml.protocol.table_wire import (
    ANSWER,
    BEHIND,
    DELIVER,
    LEAVE,
    READ,
    SKIP,
    STOP,
    Act,
    Frame,
)
from flowml.runtime.center import Center
from flowml.runtime.contributions import NOTHING
from flowml.runtime.host_lock import HostLock
from flowml.runtime.loose_rank import members_of, seats_of
from flowml.runtime.table_items import TableItems

POLL_SECONDS = 0.0005
SLICE_SECONDS = 0.25


class CenterTables:
    """What requests are about: the center of a loose run.

    Parameters
    ----------
    center : Center
    items : TableItems
    lock : HostLock
    last : int
        Steps of the run.
    """

    def __init__(self, center: Center, items: TableItems, lock: HostLock, last: int) -> None:
        self._center = center
        self._last = last
        self._reads_steadily = Firing(center.loose.local).is_steady
        self._items = items
        self._loose = center.loose
        self._lock = lock
        replicas = range(center.loose.plan.replicas)
        self._members = [members_of(center.loose, writer) for writer in replicas]

    @property
    def stop(self) -> int:
        """Why the run is to stop; 0: it goes on."""
        return self._center.rule.stop

    def check(self, frame: Frame) -> None:
        """Refuse a request that no replica makes."""
        if frame.writer < len(self._members):
            members = self._members[frame.writer]
            seats = len(seats_of(self._loose, members))
            self._items.check(frame.acts, members)
            if any(act.kind == LEAVE and act.place >= seats for act in frame.acts):
                raise ProtocolError(
                    "table request", f"leaves one of {seats} seats", str(frame)[:200]
                )

    def missing(self, writer: int, act: Act) -> Missing | None:
        """Return what an act waits for, or None."""
        rule, members = self._center.rule, self._members[writer]
        if act.kind == SKIP:
            return rule.room(act.place, members[act.place])
        if act.kind not in (READ, ANSWER):
            return None
        first = act.kind == READ and act.place == 0
        if first:
            full = (rule.room(team, member) for team, member in members.items())
            found = next((missing for missing in full if missing is not None), None)
            if found is not None or rule.behind(writer):
                return found
        return rule.missing([self._loose.reads[item.number] for item in act.items], act.step)

    def may(self, writer: int, act: Act) -> bool:
        """Tell whether an act may be done now; no step begins when the run is to stop."""
        begins = act.kind == READ and act.place == 0
        return not (begins and self.stop != NO_STOP) and self.missing(writer, act) is None

    def apply(self, writer: int, act: Act) -> Act:
        """Do an act, which may be done, and return what came of it."""
        with self._lock:
            return self._done(writer, act)

    def _done(self, writer: int, act: Act) -> Act:
        center, rule, members = self._center, self._center.rule, self._members[writer]
        if act.kind in (READ, ANSWER):
            behind = rule.behind(writer) if act.kind == READ and act.place == 0 else 0
            if behind and not self._may_move(writer, act, behind):
                return Act(BEHIND, act.step, 0, behind)
            act = self._moved(writer, act, behind)
            items = [
                made
                for item in act.items
                for made in self._items.read(item, center.reads, center.tables, act.step)
            ]
            event = rule.read() if items else 0
            return Act(act.kind, act.step, act.place, event, tuple(items))
        event = 0
        if act.kind == DELIVER:
            made = self._items.contributions(act)
            event = center.deliver(act.place, members[act.place], made, writer)
        elif act.kind == SKIP:
            nothing = {item.number: NOTHING for item in act.items}
            event = center.deliver(act.place, members[act.place], nothing, writer, skips=True)
        elif act.kind == LEAVE:
            kind, member = seats_of(self._loose, members)[act.place]
            event = center.leave(kind, member, writer)
        elif act.kind == STOP:
            rule.request_stop(act.place == ENDED)
        return Act(act.kind, act.step, act.place, event)

    def _may_move(self, writer: int, act: Act, behind: int) -> bool:
        """Tell whether a read can be answered for the step to which its replica is moved.

        Notes
        -----
        Who is told to move first and asks again would be behind again by then: a replica whose
        round trip is longer than a step would never make one.
        """
        rule, step = self._center.rule, act.step + behind
        reads = [self._loose.reads[item.number] for item in act.items]
        return (
            bool(reads)
            and self._reads_steadily
            and step < self._last
            and rule.missing(reads, step) is None
            and all(rule.may_skip(t, m, behind) for t, m in self._members[writer].items())
        )

    def _moved(self, writer: int, act: Act, behind: int) -> Act:
        """Move a replica over the steps that its quorum went on without it; return its read."""
        for step in range(act.step, act.step + behind):
            for team, member in self._members[writer].items():
                gates = [n for n, gate in enumerate(self._loose.gates) if gate.spec.team == team]
                expected = [n for n in gates if self._loose.gates[n].spec.delivers(step)]
                nothing = dict.fromkeys(expected, NOTHING)
                self._center.deliver(team, member, nothing, writer, skips=True)
        return act._replace(step=act.step + behind)


class TableDesk:
    """The queue and its thread.

    Parameters
    ----------
    server : TableServer
    tables : CenterTables
    limit : int
        The longest frame. Bytes.
    on_error : callable
        Told what ends the run.
    on_silence : callable of (int, Missing, float)
        Called every quarter of a second with a replica that waits, for what, and since when; it may
        raise.
    """

    def __init__(
        self,
        server: TableServer,
        tables: CenterTables,
        limit: int,
        on_error: Callable[[BaseException], None],
        on_silence: Callable[[int, Missing, float], None],
    ) -> None:
        self._server = server
        self._tables = tables
        self._limit = limit
        self._on_error = on_error
        self._on_silence = on_silence
        self._asked: queue.SimpleQueue[tuple[Any, Future[bytes]] | None] = queue.SimpleQueue()
        self._waiting: dict[tuple[int, int], list[Future[bytes]]] = {}
        self._since: dict[int, float] = {}
        self._told = 0.0
        self._thread = threading.Thread(target=self._run, name="flowml tables", daemon=True)
        self._thread.start()

    def ask(self, content: Any) -> Future[bytes]:
        """Queue a request; the future gets its reply, or why it is refused."""
        future: Future[bytes] = Future()
        self._asked.put((content, future))
        return future

    def close(self) -> None:
        """Let the thread end."""
        self._asked.put(None)

    def _run(self) -> None:
        try:
            while True:
                pause = POLL_SECONDS if self._server.parked() else SLICE_SECONDS
                try:
                    asked = self._asked.get(timeout=pause)
                except queue.Empty:
                    self._send(self._server.poll())
                else:
                    if asked is None:
                        return
                    self._take(*asked)
                self._watch()
        except BaseException as error:  # an operator that failed, or the run is over
            self._on_error(error)
            for futures in self._waiting.values():
                for future in futures:
                    _fail(future, error)

    def _take(self, content: Any, future: Future[bytes]) -> None:
        try:
            frame = Frame.decode(content, self._limit)
            self._tables.check(frame)
            self._server.admit(frame)
        except FlowmlError as error:  # nothing of it is done
            _fail(future, error)
            return
        self._waiting.setdefault((frame.writer, frame.seq), []).append(future)
        self._send(self._server.receive(frame))

    def _send(self, replies: list[Frame]) -> None:
        for reply in replies:
            futures = self._waiting.pop((reply.writer, reply.seq), [])
            content = reply.encode() if futures else b""
            for future in futures:
                if future.set_running_or_notify_cancel():
                    future.set_result(content)

    def _watch(self) -> None:
        """Look after those for whom parked requests wait."""
        now = monotonic()
        parked = self._server.parked()
        self._since = {w: self._since.get(w, now) for w in parked}
        if now - self._told < SLICE_SECONDS:
            return
        self._told = now
        for writer in parked:
            act = self._server.next_act(writer)
            missing = None if act is None else self._tables.missing(writer, act)
            if missing is not None:
                self._on_silence(writer, missing, now - self._since[writer])


def _fail(future: Future[bytes], error: BaseException) -> None:
    if future.set_running_or_notify_cancel():
        future.set_exception(error)
