"""What a stall says: the edge, the replica and its clock, the last message, and what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import flowml as fl
from flowml.compiler.stages import compile_graph
from flowml.runtime.watch import Whereabouts, awaited_edge, silent_error
from graphs import local_sgd, ssgd, ssp

X = np.zeros((40, 3), "float32")
Y = np.zeros(40, "int64")
MODEL = fl.models.softmax(3, 2)
WORKER = "tcp://10.0.0.2:4321"


@pytest.mark.parametrize(
    ("module", "operator", "edge"),
    [
        (ssgd, "load", "gradient -> mean"),
        (ssgd, "gradient", "gradient -> mean"),
        (ssp, "gradient", "gradient -> update_w"),
        (local_sgd, "gradient", "drift -> mean"),
        (ssgd, "no such operator", ""),
    ],
)
def test_the_edge_that_is_waited_on_is_the_next_one_that_crosses(
    module: Any, operator: str, edge: str
) -> None:
    plan = compile_graph(module.build(MODEL, (X, Y)).logical, 2)
    assert awaited_edge(plan, operator) == edge


def test_a_silent_worker_is_named_with_what_waits_for_it() -> None:
    words = "operator 'gradient' (train.py:7), step 5"
    where = Whereabouts("gradient", words, 5, True, "gradient -> mean", 3)
    error = silent_error(WORKER, where, (2, 3), 2.34, 2.0)
    assert str(error) == (
        f"worker {WORKER}: must give a sign of life within 2 s (deadline), got silence for 2.3 s; "
        "edge gradient -> mean waits for replica 3 at clock 5, whose last message is from operator "
        "'gradient' (train.py:7), step 5. See whether it is stopped or cut off."
    )
    assert (error.edge, error.replica, error.clock) == ("gradient -> mean", 3, 5)
    assert (error.waiting_for, error.last_message) == (WORKER, words)


def test_at_a_barrier_the_barrier_waits() -> None:
    where = Whereabouts("barrier", "a wait in step 5", 5, True, replica=1)
    text = str(silent_error(WORKER, where, (1,), 9.0, 2.0, paused_percent=82))
    assert "the barrier waits for replica 1 at clock 5" in text
    assert "it paused at 82 % memory" in text


def test_what_another_host_cannot_know_is_not_made_up() -> None:
    where = Whereabouts(
        "load, gradient", "one of the operators 'load', 'gradient', step 5", 5, False
    )
    error = silent_error(WORKER, where, (2, 3), 9.0, 2.0)
    assert error.replica == 2
    assert "whose last message is from one of the operators 'load', 'gradient', step 5" in str(
        error
    )
