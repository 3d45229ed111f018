"""Workers report runs for as long as they were asked to, and no longer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flowml.compiler.stages import compile_graph
from flowml.runtime import reports as module
from flowml.runtime.board import Board
from flowml.runtime.meter import SCHEDULER, TRANSFER, WAITING
from flowml.runtime.reports import METERED_ENTRIES, Reporter, part_of, report
from tests.dashboard.stories import sync_graph

PLAN = compile_graph(sync_graph().logical, 2)


class FakeWorker:
    """A worker that keeps what it tells the scheduler."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def batched_send(self, message: dict[str, Any]) -> None:
        self.told.append(message)


def gang(*, joined: bool = True) -> Any:
    board = Board(np.zeros(Board.nbytes(2, 1), np.uint8), 2, 1)
    return SimpleNamespace(
        board=board if joined else None,
        ranks=(1,),
        worker="tcp://a:1",
        swap_seconds=0.5,
        spec=SimpleNamespace(plan=PLAN, loose=None),
    )


def in_a_loop(check: Callable[[], None]) -> None:
    async def go() -> None:
        check()

    asyncio.run(go())


def test_it_reports_until_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])

    def check() -> None:
        worker = FakeWorker()
        reporter = Reporter(worker, {"f00d": gang()})
        reporter.watch("f00d", 5.0)
        assert [m["op"] for m in worker.told] == ["flowml-report"]  # the first one at once
        now[0] += 4.0
        reporter.watch("f00d", 5.0)
        now[0] += 4.0
        reporter.tell()
        assert len(worker.told) == 2
        now[0] += 2.0
        reporter.tell()
        assert len(worker.told) == 2
        assert not reporter._ticks.is_running()

    in_a_loop(check)


def test_it_reports_no_run_that_is_not_here() -> None:
    def check() -> None:
        worker, gangs = FakeWorker(), {"f00d": gang()}
        reporter = Reporter(worker, gangs)
        reporter.watch("nobody", 5.0)
        assert not reporter._ticks.is_running()
        reporter.watch("f00d", 5.0)
        del gangs["f00d"]  # the run ends
        reporter.tell()
        assert len(worker.told) == 1
        assert not reporter._ticks.is_running()

    in_a_loop(check)


def test_a_report_says_where_ranks_are_and_lets_them_count() -> None:
    found = gang()
    enter = found.board.pen(1)
    enter(1, 41)
    told = report(found)
    assert told is not None
    (rank,) = told["ranks"]
    assert (rank["rank"], rank["step"], rank["within"]) == (1, 41, ("compute", "gradient"))
    assert rank["spent"] == []  # it was not counting
    assert told["between_hosts"] == 0.5
    for number in range(METERED_ENTRIES):
        enter((1, 2)[number % 2], 42)
    enter(WAITING, 43)
    again = report(found)
    assert again is not None
    parts = {(part, name) for part, name, _ in again["ranks"][0]["spent"]}
    assert parts == {("compute", "gradient"), ("apply", "mean")}


def test_a_gang_that_has_not_joined_has_nothing_to_report() -> None:
    assert report(gang(joined=False)) is None


@pytest.mark.parametrize(
    ("bucket", "part"),
    [
        (0, ("compute", "load")),
        (1, ("compute", "gradient")),
        (2, ("apply", "mean")),
        (3, ("apply", "update_w")),
        (TRANSFER, ("transfer", "")),
        (SCHEDULER, ("scheduler", "")),
        ("gradient -> mean", ("wait", "gradient -> mean")),
        ("", ("wait", "")),
    ],
)
def test_a_bucket_is_a_part_of_a_step(bucket: Any, part: tuple[str, str]) -> None:
    assert part_of(bucket, PLAN) == part
