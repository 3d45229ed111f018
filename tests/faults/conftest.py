"""One cluster for the folder: a worker that is killed is started again by its nanny."""

import os
import signal
from collections.abc import Iterator

import dask
import pytest

from tests.faults.bed import TRANSPORTS, WAIT_SECONDS, Bed, bed, eventually


@pytest.fixture(scope="session")
def running() -> Iterator[Bed]:
    """Give a cluster that has had a death before: Dask keeps some sockets after the first."""
    with bed(set_as_default=False) as found:
        found.client.wait_for_workers(2, timeout=WAIT_SECONDS)
        victim, pid = list(found.pids().items())[1]
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: victim not in found.client.nthreads())
        yield found
        # A cluster that is closed while a nanny starts a process takes half a minute for it.
        found.client.wait_for_workers(2, timeout=WAIT_SECONDS)


@pytest.fixture
def pair(running: Bed) -> Iterator[Bed]:
    """Give two workers of one thread each; check afterwards that nothing is left behind."""
    with running.client.as_current():
        running.ready()
        yield running
        running.assert_clean()


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> Iterator[str]:
    """Let hosts share memory, and let each worker be a host of its own."""
    with dask.config.set({"flowml.transport": request.param}):
        yield request.param
