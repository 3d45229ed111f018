"""The step loop of one replica under stale and async edges."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from time import perf_counter, sleep

import numpy as np

from flowml.protocol.promise_rule import NO_STOP
from flowml.protocol.promise_specs import Missing
from flowml.runtime.center import Center
from flowml.runtime.group_meeting import GroupMeeting
from flowml.runtime.host_lock import HostLock
from flowml.runtime.loose_plan import Turn
from flowml.runtime.loose_rank import EVENT, LooseRank, Row
from flowml.runtime.outcome import history_block
from flowml.runtime.program import WindowRecord
from flowml.runtime.watch import WAITING

SPIN_SECONDS = 100e-6
SHORTEST_SLEEP = 50e-6
LONGEST_SLEEP = 500e-6
SLICE_SECONDS = 0.25

Silence = Callable[[Missing, float], None]
"""Called every quarter of a second of a wait with what is missing and the seconds waited."""


class StoppedInStep(Exception):
    """Somebody asked to stop, and what this replica waits for will not come."""


class LooseLoop:
    """Runs a replica from window to window.

    Parameters
    ----------
    replica : LooseRank
    center : Center
    lock : HostLock
        Held for every change of what is shared.
    last : int
        Steps of the whole run: the replica is not waited for when it has made them.
    stop_requested : callable
        Asked before each step.
    on_silence : callable
        It may raise.
    meeting : GroupMeeting
        With the other replicas of its group.
    records : bool
    """

    def __init__(
        self,
        replica: LooseRank,
        center: Center,
        lock: HostLock,
        last: int,
        stop_requested: Callable[[], bool],
        on_silence: Silence,
        meeting: GroupMeeting,
        records: bool,
    ) -> None:
        self.replica = replica
        self.clock = 0
        self._center = center
        self._lock = lock
        self._last = last
        self._stop_requested = stop_requested
        self._on_silence = on_silence
        self._meeting = meeting
        self._records = records
        self._events: list[Row] = []
        self._waited = 0.0

    def run_window(self, start: int, stop: int) -> WindowRecord:
        """Run the steps up to ``stop``, or until somebody asks to stop.

        Notes
        -----
        A replica that has missed quorums may be past ``start``, or past ``stop``, already.
        """
        replica, rule = self.replica, self._center.rule
        rows: list[tuple[int, float, float, float, int]] = []
        stopped = False
        while self.clock < stop and not stopped:
            step, began, self._waited = self.clock, perf_counter(), 0.0
            replica.rank.enter(WAITING, step)
            if self._stop_requested():
                rule.request_stop(ended=False)
            try:
                made = self._step(step)
            except StoppedInStep:
                stopped = True
                break
            if made:
                seconds = perf_counter() - began
                rows.append((step, replica.rank.loss, seconds, self._waited, replica.staleness))
        return self._window(rows, stopped)

    def _step(self, step: int) -> bool:
        """Make a step, or move over those whose quorum went on; return whether one was made."""
        replica, turns = self.replica, self.replica.loose.turns
        self._make_room()
        replica.begin(step)
        for number, turn in enumerate(turns):
            if not self._read(step, turn.reads, first=number == 0):
                return False
            self._deliver(step, turn)
            self._read(step, turn.answers, first=False)
            if number + 1 < len(turns) and replica.compute(step, number):
                replica.rank.enter(WAITING, step)
                self._meeting.meet(step, partial(self._may, stops=False))
        replica.commit(step)
        if replica.rank.ended:
            self._center.rule.request_stop(ended=True)
        self._finish(step + 1)
        return True

    def _finish(self, clock: int) -> None:
        self.clock = clock
        if clock == self._last:
            with self._lock:
                self._note(self.replica.leave(self._center, clock), 0.0)

    def _make_room(self) -> None:
        """Wait, before the step, for room that nobody but this replica fills.

        Notes
        -----
        So what is computed is also delivered, and a replica that is stopped while it waits has
        not moved.
        """
        rule = self._center.rule
        for team, member in self.replica.members.items():
            self._may(partial(rule.room, team, member), stops=True)

    def _read(self, step: int, numbers: tuple[int, ...], *, first: bool) -> bool:
        """Make the reads that are due, once they may be; return False if steps were moved over."""
        replica, center = self.replica, self._center
        due = replica.due(step, numbers)
        specs = [pull.spec for _, pull in due]
        look = partial(center.rule.missing, specs, step)
        waited = self._may(look, stops=first) if due else 0.0
        if first and self._move_on(step):
            return False
        if due:
            replica.rank.enter(WAITING, step)  # for the lock: who holds it says what it does
            with self._lock:
                rows = replica.take(center, step, due)
            self._note(rows, waited)
        return True

    def _move_on(self, step: int) -> bool:
        """Move over the steps whose quorum this replica has missed, if there are any."""
        replica, center = self.replica, self._center
        if not center.rule.behind(replica.number):
            return False
        clock = step
        with self._lock:
            # For the first one there is room: it was waited for when the step began.
            while clock < self._last and center.rule.behind(replica.number) and self._has_room():
                self._note(replica.skip(center, clock), 0.0)
                clock += 1
        self._finish(clock)
        return True

    def _has_room(self) -> bool:
        rule, members = self._center.rule, self.replica.members.items()
        return all(rule.room(team, member) is None for team, member in members)

    def _deliver(self, step: int, turn: Turn) -> None:
        replica = self.replica
        for team in turn.teams:
            if team in replica.members:
                made = replica.give(step, team)
                replica.rank.enter(WAITING, step)
                with self._lock:
                    rows = replica.deliver(self._center, step, team, made)
                self._note(rows, 0.0)

    def _note(self, rows: list[Row], waited: float) -> None:
        if self._records:
            self._events += [(*row[:4], waited, *row[5:]) for row in rows]

    def _window(
        self, rows: list[tuple[int, float, float, float, int]], stopped: bool
    ) -> WindowRecord:
        steps, loss, seconds, waits, staleness = np.array(rows, np.float64).reshape(-1, 5).T
        history = history_block(
            steps.astype(np.int64), self.replica.number, loss, seconds, waits, staleness
        )
        events = np.array(self._events, EVENT) if self._records else None
        self._events.clear()
        return WindowRecord(self.clock, stopped, self._center.rule.has_ended, history, events)

    def _may(self, look: Callable[[], Missing | None], *, stops: bool) -> float:
        """Wait until a look finds nothing missing; return the seconds.

        Parameters
        ----------
        stops : bool
            A request to stop counts also where nothing is missing: before a step has begun.

        Raises
        ------
        StoppedInStep
            Somebody has asked to stop.
        """
        rule, began = self._center.rule, perf_counter()
        spun, told, pause = began + SPIN_SECONDS, began + SLICE_SECONDS, SHORTEST_SLEEP
        while True:
            asked = rule.stop != NO_STOP
            if asked and stops:
                raise StoppedInStep
            missing, now = look(), perf_counter()
            if missing is None:
                self._waited += now - began
                return now - began
            if asked:
                raise StoppedInStep
            if now > told:
                self._on_silence(missing, now - began)
                told = now + SLICE_SECONDS
            if now < spun:
                os.sched_yield()
            else:
                sleep(pause)
                pause = min(2 * pause, LONGEST_SLEEP)
