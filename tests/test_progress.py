"""The progress line: seen on a terminal, silent elsewhere."""

import io

import pytest

from flowml.events import (
    Evaluated,
    Finished,
    Loaded,
    PageOpened,
    ReplicaDone,
    RunStarted,
    Warned,
    WindowDone,
    WorkerLost,
)
from flowml.progress import ProgressLine

STORY = (
    RunStarted("ab", "ssgd", "resident", 2, 1120),
    Loaded("batch", 4, 60_000),
    WindowDone(499, 0.1, 500, 0.3),
    ReplicaDone(0, "tcp://a", 499, 500, 0.3, 0.010, 0.0007, {0: 500}),
    Evaluated(500, "test", {"loss": 0.4, "score": 0.9}),
    WindowDone(1119, 0.1, 620, 0.081),
)


def told(events, show, close=True):
    stream = io.StringIO()
    with ProgressLine(show, stream) as line:
        for event in events:
            line(event)
    return stream.getvalue()


@pytest.mark.parametrize("show", [None, False])
def test_it_is_silent_off_a_terminal(show):
    assert told((*STORY, Warned("careful"), Finished("done", 1120, 0.3)), show) == ""


def test_it_shows_step_loss_rate_and_waiting():
    text = told(STORY, True)
    for words in (
        "batch: 60,000 rows",
        "step 500/1120",
        "loss 0.3",
        "5,000 step/s",
        "wait 7%",
        "test loss 0.4, score 0.9",
        "step 1120/1120",
    ):
        assert words in text


def test_one_line_of_summary_stays():
    text = told((*STORY, Finished("done", 1120, 0.4)), True)
    last = text.rstrip("\n").rpartition("\x1b[2K")[2]
    assert last == (
        "ssgd: done after 1,120 steps in 0.4 s (2,800 step/s)  loss 0.081  test loss 0.4, score 0.9"
    )


@pytest.mark.parametrize(
    ("status", "words"), [("until", "ended by the graph"), ("failed", "failed after 3 steps")]
)
def test_the_summary_says_how_it_ended(status, words):
    assert words in told((Finished(status, 3, 0.0),), True)


def test_warnings_and_losses_of_workers_are_shown():
    text = told((STORY[0], Warned("the edge [w] is slow"), WorkerLost("tcp://a", 7)), True)
    assert "warning: the edge [w] is slow" in text
    assert "lost worker tcp://a after step 7" in text


def test_the_page_and_the_latest_read_of_the_last_window_are_shown():
    late = ReplicaDone(1, "tcp://b", 499, 500, 0.3, 0.010, 0.0007, {0: 400, 2: 100})
    text = told((PageOpened("http://h:1/flowml"), STORY[0], late, STORY[2]), True)
    assert "dashboard http://h:1/flowml" in text
    assert "staleness 2" in text


def test_a_run_without_a_known_end_counts_steps():
    text = told((RunStarted("ab", "g", "serial", 1), WindowDone(9, 0.1, 10)), True)
    assert "step 10 " in text


def test_events_before_the_start_do_no_harm():
    assert told((WindowDone(9, 0.1, 10),), True) == ""


def test_the_cursor_comes_back_when_a_run_fails():
    stream = io.StringIO()

    def fail():
        with ProgressLine(True, stream) as line:
            line(STORY[0])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert stream.getvalue().rpartition("\x1b[?25")[2].startswith("h")
