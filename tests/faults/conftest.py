"""One cluster a module: a worker that is killed is started again by its nanny."""

from collections.abc import Iterator

import dask
import pytest
from tests.faults.bed import TRANSPORTS, WAIT_SECONDS, Bed, bed


@pytest.fixture(scope="module")
def running() -> Iterator[Bed]:
    with bed() as found:
        yield found
        # A cluster that is closed while a nanny starts a process takes half a minute for it.
        found.client.wait_for_workers(2, timeout=WAIT_SECONDS)


@pytest.fixture
def pair(running: Bed) -> Iterator[Bed]:
    """Give two workers of one thread each; check afterwards that nothing is left behind."""
    running.ready()
    yield running
    running.assert_clean()


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> Iterator[str]:
    """Let hosts share memory, and let each worker be a host of its own."""
    with dask.config.set({"flowml.transport": request.param}):
        yield request.param
