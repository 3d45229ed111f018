"""BLAS threads: part of the plan, because their number changes the bits of a product."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import ThreadpoolController, threadpool_limits


@contextmanager
def blas_threads(count: int) -> Iterator[None]:
    """Limit BLAS to ``count`` threads in this process."""
    with threadpool_limits(count, user_api="blas"):
        yield


def current_blas_threads() -> int:
    """Return the largest number of threads that a BLAS in this process may use."""
    found = ThreadpoolController().select(user_api="blas").info()
    return max((int(library["num_threads"]) for library in found), default=1)
