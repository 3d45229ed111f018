"""A lock among the processes and threads of one host that a death releases.

Open file description locks (Linux) belong to an open file, not to a process: two workers in one
process exclude each other like two processes do, and the kernel lets go when the last descriptor
of a dead process closes. The descriptor that travels over a socket shares its open file with the
sender, so each end opens the memory anew through /proc.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
from types import TracebackType

from flowml.errors import PlanError

_SET_AND_WAIT: int = getattr(fcntl, "F_OFD_SETLKW", -1)
_FIRST_BYTE = 0
_FLOCK = "hhqqi4x"


class HostLock:
    """A lock for a block of memory.

    Parameters
    ----------
    fd : int or None
        The shared memory's descriptor; None where one process has it to itself.

    Raises
    ------
    PlanError
        Where the system has no such locks.
    """

    def __init__(self, fd: int | None) -> None:
        self._threads = threading.Lock()
        self._file: int | None = None
        if fd is not None:
            if _SET_AND_WAIT < 0:
                raise PlanError(
                    "host lock",
                    "stale and async edges between processes need Linux in this release",
                    fix="Use sync edges, or one worker process.",
                )
            self._file = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)

    def __enter__(self) -> None:
        self._threads.acquire()
        if self._file is not None:
            self._set(fcntl.F_WRLCK)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._set(fcntl.F_UNLCK)
        self._threads.release()

    def _set(self, kind: int) -> None:
        assert self._file is not None
        fcntl.fcntl(
            self._file, _SET_AND_WAIT, struct.pack(_FLOCK, kind, os.SEEK_SET, _FIRST_BYTE, 1, 0)
        )

    def close(self) -> None:
        """Let go of the file; harmless when repeated."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)
