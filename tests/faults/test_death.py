"""A worker that dies: one error that names it, soon, and the tables of the last committed step."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest

import flowml as fl
from flowml.errors import FlowmlError, WorkerLostError
from flowml.events import Event, WindowDone
from tests.faults.bed import (
    Bed,
    MadePartition,
    MadeSource,
    Trap,
    assert_serial,
    eventually,
    failure,
    logged,
    training,
)


def assert_names(error: FlowmlError, victim: str, operator: str, transport: str) -> None:
    """Check that an error names the worker and the operator.

    Where hosts do not share memory nobody saw which operator of the step it was: all are named.
    """
    assert isinstance(error, WorkerLostError)
    assert error.kind == "worker"
    assert error.worker == victim
    assert victim in str(error)
    assert f"'{operator}'" in str(error)
    if transport == "auto":
        assert error.operator == operator
    else:
        assert operator in error.operator.split(", ")


@pytest.mark.parametrize(("kind", "step"), [("kill", 5), ("_exit", 13)])
def test_death_in_a_gradient(
    kind: str, step: int, transport: str, pair: Bed, tmp_path: Path
) -> None:
    trap, victim = logged(Trap(kind, step=step), tmp_path), pair.address_of(1)
    error = failure(training(trap).start(steps=40, replicas=2), trap)
    assert_names(error, victim, "gradient", transport)
    # Without shared memory the victim may have been ahead of the other by what ends a step.
    assert error.run.steps == step or (transport == "rpc" and error.run.steps == step - 1)
    assert_serial(error.run, training(), 2)
    pair.assert_usable()


def dying_rule(trap: Trap, pid: int) -> fl.Rule:
    """Return SGD that springs a trap in one process: between the two barriers of a step."""
    sgd = fl.sgd(0.1, momentum=0.9)

    def step(params: Any, update: Any, state: Any, at: Any, out: Any) -> None:
        if at.step == trap.step and os.getpid() == pid:
            out[...] = np.nan  # half of a write that nobody may see
            trap.happen()
        sgd.step(params, update, state, at, out)

    return fl.Rule(sgd.init, step, name="dying")


def test_death_between_the_barriers(transport: str, pair: Bed, tmp_path: Path) -> None:
    """Owners compute: nobody has the victim's part of the step."""
    trap, (victim, pid) = logged(Trap("kill", step=6), tmp_path), list(pair.pids().items())[1]
    with dask.config.set({"flowml.own-copies": "0 B"}):
        error = failure(training(rule=dying_rule(trap, pid)).start(steps=40, replicas=2), trap)
    assert_names(error, victim, "update", transport)
    assert error.run.steps == 6 or (transport == "rpc" and error.run.steps == 7)
    assert_serial(error.run, training(), 2)


def test_death_behind_the_barrier(pair: Bed, tmp_path: Path) -> None:
    """Each rank has a copy of its own, and all gradients: the other ends the step."""
    trap, (victim, pid) = logged(Trap("kill", step=6), tmp_path), list(pair.pids().items())[1]
    error = failure(training(rule=dying_rule(trap, pid)).start(steps=40, replicas=2), trap)
    assert_names(error, victim, "update", "auto")
    assert error.run.steps == 7
    assert_serial(error.run, training(), 2)


def test_death_in_the_read_of_a_load(transport: str, pair: Bed, tmp_path: Path) -> None:
    trap, victim = logged(Trap("kill"), tmp_path), pair.address_of(1)
    made = (MadePartition(0), MadePartition(1, trap=trap))
    error = failure(training(source=MadeSource(made)).start(steps=40, replicas=2), trap)
    assert_names(error, victim, "batch", transport)
    assert_serial(error.run, training(source=MadeSource((made[0], MadePartition(1)))), 2)


def test_death_while_rows_are_counted(pair: Bed, tmp_path: Path) -> None:
    trap, victim = logged(Trap("kill"), tmp_path), pair.address_of(1)
    made = MadeSource((MadePartition(0), MadePartition(1, None, trap)))
    error = failure(training(source=made).start(steps=40, replicas=2), trap)
    assert_names(error, victim, "batch", "auto")
    assert error.run.steps == 0


@pytest.mark.parametrize("ahead", [1, 2])
def test_death_between_windows(ahead: int, transport: str, pair: Bed) -> None:
    """With one window ahead nothing runs when the worker dies; with two the next one does."""
    victim, pid = list(pair.pids().items())[1]
    seen: list[WindowDone] = []

    def listen(event: Event) -> None:
        if isinstance(event, WindowDone):
            seen.append(event)
            if len(seen) == 2:
                os.kill(pid, signal.SIGKILL)

    with dask.config.set({"flowml.window": "50ms", "flowml.windows-ahead": ahead}):
        error = failure(training().start(steps=100_000, replicas=2, on_event=listen))
    assert isinstance(error, WorkerLostError)
    assert error.worker == victim
    assert error.run.steps > seen[1].step
    assert_serial(error.run, training(), 2)


def test_the_only_worker_dies(pair: Bed, tmp_path: Path) -> None:
    """Nobody is left who has the tables: those of the last snapshot are given."""
    trap = logged(Trap("kill", replica=0, step=20), tmp_path)
    with dask.config.set({"flowml.windows-ahead": 1}):  # the snapshot is here before step 9
        error = failure(training(trap).start(steps=40, replicas=1, snapshots=[8]), trap)
    assert isinstance(error, WorkerLostError)
    assert error.run.steps == 8
    assert_serial(error.run, training(), 1)


def test_a_cluster_that_shrinks_is_usable(pair: Bed, tmp_path: Path) -> None:
    trap = logged(Trap("kill"), tmp_path)
    failure(training(trap).start(steps=40, replicas=2), trap)
    pair.assert_usable()
    eventually(lambda: len(pair.pids()) == 2)
    pair.assert_usable()
