"""Faults of runs with a quorum, and of groups at their own pace: one clear error, and no hang."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import dask
import numpy as np
import optree
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

PAIRS = [[0, 1], [2, 3]]
"""Each on one worker."""
SCOPES = {"w": "global", "copy": "host"}
LATE: tuple[Any, ...] = ("carry", "drop")


def with_quorum(count: int, trap: Trap, late: Any = "carry") -> fl.Graph:
    """Return synchronous SGD whose mean is of the first gradients."""
    model = fl.models.softmax(FEATURES, CLASSES)
    w = fl.table("w", model.init(seed=0))
    batch = fl.load(examples(), batch_size=BATCH)
    grads = fl.gradient(TrappedModel(model, trap), w, batch, fl.here(), name="gradient")
    mean = fl.aggregate("mean", grads.quorum(count, late=late), name="mean")
    return fl.Graph(fl.update(w, mean, fl.sgd(0.05)))


def in_groups(trap: Trap) -> fl.Graph:
    """Return SGD that is synchronous in a group and asynchronous between groups."""
    model = fl.models.softmax(FEATURES, CLASSES)
    w, copy = (fl.table(n, model.init(seed=0), scope=s) for n, s in SCOPES.items())
    batch = fl.load(examples(), batch_size=BATCH)
    grads = fl.gradient(TrappedModel(model, trap), copy, batch, fl.here(), name="gradient")
    mean = fl.aggregate("mean", grads, within="host", name="mean")
    fresh = fl.update(w, mean.async_(), fl.sgd(0.05))
    return fl.Graph(fresh, fl.assign(copy, fresh))


def assert_whole(error: Any) -> None:
    leaves = optree.tree_leaves(error.run.tables)
    assert leaves
    assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_death_of_one_that_a_quorum_waits_for(transport: str, pair: Bed, tmp_path: Path) -> None:
    trap, victim = logged(Trap("kill", step=5), tmp_path), pair.address_of(1)
    error = failure(with_quorum(2, trap).start(steps=4000, replicas=2), trap)
    assert isinstance(error, WorkerLostError)
    assert error.worker == victim
    assert victim in str(error)
    assert "gradient" in error.operator
    assert error.run.steps == 5
    assert_whole(error)
    pair.assert_usable()


@pytest.mark.parametrize("late", LATE)
def test_death_of_one_that_a_quorum_does_not_wait_for(late: Any, transport: str, pair: Bed) -> None:
    """The run ends although nobody needs it: what it had is lost."""
    (victim, pid), killed = list(pair.pids().items())[1], []

    def listen(event: Event) -> None:
        if isinstance(event, WindowDone) and not killed:
            killed.append(time.time())
            os.kill(pid, signal.SIGKILL)

    with dask.config.set({"flowml.window": "50ms"}):
        run = with_quorum(1, Trap(), late).start(steps=10**7, replicas=2, on_event=listen)
        error = failure(run)
    assert time.time() - killed[0] < VERDICT_SECONDS
    assert isinstance(error, WorkerLostError)
    assert error.worker == victim
    assert victim in str(error)
    assert_whole(error)
    pair.assert_usable()


def test_one_that_a_quorum_waits_for_is_silent(transport: str, pair: Bed, tmp_path: Path) -> None:
    trap = logged(Trap("sleep", step=5, seconds=3.0), tmp_path)
    error = failure(with_quorum(2, trap).start(steps=40, replicas=2, step_seconds=0.5), trap)
    assert isinstance(error, StalledError)
    assert (error.operator, error.replica) == ("gradient", 1)
    assert "waits for replica 1 at clock 5" in str(error)
    assert_whole(error)


def test_an_operator_that_fails_under_a_quorum(transport: str, pair: Bed, tmp_path: Path) -> None:
    trap = logged(Trap("raise", step=5), tmp_path)
    error = failure(with_quorum(2, trap).start(steps=4000, replicas=2), trap)
    assert isinstance(error, OperatorError)
    assert (error.operator, error.replica, error.step) == ("gradient", 1, 5)
    assert_whole(error)
    pair.assert_usable()


@pytest.mark.parametrize("replica", [2, 3])
def test_death_in_a_group(replica: int, transport: str, pair: Bed, tmp_path: Path) -> None:
    """Also of the one that receives for its group."""
    trap, victim = logged(Trap("kill", replica, step=5), tmp_path), pair.address_of(1)
    run = in_groups(trap).start(steps=10**7, replicas=4, groups=PAIRS)
    error = failure(run, trap)
    assert isinstance(error, WorkerLostError)
    assert error.worker == victim
    assert victim in str(error)
    assert_whole(error)
    pair.assert_usable()


@pytest.mark.parametrize("replica", [2, 3])
def test_an_operator_that_fails_in_a_group(
    replica: int, transport: str, pair: Bed, tmp_path: Path
) -> None:
    trap = logged(Trap("raise", replica, step=5), tmp_path)
    error = failure(in_groups(trap).start(steps=10**7, replicas=4, groups=PAIRS), trap)
    assert isinstance(error, OperatorError)
    assert (error.operator, error.replica, error.step) == ("gradient", replica, 5)
    assert_whole(error)
    pair.assert_usable()


@pytest.mark.parametrize("replica", [2, 3])
def test_one_of_a_group_is_silent(replica: int, transport: str, pair: Bed, tmp_path: Path) -> None:
    """The rest of its group waits for it where they meet, and says so; the others do not."""
    trap = logged(Trap("sleep", replica, step=5, seconds=3.0), tmp_path)
    run = in_groups(trap).start(steps=10**7, replicas=4, groups=PAIRS, step_seconds=0.5)
    error = failure(run, trap)
    assert isinstance(error, StalledError)
    assert (error.operator, error.replica) == ("gradient", replica)
    assert_readable(error)
    assert_whole(error)
