"""What a process needs while a step loop runs in it: allocator, BLAS threads, profiler.

Each is set when the first run of the process begins and put back when the last one ends; only the
allocator stays, because nothing else in the process is worse off for it.

Notes
-----
Dask's nanny sets ``MALLOC_TRIM_THRESHOLD_=65536``, so glibc gives memory back after every step and
takes page faults to get it again: an MLP step is 1.2 to 2 times slower. Dask's statistical profiler
interrupts the loop every 10 ms, which costs 10 to 20 %: it samples at a tenth of the rate. Its
event loop notes every 20 ms that it is awake, for which it takes the interpreter from the step
loop, in the middle of a barrier for preference: it does so at a tenth of the rate too.
"""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass, field
from typing import Any

from threadpoolctl import threadpool_limits

from flowml.runtime._dask import event_loop, interruptions

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
WANTED_BYTES = 1 << 30
LARGEST_MMAP_BYTES = 1 << 25
"""The most that glibc takes for M_MMAP_THRESHOLD on 64-bit systems."""
SLOWDOWN = 10


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
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, run: str, blas_threads: int) -> None:
        """Apply the settings for a run."""
        with self._lock:
            if not self.runs:
                keep_freed_memory()
                self._limits = threadpool_limits(blas_threads, user_api="blas")
                self._interrupt(slow=True)
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
                self._interrupt(slow=False)

    def _interrupt(self, *, slow: bool) -> None:
        factor = SLOWDOWN if slow else 1 / SLOWDOWN

        def change() -> None:
            for callback in interruptions(self.dask_worker):
                running = callback.is_running()
                callback.stop()
                callback.callback_time *= factor
                if running:
                    callback.start()

        event_loop(self.dask_worker).call_soon_threadsafe(change)
