"""What the driver of a run that failed adds to its error: words that say what to do next."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flowml as fl
from flowml.aftermath import told
from flowml.compiler.stages import compile_graph
from flowml.errors import DivergedError, OperatorError, StalledError
from flowml.runtime.outcome import Outcome
from tests.faults.bed import assert_readable

X = np.random.default_rng(0).normal(size=(40, 3))
Y = X @ np.array([1.0, 2.0, 3.0])
PROMISES: dict[str, Any] = {
    "sync": (lambda w: w, r"reads were fresh \(all edges are sync\)"),
    "stale": (lambda w: w.stale(2), r"reads were up to [012] steps? late \(stale\(2\)\)"),
    "async": (lambda w: w.async_(), r"reads were up to \d+ steps? late \(async\)"),
}


@fl.value_and_grad
def growing(w: Any, batch: Any) -> Any:
    """Return a loss that is not finite as soon as the parameters have moved four times."""
    return np.inf if w[0] < -3.5 else 1.0, np.ones(3)


def graph(promise: Any = None, model: Any = growing) -> fl.Graph:
    w = fl.table("w", np.zeros(3))
    read = w if promise is None else promise(w)
    grad = fl.gradient(model, read, fl.load((X, Y), batch_size=5), name="grad")
    return fl.Graph(fl.update(w, fl.aggregate("mean", grad), fl.sgd(1.0)), name="g")


def outcome(promise: Any = None, **facts: Any) -> Outcome:
    return Outcome(compile_graph(graph(promise).logical, 2), **facts)


@pytest.mark.parametrize("promise", PROMISES)
@pytest.mark.parametrize("executor", ["serial", "simulated"])
def test_a_divergence_names_the_last_good_step_and_the_staleness(
    executor: str, promise: str
) -> None:
    declared, words = PROMISES[promise]
    with pytest.raises(DivergedError) as caught:
        graph(declared).run(steps=20, replicas=2, executor=executor)
    error = caught.value
    assert error.operator == "grad"
    assert error.last_good_step == error.run.steps - 1
    assert f"in replica {error.replica}, step {error.step}: the loss must be finite" in str(error)
    assert re.search(f"The last good step is {error.last_good_step}; {words}\\.$", str(error))
    assert_readable(error)


def test_a_divergence_in_the_first_step_has_no_good_one() -> None:
    @fl.value_and_grad
    def at_once(w: Any, batch: Any) -> Any:
        return np.nan, np.ones(3)

    with pytest.raises(DivergedError, match="No step was good; reads were fresh"):
        graph(model=at_once).run(steps=2, replicas=2, executor="serial")


@pytest.mark.parametrize(
    ("promise", "words"),
    [
        (lambda w: w.stale(2), "reads may be 2 steps late (stale(2))."),
        (lambda w: w.async_(), "reads may be any number of steps late (async)."),
    ],
)
def test_what_no_window_told_is_said_by_the_promise(promise: Any, words: str) -> None:
    error = DivergedError("operator 'grad' in replica 0, step 3", "must be finite", step=3)
    found = told(error, graph(promise).logical, outcome(promise, steps=3), None)
    assert str(found).endswith(f"The last good step is 2; {words}")


def test_the_most_steps_that_a_read_was_late_are_those_of_the_history() -> None:
    error = DivergedError("operator 'grad'", "must be finite")
    seen = outcome(PROMISES["async"][0], steps=9, history={"staleness": np.array([0, 5, 1])})
    found = told(error, graph(PROMISES["async"][0]).logical, seen, None)
    assert isinstance(found, DivergedError)
    assert (found.staleness, found.last_good_step) == (5, 8)
    assert "up to 5 steps late (async)" in str(found)


def test_the_worker_is_that_of_the_replica_and_not_of_who_found_out() -> None:
    workers = ("tcp://10.0.0.1:7", "tcp://10.0.0.2:8")
    error = OperatorError(
        "operator 'grad' (a.py:3) in replica 1, step 4",
        "raised KeyError: 'W'",
        operator="grad",
        replica=1,
        step=4,
        worker=workers[0],
        kind="raised",
    )
    found = told(error, graph().logical, outcome(workers=workers), None)
    assert isinstance(found, OperatorError)
    assert str(found).startswith(
        "operator 'grad' (a.py:3) in replica 1, step 4, on worker tcp://10.0.0.2:8: raised KeyError"
    )
    assert found.worker == workers[1]


def test_other_errors_stay_as_they_are(tmp_path: Path) -> None:
    stall = StalledError("worker tcp://10.0.0.1:7", "must give a sign of life", replica=1, step=4)
    seen = outcome(workers=("tcp://10.0.0.1:7", "tcp://10.0.0.2:8"))
    assert told(stall, graph().logical, seen, tmp_path) is stall
    other = KeyboardInterrupt()
    assert told(other, graph().logical, None, None) is other
