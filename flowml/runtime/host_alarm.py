"""A descriptor that one thread rings and another one polls."""

from __future__ import annotations

import os
import threading


class Alarm:
    """Readable for ``poll`` once rung, and for good.

    Attributes
    ----------
    fd : int
        To poll for reading; never read from, so that it stays readable.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rung = False
        self._open = True
        if hasattr(os, "eventfd"):
            self.fd = self._write_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        else:
            self.fd, self._write_fd = os.pipe()

    def ring(self) -> None:
        """Make it readable; from any thread, any number of times, also after ``close``."""
        # Under the lock: a number closed in the meantime may belong to another file by now.
        with self._lock:
            if self._open and not self._rung:
                self._rung = True
                os.write(self._write_fd, (1).to_bytes(8, "little"))

    def close(self) -> None:
        """Close the descriptors; harmless when repeated."""
        with self._lock:
            if self._open:
                self._open = False
                for fd in {self.fd, self._write_fd}:
                    os.close(fd)
