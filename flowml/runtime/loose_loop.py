"""The step loop of one replica under stale and async edges."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import replace
from time import perf_counter

import numpy as np

from flowml.protocol.promise_rule import ENDED
from flowml.runtime.group_meeting import GroupMeeting
from flowml.runtime.line import Line
from flowml.runtime.loose_plan import Turn
from flowml.runtime.loose_rank import EVENT, LooseRank, Row
from flowml.runtime.outcome import history_block
from flowml.runtime.patience import Patience, StoppedInStep
from flowml.runtime.program import WindowRecord
from flowml.runtime.watch import WAITING
from flowml.types import Array


class Record:
    """The rows of events since they were taken last; nothing where no record is wanted."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._rows: list[Row] = []

    def note(self, rows: list[Row], waited: float) -> None:
        """Add rows, with the seconds that were waited before their event."""
        if self._wanted:
            self._rows += [(*row[:4], waited, *row[5:]) for row in rows]

    def take(self) -> Array | None:
        """Return the rows and begin anew."""
        found = np.array(self._rows, EVENT) if self._wanted else None
        self._rows.clear()
        return found


class LooseLoop:
    """Runs a replica from window to window.

    Parameters
    ----------
    replica : LooseRank
    line : Line
        Notes its events in ``record``, and waits with ``patience``.
    patience : Patience
    record : Record
    last : int
        Steps of the whole run: the replica is not waited for when it has made them.
    stop_requested : callable
        Asked before each step.
    meeting : GroupMeeting
        With the other replicas of its group.
    """

    def __init__(
        self,
        replica: LooseRank,
        line: Line,
        patience: Patience,
        record: Record,
        last: int,
        stop_requested: Callable[[], bool],
        meeting: GroupMeeting,
    ) -> None:
        self.replica = replica
        self.clock = 0
        self._line = line
        self._patience = patience
        self._record = record
        self._last = last
        self._stop_requested = stop_requested
        self._meeting = meeting
        self._turns = tuple(_own_part(turn, replica.members) for turn in replica.loose.turns)

    def run_window(self, start: int, stop: int) -> WindowRecord:
        """Run the steps up to ``stop``, or until somebody asks to stop.

        Notes
        -----
        A replica that has missed quorums may be past ``start``, or past ``stop``, already.
        """
        replica, line, patience = self.replica, self._line, self._patience
        rows: list[tuple[int, float, float, float, int, float]] = []
        stopped, origin = False, perf_counter()
        while self.clock < stop and not stopped:
            step, began, patience.waited = self.clock, perf_counter(), 0.0
            replica.rank.enter(WAITING, step)
            if self._stop_requested():
                line.request_stop(ended=False)
            try:
                made = self._step(step)
            except StoppedInStep:
                stopped = True
                break
            if made is not None:
                seconds = perf_counter() - began
                made_in = seconds, patience.waited, replica.staleness, began - origin
                rows.append((made, replica.rank.loss, *made_in))
        line.finish()
        return self._window(rows, stopped, origin)

    def _step(self, step: int) -> int | None:
        """Make a step, or a later one, or move over some; return which one was made."""
        replica, line, turns = self.replica, self._line, self._turns
        line.begin(step)
        replica.begin(step)
        for number, turn in enumerate(turns):
            due = replica.due(step, turn.reads) if turn.reads else []
            if due or number == 0:
                step, behind = line.read(step, due, turn=number, first=number == 0)
                if behind:
                    self._finish(line.skip(step, self._last, behind))
                    return None
            for team in turn.teams:
                line.deliver(step, team, replica.give(step, team))
            answers = replica.due(step, turn.answers) if turn.answers else []
            if answers:
                line.answer(step, answers, turn=number)
            if number + 1 < len(turns):
                line.flush()
                if replica.compute(step, number):
                    replica.rank.enter(WAITING, step)
                    self._meeting.meet(step, line.meet)
        replica.commit(step)
        if replica.rank.ended:
            line.request_stop(ended=True)
        self._finish(step + 1)
        return step

    def _finish(self, clock: int) -> None:
        self.clock = clock
        if clock == self._last:
            self._line.leave(clock)

    def _window(
        self,
        rows: list[tuple[int, float, float, float, int, float]],
        stopped: bool,
        origin: float,
    ) -> WindowRecord:
        steps, loss, seconds, waits, late, began = np.array(rows, np.float64).reshape(-1, 6).T
        history = history_block(
            steps.astype(np.int64), self.replica.number, loss, seconds, waits, late, began
        )
        ended = self._line.stop == ENDED
        return WindowRecord(
            self.clock,
            stopped,
            ended,
            history,
            self._record.take(),
            origin,
            unsent=self.replica.unsent(),
        )


def _own_part(turn: Turn, members: Container[int]) -> Turn:
    """Return a turn with the teams that a replica delivers for."""
    return replace(turn, teams=tuple(team for team in turn.teams if team in members))
