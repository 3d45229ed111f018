"""The board: what is written is read, in every process, and ages on the monotonic clock."""

from __future__ import annotations

import numpy as np
import pytest

from flowml.errors import PlanError
from flowml.runtime import board as module
from flowml.runtime.board import Board, Report
from flowml.runtime.segment import Segment


class Clock:
    """A monotonic clock under control, in nanoseconds."""

    def __init__(self) -> None:
        self.now = 10**15

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += int(seconds * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Give the clock that boards read."""
    clock = Clock()
    monkeypatch.setattr(module, "monotonic_ns", clock)
    return clock


def board(ranks: int = 3, members: int = 2) -> Board:
    """Return a board on fresh memory."""
    nbytes = Board.nbytes(ranks, members)
    return Board(Segment.local(nbytes).view(0, (nbytes,), np.uint8), ranks, members)


@pytest.mark.parametrize("with_pen", [False, True])
def test_a_report_names_operator_step_and_age(with_pen: bool, clock: Clock) -> None:
    mine = board()
    step = 2**47 - 1
    if with_pen:
        mine.pen(1)(65535, step)
    else:
        mine.enter(1, 65535, step)
    clock.advance(2.5)
    assert mine.read(1) == Report(1, 65535, step, 2.5)
    assert mine.read(0) == mine.read(2)._replace(rank=0) == Report(0, 0, 0, 0.0)


def test_a_rank_whose_run_is_over_leaves_but_ends_a_step_that_it_can() -> None:
    mine, gone = board(), [PlanError("run", "is over")]
    enter = mine.pen(1, gone, finishing={4})
    enter(4, 7)
    assert mine.read(1)[:3] == (1, 4, 7)
    with pytest.raises(PlanError, match="is over"):
        enter(3, 8)
    assert mine.read(1)[:3] == (1, 4, 7)


def test_silence_counts_from_the_last_beat_or_from_opening(clock: Clock) -> None:
    mine = board()
    clock.advance(3)
    mine.beat(1)
    clock.advance(1)
    assert (mine.silence(0), mine.silence(1)) == (4.0, 1.0)


def test_pausing_is_seen_and_ends(clock: Clock) -> None:
    mine = board()
    mine.pause(1, 82)
    assert (mine.paused(0), mine.paused(1)) == (0, 82)
    mine.pause(1, 0)
    assert mine.paused(1) == 0


def test_two_processes_see_one_board(clock: Clock) -> None:
    nbytes = Board.nbytes(2, 2)
    segment = Segment.create(nbytes + 64)
    ours, theirs = (Board(segment.view(64, (nbytes,), np.uint8), 2, 2) for _ in range(2))
    ours.enter(1, 4, 17)
    ours.beat(1)
    clock.advance(0.5)
    assert theirs.read(1) == Report(1, 4, 17, 0.5)
    assert theirs.silence(1) == 0.5
    segment.close()


def test_lines_do_not_overlap() -> None:
    mine = board(4, 3)
    for rank in range(4):
        mine.enter(rank, rank + 1, 10 * rank)
    for member in range(3):
        mine.pause(member, member + 50)
        mine.beat(member)
    assert [mine.read(rank)[1:3] for rank in range(4)] == [(r + 1, 10 * r) for r in range(4)]
    assert [mine.paused(member) for member in range(3)] == [50, 51, 52]


def test_memory_of_another_size_is_refused() -> None:
    with pytest.raises(PlanError, match="board: needs 320 bytes, got 64"):
        Board(np.zeros(64, np.uint8), 3, 2)
