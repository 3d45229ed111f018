"""A meter counts what a rank is in, from entry to entry, for as many entries as it is allowed."""

from __future__ import annotations

import numpy as np
import pytest

from flowml.runtime import meter as module
from flowml.runtime.board import Board
from flowml.runtime.meter import SCHEDULER, WAITING, Meter


class Clock:
    """A monotonic clock under control, in nanoseconds."""

    def __init__(self) -> None:
        self.now = 10**15

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Give the clock that meters read."""
    clock = Clock()
    monkeypatch.setattr(module, "monotonic_ns", clock)
    return clock


def walk(meter: Meter, clock: Clock, *ways: tuple[int, float]) -> None:
    """Enter each operator and stay so many seconds."""
    for index, seconds in ways:
        if meter.counting:
            meter.count(index)
        clock.advance(seconds)


def test_time_is_counted_from_entry_to_entry(clock: Clock) -> None:
    meter = Meter()
    meter.wait_of = lambda left: f"behind {left}"
    meter.allow(100)
    walk(meter, clock, (0, 1.0), (1, 2.0), (WAITING, 4.0), (0, 8.0), (1, 16.0))
    assert meter.seconds() == {0: 9.0, 1: 18.0, "behind 1": 4.0}


def test_what_goes_on_now_is_counted_too(clock: Clock) -> None:
    meter = Meter()
    meter.allow(100)
    walk(meter, clock, (3, 5.0))
    assert meter.seconds() == {3: 5.0}
    assert meter.bucket == 3


def test_it_does_not_count_unless_it_is_allowed(clock: Clock) -> None:
    meter = Meter()
    walk(meter, clock, (0, 1.0), (1, 1.0))
    assert (meter.counting, meter.seconds(), meter.bucket) == ([], {}, "")


def test_it_stops_after_so_many_entries_and_the_gap_is_nobodys(clock: Clock) -> None:
    meter = Meter()
    meter.allow(2)
    walk(meter, clock, (0, 1.0), (1, 1.0), (2, 50.0), (0, 50.0))
    assert meter.seconds() == {0: 1.0, 1: 1.0}
    assert meter.counting == []
    meter.allow(1)
    walk(meter, clock, (0, 1.0))
    assert meter.seconds() == {0: 2.0, 1: 1.0}


def test_a_smaller_allowance_takes_nothing_away(clock: Clock) -> None:
    meter = Meter()
    meter.allow(3)
    meter.allow(1)
    walk(meter, clock, (0, 1.0), (1, 1.0), (2, 1.0), (3, 1.0))
    assert meter.seconds() == {0: 1.0, 1: 1.0, 2: 1.0}


def test_between_windows_it_stands(clock: Clock) -> None:
    meter = Meter()
    meter.stand(SCHEDULER)  # it does not count yet
    meter.allow(100)
    walk(meter, clock, (0, 1.0), (WAITING, 1.0))
    meter.stand(SCHEDULER)
    clock.advance(3.0)
    walk(meter, clock, (0, 1.0))
    assert meter.seconds() == {0: 2.0, "barrier": 1.0, SCHEDULER: 3.0}


def test_a_board_lets_the_meter_of_the_writer_count() -> None:
    board = Board(np.zeros(Board.nbytes(2, 1), np.uint8), 2, 1)
    pen = board.pen(1)
    pen(0, 5)
    board.meters[1].allow(100)
    pen(1, 5)
    board.enter(1, 2, 5)  # as the center of a loose run does, in the name of the replica
    pen(WAITING, 6)
    assert set(board.meters[1].seconds()) == {1, 2, "barrier"}
    assert board.meters[0].seconds() == {}
    assert board.read(1)[:3] == (1, WAITING, 6)
