"""A worker that dies: one error that names it, soon, and the tables of the last committed step."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import dask
import pytest
from tests.faults.bed import (
    TRANSPORTS,
    Bed,
    MadePartition,
    MadeSource,
    Trap,
    assert_serial,
    failure,
    logged,
    training,
)

import flowml as fl
from flowml.errors import WorkerLostError
from flowml.events import Event, WindowDone

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> Any:
    with dask.config.set({"flowml.transport": request.param}):
        yield request.param


@pytest.mark.parametrize(("kind", "step"), [("kill", 5), ("_exit", 13)])
def test_death_in_a_gradient(
    kind: str, step: int, transport: str, pair: Bed, tmp_path: Path
) -> None:
    trap, victim = logged(Trap(kind, step=step), tmp_path), pair.address_of(1)
    error = failure(training(trap).start(steps=40, replicas=2), trap)
    assert isinstance(error, WorkerLostError)
    assert error.worker == victim
    assert victim in str(error)
    assert "gradient" in error.operator
    assert "'gradient'" in str(error)
    assert (error.operator == "gradient") == (transport == "auto")
    assert error.run.steps in (step, step + 1)
    assert_serial(error.run, training(), 2)
    pair.assert_usable()
