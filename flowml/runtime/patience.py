"""How a replica of a loose run waits: it looks often at first, and now and then it is watched."""

from __future__ import annotations

import os
from collections.abc import Callable
from time import perf_counter, sleep
from typing import TypeAlias

from flowml.protocol.promise_specs import Missing

SPIN_SECONDS = 100e-6
SHORTEST_SLEEP = 50e-6
LONGEST_SLEEP = 500e-6
SLICE_SECONDS = 0.25

Silence: TypeAlias = Callable[[Missing, float], None]
"""Called every quarter of a second of a wait with what is missing and the seconds waited."""


class StoppedInStep(Exception):
    """Somebody asked to stop, and what this replica waits for will not come."""


class Patience:
    """The waits of one replica.

    Parameters
    ----------
    on_silence : callable
        It may raise.

    Attributes
    ----------
    waited : float
        Seconds, since somebody set it to 0.
    """

    def __init__(self, on_silence: Silence) -> None:
        self.on_silence = on_silence
        self.waited = 0.0

    def until(
        self, look: Callable[[], Missing | None], asked: Callable[[], bool], *, stops: bool
    ) -> float:
        """Wait until a look finds nothing missing; return the seconds.

        Parameters
        ----------
        asked : callable
            Whether somebody has asked to stop.
        stops : bool
            A request to stop counts also where nothing is missing: before a step has begun.

        Raises
        ------
        StoppedInStep
            Somebody has asked to stop.
        """
        if asked():
            if stops or look() is not None:
                raise StoppedInStep
            return 0.0
        if look() is None:
            return 0.0
        return self._wait(look, asked, stops=stops)

    def _wait(
        self, look: Callable[[], Missing | None], asked: Callable[[], bool], *, stops: bool
    ) -> float:
        began = perf_counter()
        spun, told, pause = began + SPIN_SECONDS, began + SLICE_SECONDS, SHORTEST_SLEEP
        while True:
            stop = asked()
            if stop and stops:
                raise StoppedInStep
            missing, now = look(), perf_counter()
            if missing is None:
                self.waited += now - began
                return now - began
            if stop:
                raise StoppedInStep
            if now > told:
                self.on_silence(missing, now - began)
                told = now + SLICE_SECONDS
            if now < spun:
                os.sched_yield()
            else:
                sleep(pause)
                pause = min(2 * pause, LONGEST_SLEEP)
