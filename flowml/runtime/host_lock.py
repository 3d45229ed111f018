"""A lock among the processes and threads of one host that a death releases.

Open file description locks (Linux) belong to an open file, not to a process: two workers in one
process exclude each other like two processes do, and the kernel lets go when the last descriptor
of a dead process closes. The descriptor that travels over a socket shares its open file with the
sender, so each end opens the memory anew through /proc.

A holder may also be stopped, or sit in an operator that does not return, and the kernel would wait
for it without end. So a waiting thread asks again and again, and looks around in between.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
from collections.abc import Callable
from time import perf_counter, sleep
from types import TracebackType

from flowml.errors import PlanError
from flowml.runtime.cores import spin_seconds

_SET = getattr(fcntl, "F_OFD_SETLK", -1)
_LOCK, _UNLOCK = (
    struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 1, 0) for kind in (fcntl.F_WRLCK, fcntl.F_UNLCK)
)
SLEEP_SECONDS = 50e-6
SLICE_SECONDS = 0.25


class HostLock:
    """A lock for a block of memory.

    Parameters
    ----------
    fd : int or None
        The shared memory's descriptor; None where one process has it to itself.
    processes : int
        That share it.

    Attributes
    ----------
    on_silence : callable of (float)
        Called in a waiting thread after each 0.25 s with the seconds waited; it may raise. Does
        nothing unless set.

    Raises
    ------
    PlanError
        Where the system has no such locks.
    """

    def __init__(self, fd: int | None, processes: int = 1) -> None:
        self.on_silence: Callable[[float], None] = _keep_waiting
        self._threads = threading.Lock()
        self._spin_seconds = spin_seconds(processes)
        self._file: int | None = None
        if fd is not None:
            if _SET < 0:
                raise PlanError(
                    "host lock",
                    "stale and async edges between processes need Linux in this release",
                    fix="Use sync edges, or one worker process.",
                )
            self._file = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)

    def __enter__(self) -> None:
        if not self._threads.acquire(blocking=False):
            self._wait_for_thread()
        try:
            if not self._try():
                self._wait()
        except BaseException:
            self._threads.release()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self._file is not None:
                self._set(_UNLOCK)
        finally:
            self._threads.release()

    def _wait_for_thread(self) -> None:
        began = perf_counter()
        while not self._threads.acquire(timeout=SLICE_SECONDS):
            self.on_silence(perf_counter() - began)

    def _wait(self) -> None:
        began = perf_counter()
        told = began + SLICE_SECONDS
        while not self._try():
            now = perf_counter()
            if now > told:
                self.on_silence(now - began)
                told = now + SLICE_SECONDS
            if now - began < self._spin_seconds:
                os.sched_yield()
            else:
                sleep(SLEEP_SECONDS)

    def _try(self) -> bool:
        if self._file is None:
            return True
        try:
            self._set(_LOCK)
        except BlockingIOError:
            return False
        return True

    def _set(self, request: bytes) -> None:
        assert self._file is not None
        fcntl.fcntl(self._file, _SET, request)

    def close(self) -> None:
        """Let go of the file; harmless when repeated."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


def _keep_waiting(waited_seconds: float) -> None:
    """Wait on, whoever holds it."""
