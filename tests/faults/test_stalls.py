"""A wait ends for silence and for ``step_seconds``, and never because an operator takes long."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import dask
import pytest

from flowml.errors import StalledError, WorkerLostError
from flowml.events import Event, WindowDone
from tests.faults.bed import (
    VERDICT_SECONDS,
    WAIT_SECONDS,
    Bed,
    Trap,
    assert_serial,
    failure,
    logged,
    training,
)


def test_an_operator_over_its_limit(transport: str, pair: Bed, tmp_path: Path) -> None:
    trap, victim = logged(Trap("sleep", seconds=4.0), tmp_path), pair.address_of(1)
    error = failure(training(trap).start(steps=40, replicas=2, step_seconds=1.0), trap)
    assert isinstance(error, StalledError)
    assert (error.operator, error.replica, error.step) == ("gradient", 1, 5)
    assert "'gradient'" in str(error)
    assert "replica 1" in str(error)
    assert victim in str(error)
    assert "step_seconds" in str(error)
    assert error.edge == "gradient -> mean"
    assert (error.clock, error.waiting_for) == (5, "replica 1")
    assert (
        "edge gradient -> mean waits for replica 1 at clock 5, whose last message is that it "
        "entered the operator"
    ) in str(error)
    assert_serial(error.run, training(), 2)


def test_all_replicas_over_their_limit(pair: Bed) -> None:
    """Nobody waits for anybody: each process watches its own operators."""

    def dawdle(grads: Any, place: Any) -> Any:
        if place.clock == 3:
            time.sleep(4.0)
        return grads

    error = failure(training(between=dawdle).start(steps=40, replicas=2, step_seconds=1.0))
    assert isinstance(error, StalledError)
    assert (error.operator, error.step) == ("between", 3)
    assert error.run.steps == 3
    assert_serial(error.run, training(between=lambda grads, place: grads), 2)


def test_an_operator_that_merely_takes_long(transport: str, pair: Bed) -> None:
    """Its process gives signs of life all the time."""
    trap = Trap("sleep", seconds=4.0)
    run = training(trap).start(steps=10, replicas=2, deadline="2s").wait(WAIT_SECONDS)
    assert run.status == "done"
    assert_serial(run, training(), 2)


@pytest.mark.parametrize("ahead", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_worker_that_is_stopped(ahead: int, transport: str, pair: Bed) -> None:
    """With one window ahead nothing runs on it when it is stopped."""
    victim, pid = list(pair.pids().items())[1]
    stopped: list[float] = []

    def listen(event: Event) -> None:
        if isinstance(event, WindowDone) and not stopped:
            stopped.append(time.time())
            os.kill(pid, signal.SIGSTOP)

    try:
        with dask.config.set({"flowml.window": "50ms", "flowml.windows-ahead": ahead}):
            run = training().start(steps=100_000, replicas=2, deadline="2s", on_event=listen)
            error = failure(run)
        seconds = time.time() - stopped[0]
    finally:
        os.kill(pid, signal.SIGCONT)
    assert isinstance(error, StalledError | WorkerLostError)
    assert victim in str(error)
    if isinstance(error, StalledError):
        assert "silence for" in str(error)
        assert f"waits for replica {error.replica} at clock {error.clock}" in str(error)
        assert "whose last message is from " in str(error)
    assert seconds < 2.0 + VERDICT_SECONDS, "that long after the deadline of two"
    assert_serial(error.run, training(), 2)
    pair.assert_clean()
    pair.assert_usable()
