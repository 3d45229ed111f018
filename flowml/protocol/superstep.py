"""One member's half of the superstep barrier, without any input or output.

A *superstep* ends when every member has entered it (Valiant, "A bridging model for parallel
computation", CACM 33(8), 1990, section 2). Members tell each other of their arrival directly,
all to all; no member is special. The verdict carries three things beside the arrival itself:
``stop`` (true for all when true for one), ``flip`` (the step that is committed, equal at all)
and an abort, which ends the run's incarnation.

Invariants
----------
1. A member completes superstep n only when it holds an arrival in n from every member.
2. A member enters n + 1 only after it completed n. So while one member is in n, its peers have
   entered n - 1, n or n + 1, never more: arrivals in n + 1 are held (two slots, by parity),
   arrivals in what is completed are repeats and dropped, anything later is a fault.
3. ``stop`` and ``flip`` of a verdict are functions of the same set of arrivals at every member,
   so all members see the same ones.
4. A failure is final: what arrives after it changes nothing, and a superstep that was complete
   before it stays complete. Only the first cause is kept and passed on.

Why a committed step is whole
-----------------------------
Step k takes two supersteps. Between the first (gradients are in place) and the second
(parameters are written) each member reads parameter buffer k mod 2 and writes its slice of
buffer (k + 1) mod 2. A member counts step k as committed when it completes the second one, and
from then on reads the other buffer (the flip).

*What is committed is complete*: by 1 all members have entered the second superstep, and each
writes before it enters. *It stays so*: buffer (k + 1) mod 2 is next written in step k + 2, after
its first superstep, which needs the arrival of every member; and a member arrives there only
after it committed step k + 1, hence no longer relies on that buffer. So at any moment, whoever
dies, the buffer of the last step that a member has committed is whole and nobody writes to it.
Members differ by at most one committed step, and both buffers are whole then: a survivor with the
larger number holds the newest state.

Departure
---------
A member that leaves (``lost``) fails the others only when it is missing in the superstep they
are in: one that arrived first and then left, because that superstep was the last, harms nobody.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple
from zlib import crc32

from flowml.errors import FlowmlError
from flowml.protocol.arrival import (
    ABORT,
    BODY,
    CRC,
    CRC_OFFSET,
    FRAME,
    FRAME_BYTES,
    HEAD_BYTES,
    LOST,
    STOP,
    Arrival,
    check_frame,
    head,
)
from flowml.protocol.failures import Aborted, PeerLost, ProtocolError
from flowml.protocol.fence import RUN_BYTES, fence


class Send(NamedTuple):
    """A message for one member."""

    to: int
    arrival: Arrival


class Verdict(NamedTuple):
    """What all members agreed on in one superstep."""

    superstep: int
    stop: bool
    flip: int


class SuperstepBarrier:
    """The state of one member.

    Parameters
    ----------
    me : int
        This member's number.
    members : iterable of int
        All members, this one included.
    run : bytes, length 16
    incarnation : int

    Attributes
    ----------
    superstep : int
        The last superstep entered; -1 before the first.
    missing : int
        Bit mask of the members not yet seen in ``superstep`` (bit i is the i-th in ascending
        order); 0 when none is entered or it is complete.
    failed : bool
        Nothing more will complete; ``failure`` says why.

    Notes
    -----
    ``arrive`` and ``receive`` speak in values. ``enter``, ``pack`` and ``receive_packed`` are the
    same transitions on frames, without a value for each message. No
    method waits, and none is safe to call from two threads at once, except ``abort``, which
    may come from any thread.
    """

    __slots__ = (
        "_all", "_arrived", "_bits", "_cause", "_flip", "_gone", "_head", "_head_crc", "_me_bit",
        "_stop", "_told", "_verdict", "failed", "incarnation", "me", "members", "missing", "peers",
        "run", "superstep",
    )  # fmt: skip

    def __init__(self, me: int, members: Iterable[int], run: bytes, incarnation: int) -> None:
        self.members = tuple(sorted(set(members)))
        if me not in self.members or len(run) != RUN_BYTES:
            required = f"needs a run of {RUN_BYTES} bytes and members that include this one"
            raise ProtocolError("barrier", required, f"{len(run)} bytes, {me} in {self.members}")
        self.me = me
        self.run = run
        self.incarnation = incarnation
        self.peers = tuple(m for m in self.members if m != me)
        self.superstep = -1
        self.missing = 0
        self.failed = False
        self._bits = {member: 1 << i for i, member in enumerate(self.members)}
        self._me_bit = self._bits[me]
        self._all = (1 << len(self.members)) - 1
        self._arrived = [0, 0]
        self._stop = [False, False]
        self._flip = [0, 0]
        self._gone = 0
        self._verdict: Verdict | None = None
        self._cause: tuple[int, bool, str] | None = None  # origin, died, why
        self._told = False
        self._head = head(run, incarnation)
        self._head_crc = crc32(self._head)

    def arrive(self, stop: bool = False, flip: int = 0) -> tuple[Send, ...]:
        """Enter the next superstep and return what to send.

        Raises
        ------
        Aborted, PeerLost
            The incarnation is over.
        ProtocolError
            The superstep before is not complete, or a peer commits another step than this one.
        """
        self.enter(stop, flip)
        return self._to_all(
            Arrival(self.run, self.incarnation, self.superstep, self.me, stop, False, flip)
        )

    def enter(self, stop: bool, flip: int) -> Verdict | None:
        """Enter the next superstep; return its verdict when all others were here before."""
        if self.failed:
            raise self.failure()
        if self.superstep >= 0 and self._verdict is None:
            raise ProtocolError(
                "barrier", f"member {self.me} must complete superstep {self.superstep} first"
            )
        self.superstep += 1
        self._verdict = None
        other = ~self.superstep & 1  # held superstep - 1, complete; from here on superstep + 1
        self._arrived[other] = 0
        self._stop[other] = False
        self._count(self.superstep, self._me_bit, stop, flip)
        return self._settle()

    def pack(self, stop: bool, flip: int) -> bytes:
        """Return the frame of 64 bytes for the superstep just entered; the same for all peers."""
        body = BODY.pack(self.superstep, flip, self.me, -1, STOP if stop else 0)
        return self._head + body + CRC.pack(crc32(body, self._head_crc))

    def receive(self, arrival: Arrival) -> None:
        """Take in a peer's arrival, in any order and any number of times.

        Raises
        ------
        StaleRunError
            It belongs to another run or incarnation; nothing has changed.
        ProtocolError
            The sender is no member or too far ahead, or commits another step.
        """
        fence("arrival", self.run, self.incarnation, arrival.run, arrival.incarnation)
        flags = STOP * arrival.stop | ABORT * arrival.abort | LOST * arrival.lost
        self._take(arrival.superstep, arrival.flip, arrival.sender, arrival.origin, flags)

    def receive_packed(self, frame: bytes) -> Verdict | None:
        """Take in a frame of 64 bytes and return the verdict once there is one.

        Notes
        -----
        Raises what ``receive`` and ``Arrival.decode`` raise. A failure heard of shows in
        ``failed``.
        """
        if len(frame) != FRAME_BYTES:
            check_frame(frame)
        head, superstep, flip, sender, origin, flags, crc = FRAME.unpack(frame)
        if head != self._head or crc != crc32(frame[HEAD_BYTES:CRC_OFFSET], self._head_crc):
            run, incarnation = check_frame(frame)
            fence("arrival", self.run, self.incarnation, run, incarnation)
        return self._take(superstep, flip, sender, origin, flags)

    @property
    def verdict(self) -> Verdict | None:
        """The verdict of the superstep last entered; None while members are missing.

        Raises
        ------
        Aborted, PeerLost
            It will never come.
        """
        if self._verdict is None and self.failed:
            raise self.failure()
        return self._verdict

    def absent(self) -> tuple[int, ...]:
        """Return the members not yet seen in the superstep last entered."""
        return tuple(m for m, bit in self._bits.items() if self.missing & bit)

    def lost(self, member: int) -> None:
        """Learn that nothing more will come from a member."""
        self._gone |= self._bits[member]
        self._settle()

    def abort(self, cause: str = "") -> tuple[Send, ...]:
        """Give up, or pass on why others did, and return what to send; nothing the second time.

        Parameters
        ----------
        cause : str
            Kept for this member's own error; peers learn the number of the member only.
        """
        if self._told:
            return ()
        self._told = True
        self._fail(self.me, False, cause)
        origin, died, _ = self._cause or (self.me, False, cause)
        step = max(self.superstep, 0)
        return self._to_all(
            Arrival(self.run, self.incarnation, step, self.me, False, True, 0, origin, died)
        )

    def failure(self) -> FlowmlError:
        """Return the error for the first cause, made anew at each call."""
        origin, died, cause = self._cause or (self.me, False, "")
        where = f"superstep {self.superstep}, member {self.me}"
        if died:
            required = f"member {origin} of this host has gone"
            return PeerLost(where, required, member=origin, kind="worker", worker="", operator="")
        required = f"member {origin} of this host gave up" + (f" ({cause})" if cause else "")
        return Aborted(where, required, member=origin, cause=cause)

    def _take(
        self, superstep: int, flip: int, sender: int, origin: int, flags: int
    ) -> Verdict | None:
        bit = self._bits.get(sender)
        if bit is None or bit == self._me_bit:
            raise ProtocolError("arrival", f"must come from one of {self.peers}", str(sender))
        if self.failed:
            return self._verdict
        if flags & ABORT:
            self._fail(origin if origin in self._bits else sender, bool(flags & LOST), "")
            return self._verdict
        ahead = superstep - self.superstep
        if ahead < 0:  # completed here long ago: its slot serves another superstep now
            return self._verdict
        if ahead > 1:
            required = f"member {sender} can be at most one superstep ahead of {self.superstep}"
            raise ProtocolError("arrival", required, str(superstep))
        self._count(superstep, bit, bool(flags & STOP), flip)
        return self._settle()

    def _count(self, superstep: int, bit: int, stop: bool, flip: int) -> None:
        slot = superstep & 1
        arrived = self._arrived[slot]
        if arrived & bit:
            return
        if arrived and self._flip[slot] != flip:
            self._fail(self.me, False, "flips differ")
            raise ProtocolError(
                f"superstep {superstep}",
                f"all members must commit the same step, {self._flip[slot]}",
                f"{flip} from member {self._member(bit)}",
                "This is a fault in flowml: please report it.",
            )
        self._arrived[slot] = arrived | bit
        self._flip[slot] = flip
        if stop:
            self._stop[slot] = True

    def _settle(self) -> Verdict | None:
        """Complete the superstep last entered, or fail when one who has gone is missing in it."""
        if self.failed or self._verdict is not None or self.superstep < 0:
            return self._verdict
        slot = self.superstep & 1
        self.missing = self._all & ~self._arrived[slot]
        if not self.missing:
            self._verdict = Verdict(self.superstep, self._stop[slot], self._flip[slot])
        elif self.missing & self._gone:
            self._fail(self._member(self.missing & self._gone), True, "")
        return self._verdict

    def _fail(self, origin: int, died: bool, cause: str) -> None:
        if self._cause is None:
            self._cause = (origin, died, cause)
            self.failed = True

    def _member(self, bits: int) -> int:
        return self.members[(bits & -bits).bit_length() - 1]

    def _to_all(self, arrival: Arrival) -> tuple[Send, ...]:
        return tuple(Send(peer, arrival) for peer in self.peers)
