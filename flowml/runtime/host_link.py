"""A barrier among the processes of one host, and the memory they share.

The members of a host domain form a mesh of unix sockets and map one segment (host_meeting.py).
``HostLink.barrier`` drives the state machine of protocol/superstep.py: it sends one frame to each
peer, looks for theirs without blocking for a millisecond, then sleeps in ``poll``. A core that went
to sleep comes back late, the next barrier waits for it, and the other core goes to sleep in turn.
Where members share cores it is 100 microseconds. Even a short spin loses when the kernel has put
two members on one core, so after the first 5 microseconds it yields the core between looks. The
spin asks the kernel rather than a shared flag: the system call also orders the accesses to the
shared memory, which a flag would not on ARM.

Facts about Linux that the code depends on
------------------------------------------
- What a process sent before it died or closed can still be read; the end of file comes after it.
- When a peer closes with our frames unread, the next ``recv`` on a SEQPACKET socket fails once with
  ECONNRESET *before* it hands out what the peer sent. So a reset is no end: reading goes on.
- At most two frames are under way on a socket, since no member can be two supersteps ahead, so a
  ``send`` never finds it full.

Before a lost peer is reported, the sockets of all others are read: when one member gives up and
the others leave in turn, everyone must name the first, not the first to close.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from time import monotonic, perf_counter_ns

from flowml.protocol.arrival import FRAME_BYTES
from flowml.protocol.failures import Aborted, ProtocolError
from flowml.protocol.superstep import SuperstepBarrier, Verdict
from flowml.runtime.cores import spin_seconds
from flowml.runtime.host_alarm import Alarm
from flowml.runtime.host_hello import Hello, HostListener
from flowml.runtime.host_meeting import Meeting
from flowml.runtime.segment import Segment

GREEDY_SECONDS = 5e-6
SLICE_SECONDS = 0.25

_GREEDY_NS = int(GREEDY_SECONDS * 1e9)
_DONTWAIT = socket.MSG_DONTWAIT
_SEND_FLAGS = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)


class _Peer:
    """The connection to one member; ``part`` is what has come of a frame not yet whole."""

    __slots__ = ("bit", "member", "part", "resets", "send", "socket", "take")

    def __init__(self, member: int, bit: int, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.member = member
        self.bit = bit
        self.socket = connection
        self.send = connection.send
        self.take = connection.recv
        self.part = b""
        self.resets = 0


class HostLink:
    """One process's end of the link among the members of its host.

    Attributes
    ----------
    segment : Segment
        Shared by all members; private memory when there is only one.
    members : tuple of int
        In ascending order; the first created the segment.
    me : int
    on_silence : callable of (tuple of int, float)
        Called in the waiting thread after each 0.25 s of a barrier's wait with the members that
        are missing and the seconds waited; it may raise. Does nothing unless set.

    Notes
    -----
    ``barrier`` is for one thread at a time, not always the same. ``wake``, ``abort`` and
    ``close`` may be called from any thread.
    """

    def __init__(
        self, state: SuperstepBarrier, connections: Mapping[int, socket.socket], segment: Segment
    ) -> None:
        self.segment = segment
        self.me = state.me
        self.members = state.members
        self.on_silence: Callable[[tuple[int, ...], float], None] = _keep_waiting
        self._state = state
        self._spin_ns = int(spin_seconds(len(state.members)) * 1e9)
        self._peers = tuple(
            _Peer(member, 1 << state.members.index(member), connections[member])
            for member in state.peers
        )
        self._woken: BaseException | None = None
        self._ended: list[_Peer] = []  # at end of file
        self._buried = 0  # how many of these the state machine knows of
        self._closed = False
        self._turn = threading.RLock()  # held during a barrier, so that close waits for its end
        self._alarm = Alarm()
        self._by_fd = {peer.socket.fileno(): peer for peer in self._peers}
        self._poll = select.poll()
        for fd in (self._alarm.fd, *self._by_fd):
            self._poll.register(fd, select.POLLIN)

    @classmethod
    def join(
        cls,
        listener: HostListener,
        me: int,
        members: Mapping[int, str],
        run: bytes,
        incarnation: int,
        nbytes: int,
        deadline_seconds: float,
        reserved: int | None = None,
    ) -> HostLink:
        """Meet the other members and share a segment of ``nbytes`` bytes with them.

        Parameters
        ----------
        listener : HostListener
            This member's own; it can be closed afterwards.
        me : int
        members : mapping of int to str
            Address of every member's listener, this one's included.
        run, incarnation : bytes (16), int
        nbytes : int
            Equal at all members.
        deadline_seconds : float
            For all of it.
        reserved : int, optional
            Bytes that are there from the start; all of them when left out.

        Raises
        ------
        StalledError
            A member has not come by the deadline; ``waiting_for`` names it.
        HostUnreachable, PeerLost, Aborted
            A member cannot be reached, has gone, or could not create the segment.
        StaleRunError
            A member is of another run or incarnation.
        PlanError
            This host has not enough memory for the segment.
        """
        state = SuperstepBarrier(me, members, run, incarnation)
        mine = Hello(run, incarnation, nbytes, me)
        connections, segment = Meeting(listener, mine, members, deadline_seconds, reserved).run()
        return cls(state, connections, segment)

    def barrier(self, stop: bool = False, flip: int = 0) -> Verdict:
        """Enter the next superstep and wait until every member has.

        Parameters
        ----------
        stop : bool
            Ask all members to stop after this superstep.
        flip : int
            Number of the step that this superstep commits; equal at all members.

        Raises
        ------
        Aborted, PeerLost
            The incarnation is over; ``member`` is the first cause.
        ProtocolError
            Members commit different steps, or a frame is damaged.
        BaseException
            What ``wake`` was given, or what ``on_silence`` raised.
        """
        with self._turn:
            if self._woken is not None:
                raise self._woken
            state = self._state
            verdict = state.enter(stop, flip)
            self._tell(state.pack(stop, flip))
            if verdict is None:
                verdict = self._spin()
            if verdict is None:
                verdict = self._wait()
            return verdict

    def wake(self, error: BaseException) -> None:
        """Make a blocked barrier, and every later one, raise ``error``; the first one counts."""
        if self._woken is None:
            self._woken = error
        self._alarm.ring()

    def abort(self, cause: str = "") -> None:
        """Tell all peers, once, that this process gives up; never blocks and never raises.

        Parameters
        ----------
        cause : str
            For this process's own later errors; peers learn the member only.
        """
        sends = self._state.abort(cause)
        if not sends:
            return
        frame = sends[0].arrival.encode()
        for peer in self._peers:
            # One that has gone, or never reads, finds out from the end of the connection.
            with suppress(OSError):
                peer.send(frame, _SEND_FLAGS)

    def close(self) -> None:
        """Leave: wake a blocked barrier, pass on a failure, close all; harmless when repeated."""
        me = self.me
        self.wake(Aborted(f"host link, member {me}", "has been closed", member=me, cause="closed"))
        with self._turn:
            if self._closed:
                return
            self._closed = True
            if self._state.failed:
                self.abort()
            for peer in self._peers:
                peer.socket.close()
            self._alarm.close()
            self.segment.close()

    def _tell(self, frame: bytes) -> None:
        for peer in self._peers:
            try:
                peer.send(frame, _SEND_FLAGS)
            except (BrokenPipeError, ConnectionResetError):
                self._drain(peer)  # it may have said why before it left
            except BlockingIOError as error:
                required = f"member {peer.member} can have at most two frames unread"
                raise ProtocolError("host link", required) from error

    def _spin(self) -> Verdict | None:
        """Look for the missing frames without blocking, for a moment."""
        state = self._state
        give_way = perf_counter_ns() + _GREEDY_NS
        end = give_way - _GREEDY_NS + self._spin_ns
        for peer in self._peers:
            if not state.missing & peer.bit:
                continue
            if peer.part or peer in self._ended:
                return None
            while True:
                try:
                    frame = peer.take(FRAME_BYTES, _DONTWAIT)
                    break
                except BlockingIOError:
                    now = perf_counter_ns()
                    if now > end:
                        return None
                    if now > give_way:
                        os.sched_yield()  # the awaited process may be next in line for this core
                except ConnectionResetError:
                    return None
            if len(frame) != FRAME_BYTES:
                self._piece(peer, frame)
                return None
            verdict = state.receive_packed(frame)
            if verdict is not None:
                return verdict
        return None

    def _wait(self) -> Verdict:
        """Sleep until the superstep is complete, fails, or somebody wakes this process."""
        start = monotonic()
        slice_end = start + SLICE_SECONDS
        while True:
            self._bury()
            verdict = self._state.verdict
            if verdict is not None:
                return verdict
            if self._woken is not None:
                raise self._woken
            now = monotonic()
            if now >= slice_end:
                self.on_silence(self._state.absent(), now - start)
                slice_end = now + SLICE_SECONDS
                continue
            for fd, _ in self._poll.poll((slice_end - now) * 1e3):
                if fd != self._alarm.fd:
                    self._drain(self._by_fd[fd])

    def _drain(self, peer: _Peer) -> None:
        """Take in all that a peer has sent so far."""
        while peer not in self._ended:
            try:
                part = peer.take(FRAME_BYTES - len(peer.part), _DONTWAIT)
            except BlockingIOError:
                return
            except ConnectionResetError:
                peer.resets += 1  # once before what is still queued; twice is the end
                part = b""
                if peer.resets < 2:
                    continue
            frame = self._piece(peer, part)
            if frame:
                self._state.receive_packed(frame)

    def _piece(self, peer: _Peer, part: bytes) -> bytes:
        """Return the frame that ``part`` completes, or nothing; no part is the end of file."""
        if not part:
            self._ended.append(peer)
            self._poll.unregister(peer.socket.fileno())
            return b""
        frame = peer.part + part
        peer.part = b"" if len(frame) == FRAME_BYTES else frame
        return b"" if peer.part else frame

    def _bury(self) -> None:
        """Tell the state machine who has left, after all that the others have said."""
        if len(self._ended) == self._buried:
            return
        for peer in self._peers:
            self._drain(peer)
        for peer in self._ended[self._buried :]:
            self._state.lost(peer.member)
        self._buried = len(self._ended)


def _keep_waiting(missing: tuple[int, ...], waited_seconds: float) -> None:
    """Wait on, whoever is missing."""
