"""What every test may ask for: data, a cluster, slow tests, and a check for what is left behind."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client, LocalCluster
from hypothesis import settings
from threadpoolctl import threadpool_limits

LEAK_SECONDS = 10.0
OPEN_FILES = Path("/proc/self/fd")
# Pools that Dask and asyncio start at first use and keep for the life of the process.
POOLS = ("Dask-Offload", "Dask-Callback-Thread", "asyncio_")

# A shell that starts tests in the background ignores Ctrl-C for them and all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine must not fail a property: no example has a deadline.
settings.register_profile("flowml", parent=settings(), deadline=None)
settings.load_profile("flowml")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skipped = {}
    if not config.getoption("--slow"):
        skipped["slow"] = pytest.mark.skip(reason="slow: run with --slow")
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        skipped["needs_root"] = pytest.mark.skip(reason="makes network namespaces: run as root")
    for item in items:
        for name in skipped.keys() & {mark.name for mark in item.iter_markers()}:
            item.add_marker(skipped[name])


@pytest.fixture(scope="session", autouse=True)
def one_blas_thread() -> Iterator[None]:
    """Another number of BLAS threads gives other bits."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="session")
def flowml_data() -> Path:
    """Return the folder of real data sets."""
    folder = os.environ.get("FLOWML_DATA")
    if not folder:
        pytest.skip("needs real data: set FLOWML_DATA to the folder that holds it")
    return Path(folder)


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    """Give the one cluster of the test session: two processes with one thread each."""
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address="127.0.0.1:0",
        host="127.0.0.1",
    ) as running:
        with Client(running) as first:  # so that its own pools of connections are open
            first.gather(first.map(str, range(4), pure=False))
            first.run(os.getpid)
        yield running


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    """Give a client of the session's cluster, which is the current one during the test."""
    with Client(cluster) as connected:
        yield connected


def open_things() -> dict[str, list[str]]:
    """Return the names of the threads and the targets of the file descriptors that are open."""
    files = []
    for descriptor in OPEN_FILES.iterdir() if OPEN_FILES.exists() else ():
        try:
            files.append(os.readlink(descriptor))
        except FileNotFoundError:  # the descriptor that lists the folder
            continue
    threads = [t.name for t in threading.enumerate() if not t.name.startswith(POOLS)]
    return {"threads": threads, "file descriptors": files}


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test marked ``leaks`` whose threads or file descriptors outlive it by 10 s."""
    if request.node.get_closest_marker("leaks") is None:
        yield
        return
    if "cluster" in request.fixturenames:
        request.getfixturevalue("cluster")  # it stays, so it must not count as left behind
    before = open_things()
    yield
    deadline = time.monotonic() + LEAK_SECONDS
    pause = threading.Event()
    after = open_things()
    while any(len(after[k]) > len(before[k]) for k in before) and time.monotonic() < deadline:
        pause.wait(0.05)
        after = open_things()
    for kind, names in before.items():
        new = [name for name in after[kind] if name not in names]
        assert len(after[kind]) <= len(names), f"{kind} left behind after 10 s, among them: {new}"
