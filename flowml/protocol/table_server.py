"""The end of the lines at which the tables are: requests in, replies out, each effect once.

Without input, output or time. A writer numbers its requests; they are done in that order, a repeat
gets the reply that the first one got, and one that comes early is held. Replies are kept until the
writer says that it has them. A request is a sequence of
acts; where the next one may not be done yet, it is parked, and looked at again when ``poll`` is
called: after anything that may have changed, or every now and then. Of a run that is to stop, the
first act that may not be done, and what is behind it, is REFUSED.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from flowml.protocol.failures import ProtocolError
from flowml.protocol.fence import fence
from flowml.protocol.table_wire import REFUSED, REPLY, REQUEST, Act, Frame

EARLY = 64
"""Requests of one writer that are held before their turn."""


class Tables(Protocol):
    """What the requests are about."""

    def may(self, writer: int, act: Act) -> bool:
        """Tell whether an act may be done now."""

    def apply(self, writer: int, act: Act) -> Act:
        """Do an act, which may be done, and return what came of it."""

    @property
    def stop(self) -> int:
        """Why the run is to stop; 0: it goes on. Then nothing is parked."""


@dataclass
class _Writer:
    """What is known of one writer."""

    done: int
    """The last request that is done."""
    replies: dict[int, Frame] = field(default_factory=dict)
    """Those that the writer may not have yet, by number."""
    early: dict[int, Frame] = field(default_factory=dict)
    """Requests behind it, by number; the first of them is the one that is being done."""
    results: list[Act] = field(default_factory=list)
    """Of the acts that are done of it."""


class TableServer:
    """One end of the lines of several writers.

    Parameters
    ----------
    run, incarnation : bytes (16), int
    tables : Tables
    writers : iterable of int
    done : mapping of int to int, optional
        The last request of each writer that a snapshot covers.
    """

    def __init__(
        self,
        run: bytes,
        incarnation: int,
        tables: Tables,
        writers: Iterable[int],
        done: Mapping[int, int] | None = None,
    ) -> None:
        self.run = run
        self.incarnation = incarnation
        self._tables = tables
        self._writers = {w: _Writer((done or {}).get(w, 0)) for w in writers}

    def admit(self, frame: Frame) -> None:
        """Refuse what is no request that may come now.

        Raises
        ------
        StaleRunError
            It is of another run or incarnation.
        ProtocolError
            It is no request of a known writer, or too far ahead.
        """
        fence("table request", self.run, self.incarnation, frame.run, frame.incarnation)
        writer = self._writers.get(frame.writer)
        if frame.kind != REQUEST or writer is None:
            known = sorted(self._writers)
            raise ProtocolError("table request", f"comes from one of {known}", str(frame.writer))
        if frame.seq > writer.done + EARLY:
            required = f"can be at most {EARLY} ahead of {writer.done}"
            raise ProtocolError("table request", required, str(frame.seq))

    def receive(self, frame: Frame) -> list[Frame]:
        """Take in a request; return the replies that can be sent now, be it to others too.

        Raises
        ------
        StaleRunError, ProtocolError
            As ``admit``.
        """
        self.admit(frame)
        writer = self._writers[frame.writer]
        for seq in [s for s in writer.replies if s <= frame.known]:
            del writer.replies[seq]
        if frame.seq <= writer.done:
            return [writer.replies[frame.seq]] if frame.seq in writer.replies else []
        writer.early.setdefault(frame.seq, frame)
        return self.poll()

    def poll(self) -> list[Frame]:
        """Go on with what is parked; return the replies that can be sent now.

        Notes
        -----
        What one writer does may let another go on, so all are looked at until nothing moves.
        """
        replies: list[Frame] = []
        moved = True
        while moved:
            moved = False
            for number, writer in self._writers.items():
                while (frame := writer.early.get(writer.done + 1)) is not None:
                    before = len(writer.results)
                    finished = self._advance(number, writer, frame)
                    moved = moved or finished or len(writer.results) > before
                    if not finished:
                        break
                    replies.append(writer.replies[writer.done])
        return replies

    def parked(self) -> tuple[int, ...]:
        """Return the writers of whom a request is not done."""
        return tuple(n for n, w in self._writers.items() if w.done + 1 in w.early)

    def next_act(self, writer: int) -> Act | None:
        """Return the act that a parked request waits for, or None if none is parked."""
        found = self._writers[writer]
        frame = found.early.get(found.done + 1)
        return None if frame is None else frame.acts[len(found.results)]

    def done(self) -> dict[int, int]:
        """Return the last request of each writer that is done, for a snapshot."""
        return {number: writer.done for number, writer in self._writers.items()}

    def _advance(self, number: int, writer: _Writer, frame: Frame) -> bool:
        """Do acts of a request as far as they may be; return whether all of them are done."""
        while len(writer.results) < len(frame.acts):
            act = frame.acts[len(writer.results)]
            if self._tables.may(number, act):
                writer.results.append(self._tables.apply(number, act))
            elif self._tables.stop:
                writer.results += [Act(REFUSED, a.step) for a in frame.acts[len(writer.results) :]]
            else:
                return False
        done, stop = tuple(writer.results), self._tables.stop
        writer.done, writer.results = frame.seq, []
        writer.early.pop(writer.done)
        writer.replies[writer.done] = Frame(
            REPLY, self.run, self.incarnation, number, frame.seq, done, stop
        )
        return True
