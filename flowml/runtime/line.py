"""How a replica of a loose run reaches what all share: over memory of its host, or from afar."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, Protocol, TypeAlias

from flowml.protocol.promise_rule import NO_STOP
from flowml.protocol.promise_specs import Missing
from flowml.runtime.center_seat import CenterSeat
from flowml.runtime.contributions import Contribution
from flowml.runtime.host_lock import HostLock
from flowml.runtime.loose_rank import Row
from flowml.runtime.patience import Patience
from flowml.runtime.pulls import Pull
from flowml.runtime.watch import WAITING

Note: TypeAlias = Callable[[list[Row], float], None]
"""Take rows for the record, and the seconds that were waited before their event."""


class Stand(NamedTuple):
    """Where a replica stands when it has asked to read for a step.

    Attributes
    ----------
    step : int
        What was read is for this step: a later one, if the replica was moved over some.
    behind : int
        Steps that its quorum went on without it: it has read nothing, and is to skip them.
    """

    step: int
    behind: int = 0


class Line(Protocol):
    """One replica's way to the tables."""

    @property
    def stop(self) -> int:
        """Why the run is to stop, as far as it is known here; NO_STOP: it goes on."""

    def request_stop(self, *, ended: bool) -> None:
        """Let every replica leave at its next step."""

    def begin(self, step: int) -> None:
        """Wait for room for what the step will deliver; may raise StoppedInStep."""

    def read(self, step: int, due: list[Pull], *, turn: int, first: bool) -> Stand:
        """Make reads once they may be, unless the quorum of the step went on without the replica.

        Parameters
        ----------
        first : bool
            It has done nothing of the step yet: it may still move over it, or stop.
        """

    def answer(self, step: int, due: list[Pull], *, turn: int) -> None:
        """Receive what the step's own contributions came to."""

    def deliver(self, step: int, team: int, made: Mapping[int, Contribution]) -> None:
        """Hand over contributions."""

    def flush(self) -> None:
        """Let what was handed over be on its way."""

    def skip(self, step: int, last: int, behind: int) -> int:
        """Move over steps up to a last one; return the next step."""

    def leave(self, step: int) -> None:
        """Be waited for no longer."""

    def finish(self) -> None:
        """Wait until all that was handed over has arrived."""

    def meet(self, look: Callable[[], Missing | None]) -> float:
        """Wait for others of the group."""


class HostLine:
    """Over memory that is shared, under its lock.

    Notes
    -----
    Looks need no lock: what they find stays true. Only this replica fills its own room, so room
    that is there when a step begins is there when it delivers.
    """

    def __init__(self, seat: CenterSeat, lock: HostLock, patience: Patience, note: Note) -> None:
        self._seat = seat
        self._rule = seat.center.rule
        self._lock = lock
        self._patience = patience
        self._note = note

    @property
    def stop(self) -> int:
        """Why the run is to stop; NO_STOP: it goes on."""
        return self._rule.stop

    def request_stop(self, *, ended: bool) -> None:
        """Let every replica leave at its next step."""
        self._rule.request_stop(ended)

    def _asked(self) -> bool:
        return self._rule.stop != NO_STOP

    def begin(self, step: int) -> None:
        """Wait for room for what the step will deliver; may raise StoppedInStep."""
        self._patience.until(self._seat.full, self._asked, stops=True)

    def read(self, step: int, due: list[Pull], *, turn: int, first: bool) -> Stand:
        """Make reads once they may be, unless the quorum of the step went on without it."""
        waited = 0.0
        if due:
            look = partial(self._seat.missing, step, due)
            waited = self._patience.until(look, self._asked, stops=first)
        behind = self._seat.behind() if first else 0
        if due and not behind:
            self._take(step, due, waited)
        return Stand(step, behind)

    def answer(self, step: int, due: list[Pull], *, turn: int) -> None:
        """Receive what the step's own contributions came to."""
        look = partial(self._seat.missing, step, due)
        self._take(step, due, self._patience.until(look, self._asked, stops=False))

    def _take(self, step: int, due: list[Pull], waited: float) -> None:
        # For the lock it stands at a wait: who holds it says what it does.
        self._seat.replica.rank.enter(WAITING, step)
        with self._lock:
            rows = self._seat.read(step, due)
        self._note(rows, waited)

    def deliver(self, step: int, team: int, made: Mapping[int, Contribution]) -> None:
        """Hand over contributions."""
        self._seat.replica.rank.enter(WAITING, step)
        with self._lock:
            rows = self._seat.deliver(step, team, made)
        self._note(rows, 0.0)

    def flush(self) -> None:
        """Do nothing: it is there."""

    def skip(self, step: int, last: int, behind: int) -> int:
        """Move over steps up to a last one, as far as there is room; return the next step."""
        seat = self._seat
        with self._lock:
            # For the first one there is room: it was waited for when the step began.
            while step < last and seat.behind() and seat.full() is None:
                self._note(seat.skip(step), 0.0)
                step += 1
        return step

    def leave(self, step: int) -> None:
        """Be waited for no longer."""
        with self._lock:
            rows = self._seat.leave(step)
        self._note(rows, 0.0)

    def finish(self) -> None:
        """Do nothing: it is there."""

    def meet(self, look: Callable[[], Missing | None]) -> float:
        """Wait for others of the group."""
        return self._patience.until(look, self._asked, stops=False)
