"""The step loop of one replica under stale and async edges."""

from __future__ import annotations

import os
from collections.abc import Callable
from time import perf_counter, sleep

import numpy as np

from flowml.protocol.promise_rule import NO_STOP, Missing
from flowml.runtime.center import Center, Contribution
from flowml.runtime.host_lock import HostLock
from flowml.runtime.loose_rank import DELIVER, EVENT, LEAVE, READ, LooseRank
from flowml.runtime.outcome import history_block
from flowml.runtime.program import WindowRecord
from flowml.runtime.watch import WAITING

SPIN_SECONDS = 100e-6
SHORTEST_SLEEP = 50e-6
LONGEST_SLEEP = 500e-6
SLICE_SECONDS = 0.25

Silence = Callable[[Missing, float], None]
"""Called every quarter of a second of a wait with what is missing and the seconds waited."""


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
        records: bool,
    ) -> None:
        self.replica = replica
        self._center = center
        self._lock = lock
        self._last = last
        self._stop_requested = stop_requested
        self._on_silence = on_silence
        self._records = records
        self._events: list[tuple[int, int, int, int, int, int, float, int]] = []

    def run_window(self, start: int, stop: int) -> WindowRecord:
        """Run the steps from ``start`` up to ``stop``, or until somebody asks to stop."""
        replica, rule = self.replica, self._center.rule
        rows: list[tuple[float, float, float, int]] = []
        stopped = False
        while start + len(rows) < stop and not stopped:
            step, began = start + len(rows), perf_counter()
            replica.rank.enter(WAITING, step)
            if self._stop_requested():
                rule.request_stop(ended=False)
            # Room before the step, which nobody but this replica fills: what is computed is also
            # delivered, and a replica that is stopped while it waits has not moved.
            room = self._may(rule.room)
            waited = None if room is None else self._may(rule.missing)
            if room is None or waited is None:
                stopped = True
                break
            waited += room
            self._read(step, waited)
            made = replica.compute(step)
            replica.rank.enter(WAITING, step)  # for the lock: who holds it says what it does
            self._deliver(step, made)
            rows.append((replica.rank.loss, perf_counter() - began, waited, replica.staleness))
        return self._window(start, rows, stopped)

    def _window(
        self, start: int, rows: list[tuple[float, float, float, int]], stopped: bool
    ) -> WindowRecord:
        loss, seconds, waits, staleness = np.array(rows, np.float64).reshape(-1, 4).T
        steps = range(start, start + len(rows))
        history = history_block(steps, self.replica.number, loss, seconds, waits, staleness)
        events = np.array(self._events, EVENT) if self._records else None
        self._events.clear()
        return WindowRecord(
            start + len(rows), stopped, self._center.rule.has_ended, history, events
        )

    def _read(self, step: int, waited: float) -> None:
        replica = self.replica
        with self._lock:
            event = replica.read(self._center)
        version = max(replica.known.values(), default=0)
        self._note(event, READ, step, version, replica.staleness, waited)

    def _deliver(self, step: int, made: list[Contribution | None]) -> None:
        replica, rule = self.replica, self._center.rule
        with self._lock:
            event = self._center.deliver(replica.number, made, replica.staleness)
            gone = self._center.leave(replica.number) if step + 1 == self._last else None
        replica.rank.committed = step + 1
        if replica.rank.ended:
            rule.request_stop(ended=True)
        self._note(event, DELIVER, step, 0, replica.staleness, 0.0)
        if gone is not None:
            self._note(gone, LEAVE, step + 1, 0, 0, 0.0)

    def _note(
        self, event: int, kind: int, clock: int, version: int, staleness: int, waited: float
    ) -> None:
        if self._records:
            number, moved = self.replica.number, 0 if kind == LEAVE else self.replica.moved
            self._events.append((event, kind, number, clock, version, staleness, waited, moved))

    def _may(self, look: Callable[[int], Missing | None]) -> float | None:
        """Wait until a look finds nothing missing; return the seconds, or None after a stop."""
        number, rule = self.replica.number, self._center.rule
        began = perf_counter()
        spun, told, pause = began + SPIN_SECONDS, began + SLICE_SECONDS, SHORTEST_SLEEP
        while True:
            if rule.stop != NO_STOP:
                return None
            missing = look(number)
            now = perf_counter()
            if missing is None:
                return now - began
            if now > told:
                self._on_silence(missing, now - began)
                told = now + SLICE_SECONDS
            if now < spun:
                os.sched_yield()
            else:
                sleep(pause)
                pause = min(2 * pause, LONGEST_SLEEP)
