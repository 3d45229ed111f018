"""How the members of one host domain become a mesh with one shared segment.

Each member connects to all lower ones, in order, and then accepts all higher ones; since a member
waits for lower ones only before it accepts, no two wait for each other. Hellos go both ways. Then
the first member creates the segment and sends its descriptor to the others.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from time import monotonic
from typing import TypeVar

from flowml.errors import StaleRunError, StalledError
from flowml.protocol.arrival import Arrival
from flowml.protocol.failures import Aborted, PeerLost, ProtocolError
from flowml.protocol.fence import fence
from flowml.runtime.host_hello import HELLO_BYTES, Hello, HostListener, reach, read_hello
from flowml.runtime.segment import Segment

HELLO_SECONDS = 5.0
"""How long a connection may say nothing before it is dropped for the next one."""

_Result = TypeVar("_Result")
_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class Meeting:
    """One member's way to its mesh; used once.

    Parameters
    ----------
    listener : HostListener
        This member's own.
    mine : Hello
        What this member says; peers must agree with its run, incarnation and size.
    members : mapping of int to str
        Address of every member, this one included.
    deadline_seconds : float
        For all of it.
    reserved : int, optional
        Bytes of the segment that are there from the start; all of them when left out.
    """

    def __init__(
        self,
        listener: HostListener,
        mine: Hello,
        members: Mapping[int, str],
        deadline_seconds: float,
        reserved: int | None = None,
    ) -> None:
        self.mine = mine
        self._reserved = reserved
        self._listener = listener
        self._members = members
        self._seconds = deadline_seconds
        self._start = monotonic()
        self._sockets: dict[int, socket.socket] = {}

    def run(self) -> tuple[dict[int, socket.socket], Segment]:
        """Return a connected socket for each peer, and the segment.

        Raises
        ------
        StalledError
            A member has not come by the deadline.
        HostUnreachable, PeerLost, Aborted
            It cannot be reached, has gone, or could not create the segment.
        StaleRunError
            It is of another run or incarnation.
        PlanError
            This host has not enough memory for the segment.
        """
        with ExitStack() as undo:
            undo.callback(self._close)
            me = self.mine.member
            for member in sorted(m for m in self._members if m < me):
                self._connect(member)
            awaited = {m for m in self._members if m > me}
            while awaited:
                awaited.discard(self._accept(awaited))
            self._listener.hide()
            segment = self._share() if me == min(self._members) else self._attach()
            undo.pop_all()
            return self._sockets, segment

    def _close(self) -> None:
        for connection in self._sockets.values():
            connection.close()

    def _connect(self, member: int) -> None:
        address = self._members[member]
        connection = reach(address, member, self._listener.kind, self._left({member}))
        self._sockets[member] = connection
        self._timed(member, partial(connection.sendall, self.mine.encode()))
        frame = self._timed(member, partial(read_hello, connection))
        if not frame:
            raise self._gone(member)
        theirs = Hello.decode(frame)
        self._check(theirs)
        if theirs.member != member:
            raise ProtocolError("host link", f"must reach member {member}", str(theirs.member))

    def _accept(self, awaited: set[int]) -> int:
        """Take one connection in; return the member it is, or -1 for one that was refused."""
        left = self._left(awaited)
        try:
            connection = self._listener.accept(left)
        except TimeoutError as error:
            raise self._stalled(awaited) from error
        connection.settimeout(min(left, HELLO_SECONDS))
        try:
            theirs = Hello.decode(read_hello(connection))
            # Answered in any case: a stale peer learns from it that it is stale.
            connection.sendall(self.mine.encode())
            self._check(theirs)
            if theirs.member not in awaited:
                raise ProtocolError("host link", "is not awaited", f"member {theirs.member}")
        except (ProtocolError, OSError, StaleRunError) as refusal:
            connection.close()
            if isinstance(refusal, StaleRunError) and refusal.fields["newer"]:
                raise  # it is this member that is out of date
            return -1
        self._sockets[theirs.member] = connection
        return theirs.member

    def _check(self, theirs: Hello) -> None:
        mine = self.mine
        fence("host link", mine.run, mine.incarnation, theirs.run, theirs.incarnation)
        if theirs.nbytes != mine.nbytes:
            required = f"all members must want {mine.nbytes} bytes"
            raise ProtocolError("host link", required, f"{theirs.nbytes} of {theirs.member}")

    def _share(self) -> Segment:
        try:
            if not self._sockets:
                return Segment.local(self.mine.nbytes, self._reserved)
            segment = Segment.create(self.mine.nbytes, self._reserved)
        except BaseException:
            self._give_up()
            raise
        try:
            frame = [self.mine.encode()]
            for member, connection in self._sockets.items():
                self._timed(member, partial(socket.send_fds, connection, frame, [segment.fd]))
        except BaseException:
            segment.close()
            raise
        return segment

    def _give_up(self) -> None:
        """Tell the peers, so that they report this member's error and not a death."""
        mine = self.mine
        last = Arrival(mine.run, mine.incarnation, 0, mine.member, abort=True, origin=mine.member)
        for member, connection in self._sockets.items():
            # One that has gone or does not read changes nothing about the error to report.
            with suppress(StalledError, PeerLost):
                self._timed(member, partial(connection.sendall, last.encode()))

    def _attach(self) -> Segment:
        leader = min(self._members)
        connection = self._sockets[leader]
        receive = partial(socket.recv_fds, connection, HELLO_BYTES, 1, _CLOEXEC)
        frame, fds, _, _ = self._timed(leader, receive)
        try:
            if not frame:
                raise self._gone(leader)
            if not fds:
                last = Arrival.decode(frame)
                where = f"host link, member {self.mine.member}"
                raise Aborted(where, f"member {leader} gave up", member=last.sender, cause="")
            self._check(Hello.decode(frame))
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return Segment.attach(fds[0], self.mine.nbytes)

    def _timed(self, member: int, step: Callable[[], _Result]) -> _Result:
        """Run one socket call towards a member within the deadline."""
        self._sockets[member].settimeout(self._left({member}))
        try:
            return step()
        except TimeoutError as error:
            raise self._stalled({member}) from error
        except OSError as error:
            raise self._gone(member) from error

    def _left(self, awaited: set[int]) -> float:
        left = self._start + self._seconds - monotonic()
        if left <= 0:
            raise self._stalled(awaited)
        return left

    def _stalled(self, awaited: set[int]) -> StalledError:
        since = monotonic() - self._start
        names = ", ".join(f"member {m}" for m in sorted(awaited))
        return StalledError(
            f"host link, member {self.mine.member}",
            f"must meet {names} within {self._seconds:g} s",
            f"nothing for {since:.1f} s",
            "See whether that worker is busy, paused or stopped.",
            edge="host link",
            waiting_for=names,
            since_seconds=since,
        )

    def _gone(self, member: int) -> PeerLost:
        return PeerLost(
            f"host link, member {self.mine.member}",
            f"member {member} left before the link was made",
            member=member,
            kind="worker",
            worker="",
            operator="",
        )
