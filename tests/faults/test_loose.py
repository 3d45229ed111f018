"""Faults of runs whose replicas do not meet: stale and async edges."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest

import flowml as fl
from flowml.errors import OperatorError, StalledError, WorkerLostError
from flowml.events import Event, WindowDone
from tests.faults.bed import (
    BATCH,
    CLASSES,
    FEATURES,
    VERDICT_SECONDS,
    Bed,
    Trap,
    TrappedModel,
    assert_readable,
    examples,
    failure,
    logged,
)

PROMISES: dict[str, Any] = {"async": lambda w: w.async_(), "stale": lambda w: w.stale(2)}


def training(promise: str, trap: Trap | None = None, rule: Any = None) -> fl.Graph:
    """Return a graph whose gradients are pushed one by one."""
    model = fl.models.softmax(FEATURES, CLASSES)
    w = fl.table("w", model.init(seed=0))
    batch = fl.load(examples(), batch_size=BATCH, name="batch")
    trapped = TrappedModel(model, trap or Trap())
    grads = fl.gradient(trapped, PROMISES[promise](w), batch, fl.here(), name="gradient")
    return fl.Graph(fl.update(w, grads, rule or fl.sgd(0.05), name="update"))


def assert_whole(tables: dict[str, Any]) -> None:
    assert all(np.isfinite(leaf).all() for leaf in tables["w"].values())


@pytest.mark.parametrize("promise", PROMISES)
def test_death_in_a_gradient(promise: str, transport: str, pair: Bed, tmp_path: Path) -> None:
    """Also of a replica that reaches the tables over RPC."""
    trap, victim = logged(Trap("kill", step=5), tmp_path), pair.address_of(1)
    error = failure(training(promise, trap).start(steps=4000, replicas=2), trap)
    assert isinstance(error, WorkerLostError)
    assert error.worker == victim
    assert "gradient" in error.operator  # another host knows only what it may have been in
    assert error.run.steps == 5  # of the replica that is furthest behind: the dead one
    assert_whole(error.run.tables)
    pair.assert_usable()


def test_death_of_the_worker_that_holds_the_tables(pair: Bed, tmp_path: Path) -> None:
    """They are gone with it; the error says so, and the run leaves what the driver had."""
    trap, victim = logged(Trap("kill", replica=0, step=5), tmp_path), pair.address_of(0)
    with dask.config.set({"flowml.transport": "rpc"}):
        run = training("async", trap).start(steps=4000, replicas=2, snapshots=(3,))
        error = failure(run, trap)
    assert isinstance(error, WorkerLostError)
    assert error.worker == victim
    assert_whole(error.run.tables)
    assert_readable(error)
    pair.assert_usable()


def dying_rule(trap: Trap, pid: int) -> fl.Rule:
    """Return SGD that dies in one process in the middle of a write, with the lock in its hand."""
    sgd = fl.sgd(0.05)

    def step(params: Any, update: Any, state: Any, at: Any, out: Any) -> None:
        if at.writer == 1 and at.step == trap.step and os.getpid() == pid:
            out[...] = np.nan
            trap.happen()
        sgd.step(params, update, state, at, out)

    return fl.Rule(sgd.init, step, name="dying")


@pytest.mark.parametrize("promise", PROMISES)
def test_death_in_the_middle_of_a_write(promise: str, pair: Bed, tmp_path: Path) -> None:
    """The lock goes with its holder, and nobody ever reads the half that it wrote."""
    trap, (victim, pid) = logged(Trap("kill", step=6), tmp_path), list(pair.pids().items())[1]
    graph = training(promise, rule=dying_rule(trap, pid))
    error = failure(graph.start(steps=4000, replicas=2), trap)
    assert isinstance(error, WorkerLostError)
    assert (error.worker, error.operator) == (victim, "update")
    assert_whole(error.run.tables)


@pytest.mark.parametrize("promise", PROMISES)
@pytest.mark.parametrize("kind", ["raise", "exit", "nan"])
def test_an_operator_that_fails(
    kind: str, promise: str, transport: str, pair: Bed, tmp_path: Path
) -> None:
    trap = logged(Trap(kind, step=5), tmp_path)
    run = training(promise, trap).start(steps=4000, replicas=2)
    error = failure(run, None if kind == "nan" else trap)
    assert (error.operator, error.replica, error.step) == ("gradient", 1, 5)
    assert isinstance(error, OperatorError) or kind == "nan"
    assert f"replica 1, step 5, on worker {error.worker}" in str(error)
    if kind != "exit":
        assert "Its input is kept: error.call.again() repeats the call." in str(error)
    if kind == "nan":
        assert f"The last good step is {error.run.steps - 1}; reads " in str(error)
        assert str(error).endswith(f" late ({'stale(2)' if promise == 'stale' else 'async'}).")
    assert_whole(error.run.tables)
    pair.assert_usable()


def test_a_slow_operator_under_stale(transport: str, pair: Bed, tmp_path: Path) -> None:
    """The other waits for the clock of the slow one, and says so."""
    trap = logged(Trap("sleep", step=5, seconds=3.0), tmp_path)
    run = training("stale", trap).start(steps=40, replicas=2, step_seconds=0.5)
    error = failure(run, trap)
    assert isinstance(error, StalledError)
    assert error.operator == "gradient"
    assert error.replica == 1
    assert "waits for replica 1 at clock 5, whose last message is" in str(error)
    assert_readable(error)


def test_an_operator_that_hangs_with_the_lock_in_its_hand(
    transport: str, pair: Bed, tmp_path: Path
) -> None:
    """Those who wait for the lock leave, the error names the operator, and tables come back."""
    trap = logged(Trap("sleep", replica=0, step=7, seconds=8.0), tmp_path)
    model = fl.models.softmax(FEATURES, CLASSES)
    w = fl.table("w", model.init(seed=0))
    grads = fl.gradient(model, w.async_(), fl.load(examples(), batch_size=BATCH), name="gradient")
    seen = [0]

    def slow(mean: Any) -> Any:
        seen[0] += 1
        trap.spring(0, seen[0])
        return mean

    slowed = fl.map(slow, fl.aggregate("mean", grads), name="slowed")
    run = fl.Graph(fl.update(w, slowed, fl.sgd(0.05))).start(
        steps=4000, replicas=2, step_seconds=0.5
    )
    error = failure(run, trap)
    assert isinstance(error, StalledError)
    assert error.operator == "slowed"
    assert_readable(error)
    assert_whole(error.run.tables)


def test_a_stop_ends_both(transport: str, pair: Bed) -> None:
    trap = Trap("sleep", step=3, seconds=0.2)
    run = training("async", trap).start(steps=10_000_000, replicas=2, max_seconds=0.5)
    done = run.wait(30.0)
    assert done.status == "stopped"
    assert 0 < done.steps < 10_000_000
    assert_whole(done.tables)


@pytest.mark.parametrize("replica", [0, 1])
@pytest.mark.parametrize("promise", PROMISES)
def test_a_process_that_is_stopped(replica: int, promise: str, transport: str, pair: Bed) -> None:
    """Whoever holds the tables or is waited for: its silence is told, and by name."""
    (victim, pid), stopped = list(pair.pids().items())[replica], []

    def listen(event: Event) -> None:
        if isinstance(event, WindowDone) and not stopped:
            stopped.append(time.time())
            os.kill(pid, signal.SIGSTOP)

    try:
        with dask.config.set({"flowml.window": "50ms"}):
            run = training(promise).start(
                steps=1_000_000, replicas=2, deadline="2s", on_event=listen
            )
            error = failure(run)
        seconds = time.time() - stopped[0]
    finally:
        os.kill(pid, signal.SIGCONT)
    assert isinstance(error, StalledError | WorkerLostError)
    assert victim in str(error)
    assert seconds < 2 * 2.0 + VERDICT_SECONDS
    assert_readable(error)
    pair.assert_clean()
    pair.assert_usable()
