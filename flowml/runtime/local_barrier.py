"""A barrier among the rank threads of one process, joined to that of the processes.

The last thread to arrive crosses the barrier among processes for all of them and hands its verdict
to the others. A waiting thread sleeps on a lock of its own: waking it is one release, and no
thread wakes only to find that it was not meant.

Two sets of locks take turns, by the parity of the superstep. A thread that was released in
superstep n may still be on its way out when others wait in n + 1; nobody can wait in n + 2 before
it has arrived in n + 1, so its lock is free again by then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic

from flowml.errors import PlanError
from flowml.protocol.failures import ProtocolError
from flowml.protocol.superstep import Verdict

SLICE_SECONDS = 0.25


class RankBarrier:
    """The threads of one process, ``parties`` of them, numbered from 0.

    Parameters
    ----------
    parties : int
        Number of threads, >= 1.
    across : callable of (bool, int) -> Verdict, optional
        The barrier among processes, called by the last thread to arrive with the OR of all
        stops and the flip that all gave; None when this process is alone.

    Attributes
    ----------
    on_silence : callable of (tuple of int, float)
        Called in each waiting thread after each 0.25 s with the parties that are missing and the
        seconds waited, unless none is: then the thread in ``across`` watches. It may raise.
        Does nothing unless set.
    """

    def __init__(self, parties: int, across: Callable[[bool, int], Verdict] | None = None) -> None:
        if parties < 1:
            raise PlanError("rank barrier", "needs at least one party", str(parties))
        self.on_silence: Callable[[tuple[int, ...], float], None] = _keep_waiting
        self._parties = parties
        self._across = across
        self._mutex = threading.Lock()
        self._gates = tuple([threading.Lock() for _ in range(parties)] for _ in range(2))
        for gate in (*self._gates[0], *self._gates[1]):
            gate.acquire()
        self._superstep = 0
        self._arrived: list[int] = []
        self._stop = False
        self._flip = 0
        self._verdicts = [Verdict(-1, False, 0), Verdict(-1, False, 0)]
        self._completed = -1
        self._error: BaseException | None = None

    def wait(self, party: int, stop: bool = False, flip: int = 0) -> Verdict:
        """Wait until every thread of every process has arrived.

        Parameters
        ----------
        party : int
            Number of the calling thread.
        stop, flip : bool, int
            As in ``HostLink.barrier``.

        Raises
        ------
        ProtocolError
            Threads give different flips, or one arrived twice.
        BaseException
            What ``across`` or ``on_silence`` raised in some thread, or ``abort`` was given; the
            same in all threads.
        """
        if self._parties == 1:
            return self._cross(stop, flip)
        with self._mutex:
            superstep = self._superstep
            if self._arrive(party, stop, flip) < self._parties:
                last = False
            else:
                last, stop, flip = True, self._stop, self._flip
        return self._lead(stop, flip, party) if last else self._follow(superstep, party)

    def abort(self, error: BaseException) -> None:
        """Make every waiting thread, and every later call, raise ``error``; the first counts."""
        with self._mutex:
            self._abort(error)

    def _abort(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
            self._open_gates()

    def _arrive(self, party: int, stop: bool, flip: int) -> int:
        if self._error is not None:
            raise self._error
        arrived = self._arrived
        if party in arrived:
            self._refuse(f"party {party} must wait once in superstep {self._superstep}")
        if arrived and flip != self._flip:
            self._refuse(f"all parties must commit step {self._flip}", f"{flip} from {party}")
        arrived.append(party)
        self._flip = flip
        if stop:
            self._stop = True
        return len(arrived)

    def _refuse(self, required: str, got: str = "") -> None:
        error = ProtocolError("rank barrier", required, got, "This is a fault in flowml.")
        self._abort(error)
        raise error

    def _cross(self, stop: bool, flip: int) -> Verdict:
        if self._error is not None:
            raise self._error
        if self._across is not None:
            return self._across(stop, flip)
        verdict = Verdict(self._superstep, stop, flip)
        if self._parties == 1:
            self._superstep += 1
        return verdict

    def _lead(self, stop: bool, flip: int, party: int) -> Verdict:
        try:
            verdict = self._cross(stop, flip)
        except BaseException as error:
            self.abort(error)
            raise
        with self._mutex:
            if self._error is not None:  # the others have left with it
                raise self._error
            superstep = self._superstep
            self._verdicts[superstep & 1] = verdict
            self._completed = superstep
            self._arrived.remove(party)
            self._open_gates()
            self._superstep = superstep + 1
            self._arrived.clear()
            self._stop = False
        return verdict

    def _follow(self, superstep: int, party: int) -> Verdict:
        gate = self._gates[superstep & 1][party]
        if not gate.acquire(True, SLICE_SECONDS):
            self._watch(gate, superstep)
        # Completed before the error came: then the superstep counts, and the next call raises.
        if self._completed >= superstep:
            return self._verdicts[superstep & 1]
        if self._error is None:
            raise ProtocolError("rank barrier", f"superstep {superstep} must be complete")
        raise self._error

    def _watch(self, gate: threading.Lock, superstep: int) -> None:
        start = monotonic() - SLICE_SECONDS
        while True:
            with self._mutex:
                waiting = self._completed < superstep
                missing = set(range(self._parties)).difference(self._arrived)
            if waiting and missing:
                try:
                    self.on_silence(tuple(sorted(missing)), monotonic() - start)
                except BaseException as error:
                    self.abort(error)
                    raise
            if gate.acquire(True, SLICE_SECONDS):
                return

    def _open_gates(self) -> None:
        gates = self._gates[self._superstep & 1]
        for party in self._arrived:
            gates[party].release()


def _keep_waiting(missing: tuple[int, ...], waited_seconds: float) -> None:
    """Wait on, whoever is missing."""
