"""The lock of a host: it excludes, a death releases it, and a wait can be given up."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator

import pytest

from flowml.runtime import cores, host_lock
from flowml.runtime.host_lock import HostLock

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="locks of open files are Linux's")
WAIT_SECONDS = 30.0


@pytest.fixture
def memory() -> Iterator[int]:
    fd = os.memfd_create("test")
    os.ftruncate(fd, 4096)
    yield fd
    os.close(fd)


@pytest.fixture
def two(memory: int) -> Iterator[tuple[HostLock, HostLock]]:
    """Give the locks of two workers, which may be of one process."""
    locks = HostLock(memory), HostLock(memory)
    yield locks
    for lock in locks:
        lock.close()


@pytest.mark.parametrize("same", [True, False], ids=["threads of a worker", "two workers"])
def test_one_at_a_time(same: bool, two: tuple[HostLock, HostLock]) -> None:
    mine, other = two[0], two[0] if same else two[1]
    entered, inside = threading.Event(), []

    def enter() -> None:
        with other:
            inside.append("other")
        entered.set()

    thread = threading.Thread(target=enter)
    with mine:
        thread.start()
        assert not entered.wait(0.4)
        inside.append("mine")
    assert entered.wait(WAIT_SECONDS)
    thread.join()
    assert inside == ["mine", "other"]


def test_who_shares_a_core_looks_for_a_shorter_time(
    memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: 2)
    slept: list[float] = []
    monkeypatch.setattr(host_lock, "sleep", slept.append)
    now = iter(range(1_000_000))
    monkeypatch.setattr(host_lock, "perf_counter", lambda: next(now) * 1e-5)
    looks = []
    for processes in (2, 3):
        tries = iter([False] * 200 + [True])
        count = [0]

        def attempt(tries: Iterator[bool] = tries, count: list[int] = count) -> bool:
            count[0] += not slept
            return next(tries)

        lock = HostLock(memory, processes)
        monkeypatch.setattr(lock, "_try", attempt)
        slept.clear()
        lock._wait()
        looks.append(count[0])
        lock.close()
    assert looks == [100, 10]


def test_counting_by_threads_of_two_workers_loses_nothing(two: tuple[HostLock, HostLock]) -> None:
    count = [0]

    def add(lock: HostLock) -> None:
        for _ in range(300):
            with lock:
                seen = count[0]
                os.sched_yield()  # another one in here would be seen
                count[0] = seen + 1

    threads = [threading.Thread(target=add, args=(lock,)) for lock in (*two, *two)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_SECONDS)
    assert count == [1200]


def test_a_death_releases_it(memory: int) -> None:
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        HostLock(memory).__enter__()
        os.write(tell, b"x")
        signal.pause()
    assert os.read(told, 1) == b"x"
    lock = HostLock(memory)
    assert not lock._try()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with lock:
        pass
    lock.close()
    for end in (told, tell):
        os.close(end)


@pytest.mark.parametrize("same", [True, False], ids=["threads of a worker", "two workers"])
def test_a_wait_looks_around_and_can_be_given_up(
    same: bool, two: tuple[HostLock, HostLock]
) -> None:
    holder, waiter = two[0], two[0] if same else two[1]
    waits: list[float] = []

    def give_up(waited: float) -> None:
        waits.append(waited)
        if len(waits) == 2:
            raise TimeoutError("the run is over")

    waiter.on_silence = give_up
    errors: list[BaseException] = []

    def enter() -> None:
        try:
            with waiter:
                pass
        except TimeoutError as error:
            errors.append(error)

    thread = threading.Thread(target=enter)
    with holder:
        thread.start()
        thread.join(WAIT_SECONDS)
    assert [str(e) for e in errors] == ["the run is over"]
    assert 0.2 < waits[0] < waits[1]
    with waiter:  # nothing is held by the one who gave up
        pass
