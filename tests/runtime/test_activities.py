"""Where the seconds of a window went, as Dask's fine performance metrics are told."""

from __future__ import annotations

import numpy as np
import pytest

from flowml.compiler.stages import compile_graph
from flowml.runtime.activities import activities
from flowml.runtime.gang import Window
from flowml.runtime.meter import SCHEDULER, TRANSFER
from flowml.runtime.outcome import history_block
from flowml.runtime.program import WindowRecord
from tests.dashboard.stories import sync_graph

PLAN = compile_graph(sync_graph().logical, 2)
LOAD, GRADIENT, MEAN = range(3)


def window(*waits):
    """Return a window of 10 steps of 0.1 s for each rank, with so many seconds of waits a step."""
    records = []
    for rank, wait in enumerate(waits):
        block = history_block(
            range(10), rank, np.ones(10), np.full(10, 0.1), np.full(10, float(wait))
        )
        records.append((rank, WindowRecord(10, False, False, block)))
    return Window(0, tuple(records), 1.0)


def test_own_work_is_divided_as_counted_and_waits_are_exact():
    before = {0: {LOAD: 1.0, GRADIENT: 1.0}}
    after = {0: {LOAD: 1.1, GRADIENT: 1.3, "gradient -> mean": 0.5, SCHEDULER: 7.0}}
    found = activities(PLAN, window(0.04), before, after)
    assert found == {
        "load": pytest.approx(0.6 * 0.25),
        "gradient": pytest.approx(0.6 * 0.75),
        "wait: gradient -> mean": pytest.approx(0.4),
    }


def test_several_ranks_of_a_worker_share_its_wall_time():
    counted = {rank: {GRADIENT: 1.0, MEAN: 1.0, TRANSFER: 2.0} for rank in range(2)}
    found = activities(PLAN, window(0.0, 0.05), {}, counted)
    assert sum(found.values()) == pytest.approx(1.0)
    assert found["wait"] == pytest.approx(0.25)  # whatever it was for: no wait was counted
    assert found["transfer"] == pytest.approx(0.75 / 2)


def test_where_nothing_was_counted_steps_are_steps():
    assert activities(PLAN, window(0.0), {}, {}) == {"steps": pytest.approx(1.0)}
