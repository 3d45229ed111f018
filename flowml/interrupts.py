"""Ctrl-C is for the driver's main thread alone.

An embedded cluster is in the same terminal, and would answer with a traceback a process, even while
it starts. Threads and processes inherit the mask of signals of the thread that starts them.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


def block_interrupts() -> None:
    """Keep Ctrl-C from this thread, and from the threads and processes that it starts."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Keep Ctrl-C from what is started in this block; it comes to this thread at the end of it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
