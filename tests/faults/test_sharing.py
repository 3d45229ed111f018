"""Several runs on one cluster, runs inside tasks, and clients that go away."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from distributed import Client, get_client

from flowml.events import Event, RunStarted, Warned, WindowDone
from tests.faults.bed import (
    WAIT_SECONDS,
    Bed,
    Trap,
    assert_serial,
    bed,
    eventually,
    same_bytes,
    training,
)

RELEASE_SECONDS = 30.0


@pytest.fixture
def roomy() -> Iterator[Bed]:
    """Give two workers with two threads each, on a cluster that is the current one meanwhile."""
    with bed(threads_per_worker=2) as found:
        found.ready()
        yield found


def test_two_runs_at_once_on_workers_with_two_threads(roomy: Bed) -> None:
    """Each waits for the other in the middle of its steps: in turn they would never end."""
    arrived = {name: threading.Event() for name in ("first", "second")}

    def wait_for_the_other(me: str, other: str) -> Any:
        def listen(event: Event) -> None:
            if isinstance(event, WindowDone):
                arrived[me].set()
                assert arrived[other].wait(WAIT_SECONDS)

        return listen

    first = training(name="first").start(
        steps=60, replicas=2, cluster=roomy.client, on_event=wait_for_the_other("first", "second")
    )
    second = training(name="second").start(
        steps=50, replicas=2, cluster=roomy.client, on_event=wait_for_the_other("second", "first")
    )
    for run in (first, second):
        assert run.wait(WAIT_SECONDS).status == "done"
        assert_serial(run, training(), 2)
    roomy.assert_clean()


def test_a_run_without_a_slot_waits_and_is_told_for_whom(pair: Bed) -> None:
    inside, go_on, told = threading.Event(), threading.Event(), []

    def hold(event: Event) -> None:
        if isinstance(event, WindowDone):
            inside.set()
            assert go_on.wait(WAIT_SECONDS)

    def listen(event: Event) -> None:
        told.append(event)
        if isinstance(event, Warned):
            go_on.set()

    holder = training(name="holder").start(steps=30, replicas=2, on_event=hold)
    assert inside.wait(WAIT_SECONDS)
    waiter = training(name="waiter").start(steps=30, replicas=2, on_event=listen)
    for run in (waiter, holder):
        assert run.wait(WAIT_SECONDS).status == "done"
        assert_serial(run, training(), 2)
    warned = [e for e in told if isinstance(e, Warned)]
    assert len(warned) == 1
    assert warned[0].text.startswith("graph 'waiter' waits for graph 'holder' on tcp://")
    after = told[told.index(warned[0]) + 1]
    assert isinstance(after, RunStarted), "it starts when it has its slots"


def test_without_a_listener_a_waiting_run_logs_it(
    pair: Bed, caplog: pytest.LogCaptureFixture
) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def hold(event: Event) -> None:
        if isinstance(event, WindowDone):
            inside.set()
            assert go_on.wait(WAIT_SECONDS)

    holder = training(name="holder").start(steps=30, replicas=2, on_event=hold)
    assert inside.wait(WAIT_SECONDS)
    with caplog.at_level(logging.WARNING, "flowml"):
        waiter = training(name="waiter").start(steps=3, replicas=2)
        eventually(lambda: "graph 'waiter' waits for graph 'holder'" in caplog.text)
    go_on.set()
    assert waiter.wait(WAIT_SECONDS).status == holder.wait(WAIT_SECONDS).status == "done"


def test_a_waiting_run_can_be_stopped(pair: Bed) -> None:
    inside, go_on, waits = threading.Event(), threading.Event(), threading.Event()

    def hold(event: Event) -> None:
        if isinstance(event, WindowDone):
            inside.set()
            assert go_on.wait(WAIT_SECONDS)

    holder = training(name="holder").start(steps=30, replicas=2, on_event=hold)
    assert inside.wait(WAIT_SECONDS)
    waiter = training(name="waiter").start(
        steps=30, replicas=2, on_event=lambda e: waits.set() if isinstance(e, Warned) else None
    )
    assert waits.wait(WAIT_SECONDS)
    waiter.stop()
    assert waiter.wait(WAIT_SECONDS).status == "stopped"
    assert waiter.steps == 0
    assert_serial(waiter, training(), 2)
    go_on.set()
    assert holder.wait(WAIT_SECONDS).status == "done"


CLIENT = """
import sys
sys.path[:0] = {path!r}
from distributed import Client
from tests.faults.bed import Trap, training

if __name__ == "__main__":
    with Client({address!r}) as client:
        run = training({trap!r}, name="orphan").start(steps=10**9, replicas=2)
        print("started", flush=True)
        run.wait()
"""


@pytest.mark.parametrize("busy", [False, True])
def test_a_client_that_is_killed(busy: bool, pair: Bed) -> None:
    """Its run ends on the workers, also when an operator is in the middle of something long."""
    trap = Trap("sleep", step=40, seconds=3.0, driver=-1) if busy else Trap()
    script = CLIENT.format(path=sys.path, address=pair.client.scheduler.address, trap=trap)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as orphan:
        try:
            assert orphan.stdout is not None
            assert orphan.stdout.readline().strip() == b"started"
            eventually(lambda: len([k for k in pair.kept() if k.startswith("gangs")]) == 2, 30.0)
            waits = threading.Event()
            next_run = training(name="next").start(
                steps=20,
                replicas=2,
                on_event=lambda e: waits.set() if isinstance(e, Warned) else None,
            )
            assert waits.wait(WAIT_SECONDS)
        finally:
            orphan.send_signal(signal.SIGKILL)
        run = next_run.wait(RELEASE_SECONDS)
    assert run.status == "done"
    assert_serial(run, training(), 2)
    eventually(lambda: not pair.kept(), RELEASE_SECONDS)


def test_a_run_inside_a_task_leaves_its_slot(pair: Bed) -> None:
    """It needs a slot on the very worker that its task runs on."""

    def task() -> Any:
        get_client()
        run = training(name="inner").run(steps=12, replicas=2)
        return run.status, run.steps, run.tables["w"]

    future = pair.client.submit(task, pure=False)
    status, steps, table = future.result(WAIT_SECONDS)
    expected = training().run(steps=12, replicas=2, executor="serial").tables["w"]
    assert (status, steps) == ("done", 12)
    assert same_bytes(table, expected)


def test_runs_inside_several_tasks(pair: Bed) -> None:
    """More of them than slots: they take turns."""

    def task(steps: int) -> Any:
        return training(name=f"inner {steps}").run(steps=steps, replicas=2).tables["w"]

    futures = pair.client.map(task, [3, 4, 5], pure=False)
    for steps, future in zip([3, 4, 5], futures, strict=True):
        expected = training().run(steps=steps, replicas=2, executor="serial").tables["w"]
        assert same_bytes(future.result(WAIT_SECONDS), expected)


def test_another_client_sees_the_same_queue(pair: Bed) -> None:
    inside, go_on, waits = threading.Event(), threading.Event(), threading.Event()

    def hold(event: Event) -> None:
        if isinstance(event, WindowDone):
            inside.set()
            assert go_on.wait(WAIT_SECONDS)

    holder = training(name="holder").start(steps=30, replicas=2, on_event=hold)
    assert inside.wait(WAIT_SECONDS)
    with Client(pair.client.scheduler.address, set_as_default=False) as other:
        waiter = training(name="waiter").start(
            steps=5,
            replicas=2,
            cluster=other,
            on_event=lambda e: waits.set() if isinstance(e, Warned) else None,
        )
        assert waits.wait(WAIT_SECONDS)
        go_on.set()
        assert waiter.wait(WAIT_SECONDS).status == "done"
        assert holder.wait(WAIT_SECONDS).status == "done"
    assert os.getpid() not in pair.pids().values()
