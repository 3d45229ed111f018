"""What a process needs while a step loop runs in it: allocator, BLAS threads, profiler.

Each is set when the first run of the process begins and put back when the last one ends; only the
allocator stays, because nothing else in the process is worse off for it.

Notes
-----
Dask's nanny sets ``MALLOC_TRIM_THRESHOLD_=65536``, so glibc gives memory back after every step and
takes page faults to get it again: an MLP step is 1.2 to 2 times slower. Dask's event loop samples
the threads every 10 ms, notes every 20 ms that it is awake, looks at its memory every 100 ms and at
the whole machine every 500 ms. For each it takes the interpreter from the step loop, in the middle
of a barrier for preference, and then all replicas wait: 5 % of the steps took a quarter of the
time. So all of these come seldom here.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from threadpoolctl import threadpool_limits

from flowml.runtime._dask import event_loop, interruptions

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
WANTED_BYTES = 1 << 30
LARGEST_MMAP_BYTES = 1 << 25
"""The most that glibc takes for M_MMAP_THRESHOLD on 64-bit systems."""
SELDOM_MS = {"profile": 1000.0, "tick": 1000.0, "memory_monitor": 500.0, "monitor": 2000.0}
"""Milliseconds between two calls of what the event loop does often, while a step loop runs."""


def keep_freed_memory() -> bool:
    """Tell glibc to keep what the step loop frees; False where there is no glibc."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    trimmed = bool(mallopt(M_TRIM_THRESHOLD, WANTED_BYTES))
    mapped = mallopt(M_MMAP_THRESHOLD, WANTED_BYTES) or mallopt(
        M_MMAP_THRESHOLD, LARGEST_MMAP_BYTES
    )
    return trimmed and bool(mapped)


@dataclass
class LoopSettings:
    """Counts the runs of one worker and applies what they need."""

    dask_worker: Any
    runs: set[str] = field(default_factory=set)
    _limits: Any = None
    _usual: dict[str, float] = field(default_factory=dict)
    """Milliseconds between two calls, as they were before."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, run: str, blas_threads: int) -> None:
        """Apply the settings for a run."""
        with self._lock:
            if not self.runs:
                keep_freed_memory()
                self._limits = threadpool_limits(blas_threads, user_api="blas")
                self._on_loop(self._interrupt_seldom)
            self.runs.add(run)

    def end(self, run: str) -> None:
        """Put the settings back when no run is left."""
        with self._lock:
            if run not in self.runs:
                return
            self.runs.discard(run)
            if not self.runs:
                self._limits.restore_original_limits()
                self._limits = None
                self._on_loop(self._interrupt_as_usual)

    def _on_loop(self, change: Callable[[], None]) -> None:
        event_loop(self.dask_worker).call_soon_threadsafe(change)

    def _interrupt_seldom(self) -> None:
        found = interruptions(self.dask_worker)
        self._usual = {name: callback.callback_time for name, callback in found.items()}
        for name, callback in found.items():
            _respace(callback, max(callback.callback_time, SELDOM_MS[name]))

    def _interrupt_as_usual(self) -> None:
        for name, callback in interruptions(self.dask_worker).items():
            _respace(callback, self._usual.get(name, callback.callback_time))


def _respace(callback: Any, milliseconds: float) -> None:
    running = callback.is_running()
    callback.stop()
    callback.callback_time = milliseconds
    if running:
        callback.start()
