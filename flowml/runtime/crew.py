"""The threads in which a worker runs its ranks, and which it can leave behind.

A thread cannot be stopped from outside. So the Dask task of a window only waits for these threads:
when the run is over and a rank sits in an operator that does not return, the task gives its place
on the worker back, and what the rank uses is let go when it comes out.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from flowml.errors import FlowmlError

logger = logging.getLogger(__name__)

LEAVE_SECONDS = 1.0
"""How long a task waits for its threads to come out once they were told to."""


@dataclass
class Errand:
    """One call in a thread of its own, and what came of it."""

    function: Callable[[], Any]
    result: Any = None
    error: BaseException | None = None
    finished: bool = False


class Crew:
    """Threads of one worker in one run.

    Parameters
    ----------
    name : str
        For the names of the threads.
    release : callable
        Called once, in a thread, after ``close`` and when the last thread has come out.
    """

    def __init__(self, name: str, release: Callable[[], None]) -> None:
        self._name = name
        self._release = release
        self._changed = threading.Condition()
        self._inside = 0
        self._leaving = False
        self._closed = False

    def run(self, functions: Sequence[Callable[[], Any]]) -> list[Errand]:
        """Call each function in a thread of its own and wait for all of them.

        Returns
        -------
        list of Errand
            Not all of them finished, if ``leave`` was called and some did not come out in time;
            none of them begun after ``close``.
        """
        errands = [Errand(function) for function in functions]
        with self._changed:
            if self._closed:
                return errands
            self._inside += len(errands)
        for number, errand in enumerate(errands):
            context = copy_context()  # of the Dask task, so that operators find their worker
            threading.Thread(
                target=context.run,
                args=(self._go, errand),
                name=f"{self._name} {number}",
                daemon=True,
            ).start()
        with self._changed:
            self._changed.wait_for(lambda: self._leaving or all(e.finished for e in errands))
            self._changed.wait_for(lambda: all(e.finished for e in errands), LEAVE_SECONDS)
        return errands

    def _go(self, errand: Errand) -> None:
        try:
            errand.result = errand.function()
        except BaseException as error:  # whatever it is, the task raises it
            if not isinstance(error, FlowmlError):
                logger.exception("a thread of %s failed", self._name)
            errand.error = without_frames(error)
        with self._changed:
            errand.finished = True
            self._inside -= 1
            last = self._closed and not self._inside
            self._changed.notify_all()
        if last:
            self._release()

    def leave(self) -> None:
        """Let tasks go on without the threads they wait for, after a moment."""
        with self._changed:
            self._leaving = True
            self._changed.notify_all()

    def close(self) -> None:
        """Let go of everything as soon as no thread is inside; harmless when repeated."""
        with self._changed:
            if self._closed:
                return
            self._closed = self._leaving = True
            self._changed.notify_all()
            inside = self._inside
        if not inside:  # in a thread too: this may be an event loop, and readers are waited for
            threading.Thread(target=self._release, name=f"{self._name} close", daemon=True).start()


def without_frames(error: BaseException) -> BaseException:
    """Let go of the frames that an exception, and what it came from, went through.

    Notes
    -----
    Dask keeps an exception long after its task, and frames would keep all that the run had open:
    its memory stays mapped as long as one array on it is reachable.
    """
    pending: list[BaseException | None] = [error]
    while pending:
        found = pending.pop()
        if found is not None:
            pending += [found.__cause__, found.__context__]
            found.__traceback__ = found.__cause__ = found.__context__ = None
    return error
