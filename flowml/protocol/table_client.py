"""A writer's end of its line to the tables: numbers requests, keeps them until they are answered.

Without input, output or time: whoever drives it decides when to send again.
"""

from __future__ import annotations

from flowml.protocol.failures import ProtocolError
from flowml.protocol.fence import fence
from flowml.protocol.table_wire import REPLY, REQUEST, Act, Frame

WINDOW = 8
"""Requests that may be under way: what is not answered is kept, and the writer waits for room."""


class TableClient:
    """One writer.

    Parameters
    ----------
    run, incarnation : bytes (16), int
    writer : int
    done : int
        The last request that a snapshot covers.
    """

    def __init__(self, run: bytes, incarnation: int, writer: int, done: int = 0) -> None:
        self.run = run
        self.incarnation = incarnation
        self.writer = writer
        self.stop = 0
        """Why the run is to stop, as the last reply said; 0: it goes on."""
        self._seq = done
        self._open: dict[int, Frame] = {}

    @property
    def has_room(self) -> bool:
        """Whether another request may be made."""
        return len(self._open) < WINDOW

    @property
    def drained(self) -> bool:
        """Whether all that was asked is answered: only then may the writer be let go."""
        return not self._open

    @property
    def done(self) -> int:
        """The last request; all are answered where it is ``drained``."""
        return self._seq

    def ask(self, *acts: Act) -> Frame:
        """Return the next request.

        Raises
        ------
        ProtocolError
            If too many are under way.
        """
        if not self.has_room:
            raise ProtocolError("table request", f"at most {WINDOW} may be under way")
        known = min(self._open, default=self._seq + 1) - 1
        self._seq += 1
        frame = Frame(
            REQUEST, self.run, self.incarnation, self.writer, self._seq, acts, known=known
        )
        self._open[self._seq] = frame
        return frame

    def unanswered(self) -> tuple[Frame, ...]:
        """Return the requests to send again, in their order."""
        return tuple(self._open.values())

    def receive(self, frame: Frame) -> tuple[Act, ...] | None:
        """Take in a reply; return what came of the acts, or None for a repeat.

        Raises
        ------
        StaleRunError
            It is of another run or incarnation: an earlier one may have the same numbers.
        ProtocolError
            It is no reply to this writer, or to nothing that it asked.
        """
        fence("table reply", self.run, self.incarnation, frame.run, frame.incarnation)
        if frame.kind != REPLY or frame.writer != self.writer or frame.seq > self._seq:
            raise ProtocolError(
                "table reply",
                f"must answer a request of replica {self.writer}",
                f"number {frame.seq} to replica {frame.writer}",
            )
        self.stop = max(self.stop, frame.flags)
        if self._open.pop(frame.seq, None) is None:
            return None
        return frame.acts
