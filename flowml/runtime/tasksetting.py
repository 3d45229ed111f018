"""What every task of the ``tasks`` executor runs in: BLAS threads, and errors that say where."""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

from distributed import get_worker
from threadpoolctl import ThreadpoolController

from flowml.errors import FlowmlError


class on_worker:
    """Run a block with the plan's BLAS threads, and name this worker in flowml's errors.

    Parameters
    ----------
    blas_threads : int, optional
        Left as it is when not given.

    Notes
    -----
    The number of threads is not put back: tasks of several threads overlap, and the first one to
    end would change the bits of the others. It is compared in 4 us and set when it differs.
    """

    __slots__ = ("_threads",)

    def __init__(self, blas_threads: int | None = None) -> None:
        self._threads = blas_threads

    def __enter__(self) -> None:
        """Set the number of threads where it is another one."""
        if self._threads is not None:
            limit_blas(self._threads)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        """Put the worker's address into an error of flowml."""
        if isinstance(error, FlowmlError):
            error.fields["worker"] = worker_address()
            error.worker = error.fields["worker"]  # type: ignore[attr-defined]


def limit_blas(count: int) -> None:
    """Let every BLAS of this process use ``count`` threads from now on."""
    for library in _libraries(len(sys.modules)):
        if library.num_threads != count:
            library.set_num_threads(count)


@lru_cache(maxsize=1)
def _libraries(modules: int) -> list[Any]:
    """Return the BLAS libraries of this process, looked up again when modules were imported."""
    return list(ThreadpoolController().select(user_api="blas").lib_controllers)


def worker_address() -> str:
    """Return the address of the Dask worker that this task runs on, or "driver"."""
    try:
        return str(get_worker().address)
    except ValueError:
        return "driver"
