"""An operator that raises, exits or diverges in one replica: an error that says where and what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flowml as fl
from flowml.errors import DataError, DivergedError, OperatorError
from tests.faults.bed import (
    Bed,
    MadePartition,
    MadeSource,
    Mishap,
    Trap,
    assert_serial,
    failure,
    logged,
    training,
)


def test_an_operator_that_raises(transport: str, pair: Bed, tmp_path: Path) -> None:
    trap, victim = logged(Trap("raise"), tmp_path), pair.address_of(1)
    error = failure(training(trap).start(steps=40, replicas=2), trap)
    assert isinstance(error, OperatorError)
    assert (error.operator, error.replica, error.step) == ("gradient", 1, 5)
    assert (error.worker, error.kind) == (victim, "raised")
    text = str(error)
    assert "operator 'gradient'" in text
    assert "replica 1, step 5" in text
    assert "Mishap: the milk is spilt" in text
    assert "bed.py" in text.split("Mishap")[1], "the frames of the user come with the message"
    assert "in happen" in text
    assert f"step 5, on worker {victim}: raised" in text
    assert text.endswith("Its input is kept: error.call.again() repeats the call.")
    params, (X, y), place = error.call.inputs
    assert (params["W"].shape, len(X), len(y)) == ((12, 3), 1, 1)  # the end of an epoch
    assert (place.replica, place.clock) == (1, 5)
    error.call.again()  # the trap is set for workers only
    assert error.run.steps == 5, "the replica that raised has the tables of the step before"
    assert_serial(error.run, training(), 2)
    pair.assert_usable()


@pytest.mark.parametrize("replicas", [2, 5])
def test_an_operator_that_raises_in_all_replicas(replicas: int, pair: Bed) -> None:
    """Of several causes the lowest replica's is told."""

    def fail(grads: Any, place: Any) -> Any:
        if place.clock == 3:
            raise ZeroDivisionError("all at once")
        return grads

    error = failure(training(between=fail).start(steps=40, replicas=replicas))
    assert isinstance(error, OperatorError)
    assert error.operator == "between"
    assert error.step == 3
    assert error.run.steps == 3
    assert_serial(error.run, training(between=lambda grads, place: grads), replicas)


def test_an_operator_that_exits(transport: str, pair: Bed, tmp_path: Path) -> None:
    trap, before = logged(Trap("exit"), tmp_path), pair.pids()
    error = failure(training(trap).start(steps=40, replicas=2), trap)
    assert isinstance(error, OperatorError)
    assert (error.operator, error.replica, error.step) == ("gradient", 1, 5)
    assert error.kind == "exited"
    assert "sys.exit(3)" in str(error)
    assert error.run.steps == 5
    assert_serial(error.run, training(), 2)
    pair.assert_usable()
    assert pair.pids() == before, "no worker is lost"


@pytest.mark.parametrize("rows", [83, None])
def test_a_read_that_exits(rows: int | None, pair: Bed, tmp_path: Path) -> None:
    """Before the first step too, while rows are counted or a first batch is fetched."""
    trap, before = logged(Trap("exit"), tmp_path), pair.pids()
    made = MadeSource((MadePartition(0), MadePartition(1, rows, trap)))
    graph = training(source=made)
    error = failure(graph.start(steps=40, replicas=2), trap)
    assert isinstance(error, OperatorError)
    assert error.operator == "batch"
    assert error.kind == "exited"
    assert pair.pids() == before


def test_a_read_that_raises(pair: Bed, tmp_path: Path) -> None:
    trap = logged(Trap("raise"), tmp_path)
    made = MadeSource((MadePartition(0), MadePartition(1, trap=trap)))
    error = failure(training(source=made).start(steps=40, replicas=2), trap)
    assert isinstance(error, DataError)
    assert "made 1" in str(error)
    assert "Mishap: the milk is spilt" in str(error)
    assert_serial(error.run, training(source=MadeSource((made.made[0], MadePartition(1)))), 2)


def test_a_loss_that_is_not_finite(transport: str, pair: Bed) -> None:
    error = failure(training(Trap("nan")).start(steps=40, replicas=2))
    assert isinstance(error, DivergedError)
    assert (error.operator, error.replica, error.step) == ("gradient", 1, 5)
    assert "replica 1, step 5, on worker" in str(error)
    assert str(error).endswith("The last good step is 4; reads were fresh (all edges are sync).")
    assert_serial(error.run, training(), 2)
    pair.assert_usable()


def test_an_update_that_is_not_finite(transport: str, pair: Bed) -> None:
    def overflow(grads: Any, place: Any) -> Any:
        if (place.replica, place.clock) != (1, 5):
            return grads
        return {name: np.full_like(value, np.inf) for name, value in grads.items()}

    error = failure(training(between=overflow).start(steps=40, replicas=2))
    assert isinstance(error, DivergedError)
    assert error.step == 5
    # Replica 0 sees only the sum of the other host, and may be the first to refuse it.
    assert (error.operator, error.replica) == ("between", 1) or (
        transport == "rpc" and (error.operator, error.replica) == ("update", 0)
    )
    assert error.run.steps == 5
    assert_serial(error.run, training(between=lambda grads, place: grads), 2)


def test_a_rule_that_raises_keeps_what_it_was_given(pair: Bed) -> None:
    def step(params: Any, update: Any, state: Any, at: Any, out: Any) -> None:
        if at.step == 4:
            raise Mishap(f"no step of {len(params)} numbers")
        np.subtract(params, update, out=out)

    rule = fl.Rule(lambda params: {"seen": np.zeros_like(params)}, step, name="mine")
    error = failure(training(rule=rule).start(steps=40, replicas=2))
    assert isinstance(error, OperatorError)
    assert (error.operator, error.step, error.run.steps) == ("update", 4, 4)
    params, update, state, at, out = error.call.inputs
    assert len(params) == len(update) == len(state["seen"]) == len(out)
    assert at.step == 4
    with pytest.raises(Mishap, match=f"no step of {len(params)} numbers"):
        error.call.again()


def test_nothing_is_left_after_a_good_run(transport: str, pair: Bed) -> None:
    run = training().start(steps=60, replicas=5).wait(60)
    assert run.status == "done"
    assert_serial(run, training(), 5)
