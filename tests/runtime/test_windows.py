"""When another window of steps is submitted."""

from dataclasses import dataclass

from flowml.runtime.windows import decisive, longer, wants_window


@dataclass
class Task:
    status: str


def windows(*statuses: str) -> list:
    """Return windows of two workers, from a letter a worker: d for done, p for pending."""
    named = {"d": "finished", "p": "pending"}
    return [(n, n, n + 1, [Task(named[s]) for s in pair]) for n, pair in enumerate(statuses)]


def test_replicas_that_meet_have_so_many_windows_before_the_slowest():
    for pending, wanted in ((["pp"], True), (["pp", "pp"], False), (["dp", "dp"], False)):
        assert wants_window(windows(*pending), 2, own_pace=False) is wanted


def test_at_its_own_pace_the_fastest_has_so_many_before_it():
    for pending, wanted in (
        (["pp"], True),
        (["pp", "pp"], False),
        (["dp", "pp"], True),
        (["dp", "dp", "pp"], True),
        (["dp", "pp", "pp"], False),
    ):
        assert wants_window(windows(*pending), 2, own_pace=True) is wanted


def test_it_is_the_tasks_of_one_window_that_decide():
    pending = windows("dp", "pp", "pp")
    assert decisive(pending, 2) is pending[1][3]
    assert decisive(pending[:1], 2) == []


def test_windows_grow_while_somebody_is_far_behind():
    assert [longer(8, pending, 2) for pending in (0, 1, 2, 5)] == [8, 8, 8, 32]
    assert longer(0, 0, 2) == 1
