"""What graph.run takes, and what it refuses before anything starts."""

from __future__ import annotations

from typing import Any

import dask
import numpy as np
import pytest

import flowml as fl
from flowml.options import executor_of, order_of, positive, refuse_other, seed_of

NONE: dict[str, Any] = {
    "steps": None, "epochs": None, "seed": 0, "snapshots": (), "max_seconds": None,
    "deadline": None, "step_seconds": None, "on_nonfinite": None,
}  # fmt: skip


def test_what_is_left_out_comes_from_the_configuration() -> None:
    order = order_of(**NONE)
    assert (order.deadline_seconds, order.on_nonfinite, order.step_seconds) == (60.0, "stop", None)
    assert order.record is False
    assert order_of(**NONE, record=True).record is True
    changed = {
        "flowml.deadline": "2 minutes",
        "flowml.on-nonfinite": "ignore",
        "flowml.step-seconds": "3s",
        "flowml.executor": "tasks",
    }
    with dask.config.set(changed):
        order = order_of(**NONE)
        assert (order.deadline_seconds, order.on_nonfinite) == (120.0, "ignore")
        assert order.step_seconds == 3.0
        assert executor_of(None) == "tasks"
    assert executor_of(None) == "resident"


def test_what_is_given_wins_and_becomes_plain_python() -> None:
    order = order_of(**NONE | {
        "steps": np.int64(3), "epochs": 2, "seed": np.uint8(4), "snapshots": np.arange(1, 3),
        "max_seconds": 5, "deadline": "90s", "step_seconds": np.float32(1.5),
        "on_nonfinite": "ignore",
    })  # fmt: skip
    assert (order.steps, order.epochs, order.seed) == (3, 2, 4)
    assert {type(v) for v in (order.steps, order.seed, *order.snapshots)} == {int}
    assert order.snapshots == frozenset({1, 2})
    assert (order.max_seconds, order.deadline_seconds, order.step_seconds) == (5.0, 90.0, 1.5)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("steps", 0, "steps: must be an integer >= 1, got 0"),
        ("steps", 2.0, "steps: must be an integer >= 1, got 2.0"),
        ("steps", True, "steps: must be an integer >= 1, got True"),
        ("epochs", -1, "epochs: must be an integer >= 1, got -1"),
        ("seed", -1, "seed: must be an integer >= 0, got -1"),
        ("seed", "a", "seed: must be an integer >= 0, got 'a'"),
        ("snapshots", (0,), "snapshots: must be numbers of steps >= 1, got (0,)"),
        ("snapshots", 5, "snapshots: must be numbers of steps >= 1, got 5"),
        ("snapshots", "12", "snapshots: must be numbers of steps >= 1, got '12'"),
        ("max_seconds", 0, "max_seconds: must be a number of seconds > 0, got 0"),
        ("max_seconds", "5", "max_seconds: must be a number of seconds > 0, got '5'"),
        ("max_seconds", float("nan"), "max_seconds: must be a number of seconds > 0, got nan"),
        ("step_seconds", -2.0, "step_seconds: must be a number of seconds > 0, got -2.0"),
        ("deadline", "soon", "deadline: must be a duration > 0, got 'soon'"),
        ("deadline", 0, "deadline: must be a duration > 0, got 0"),
        ("on_nonfinite", "skip", "on_nonfinite: must be one of stop, ignore, got 'skip'"),
        ("executor", "dask", "executor: must be one of resident, tasks, serial"),
        ("executor", "residant", "Did you mean 'resident'?"),
        ("blas_threads", 0, "blas_threads: must be an integer >= 1, got 0"),
        ("replicas", 0, "replicas: must be an integer >= 1, got 0"),
        ("directory", "runs", "option directory: does not run in this release, got 'runs'"),
        ("resume", "never", "option resume: does not run in this release, got 'never'"),
        ("record", 1, "record: must be True or False, got 1"),
        ("step", 3, "Did you mean 'steps'?"),
        ("zzz", 3, "graph.run: options are blas_threads, checkpoint, cluster, "),
    ],
)
def test_what_has_no_meaning_is_refused_by_name(option: str, value: Any, says: str) -> None:
    w, x = fl.table("w", np.zeros(2)), fl.load(np.ones((4, 2)), batch_size=2)
    graph = fl.Graph(fl.assign(w, fl.aggregate("sum", fl.map(lambda x: x.sum(0), x))))
    with pytest.raises(fl.PlanError) as caught:
        graph.start(**{"steps": 1} | {option: value})
    assert says in str(caught.value)


def test_options_of_later_may_be_given_as_they_are() -> None:
    as_they_are = {"directory": None, "resume": "auto", "checkpoint": None}
    refuse_other(as_they_are, ())
    for name in as_they_are:
        with pytest.raises(fl.PlanError, match=f"option {name}: does not run in this release"):
            refuse_other(as_they_are | {name: "elsewhere"}, ())


def test_numbers_alone() -> None:
    assert positive("steps", None) is None
    assert positive("steps", 3) == 3
    assert seed_of(0) == 0
