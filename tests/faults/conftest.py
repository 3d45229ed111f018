"""One cluster a module: a worker that is killed is started again by its nanny."""

from collections.abc import Iterator

import pytest
from tests.faults.bed import Bed, bed


@pytest.fixture(scope="module")
def running() -> Iterator[Bed]:
    with bed() as found:
        yield found


@pytest.fixture
def pair(running: Bed) -> Iterator[Bed]:
    """Give two workers of one thread each; check afterwards that nothing is left behind."""
    running.ready()
    yield running
    running.assert_clean()
