"""Meetings of a group: nobody goes on before all of it have come; others are no matter."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowml.protocol.promise_specs import Missing
from flowml.runtime.group_meeting import NO_TEAM, GroupMeeting, counts_over, stop_word
from flowml.runtime.host_lock import HostLock

WAIT_SECONDS = 30.0


class Gone(Exception):
    """Who waits leaves."""


def meetings(groups: list[tuple[int, ...]]) -> dict[int, GroupMeeting]:
    """Return each replica's end; all in one memory, under one lock."""
    ranks = [rank for group in groups for rank in group]
    counts, lock = np.zeros(GroupMeeting.size(len(ranks)), np.int64), HostLock(None)
    return {rank: GroupMeeting(counts, rank, group, lock) for group in groups for rank in group}


def once(look: Callable[[], Missing | None]) -> float:
    """Look once, and leave if anybody is missing."""
    missing = look()
    if missing is not None:
        raise Gone(missing)
    return 0.0


def test_those_who_are_missing_are_named_until_the_last_has_come() -> None:
    found = meetings([(0, 2, 3), (1,)])
    with pytest.raises(Gone) as caught:
        found[0].meet(7, once)
    assert caught.value.args == (Missing("the group's meeting", (2, 3), 7, NO_TEAM),)
    with pytest.raises(Gone) as caught:
        found[3].meet(7, once)
    assert caught.value.args[0].members == (2,)
    found[2].meet(7, once)
    found[1].meet(0, once)  # alone in its group


def test_who_comes_twice_waits_for_the_second_time_of_the_others() -> None:
    found = meetings([(0, 1)])
    with pytest.raises(Gone):
        found[0].meet(0, once)
    found[1].meet(0, once)
    with pytest.raises(Gone):
        found[1].meet(1, once)
    found[0].meet(1, once)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([[(0, 1)], [(0, 1, 2), (3, 4)], [(2, 0), (1,), (3, 4, 5)]]), st.integers(1, 9)
)
def test_what_was_written_before_a_meeting_is_seen_after_it(
    groups: list[tuple[int, ...]], times: int
) -> None:
    """In threads: each adds to a sum of its group between two meetings, and all read the same."""
    found = meetings(groups)
    written = {rank: [0] * times for rank in found}
    seen: dict[int, list[int]] = {rank: [] for rank in found}
    errors: list[BaseException] = []
    changed = threading.Event()

    def wait(look: Callable[[], Missing | None]) -> float:
        while look() is not None:
            changed.wait(0.001)
            if errors:
                raise Gone
        return 0.0

    def replica(rank: int, group: tuple[int, ...]) -> None:
        try:
            for step in range(times):
                written[rank][step] = rank + step
                found[rank].meet(step, wait)
                seen[rank].append(sum(written[peer][step] for peer in group))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=replica, args=(r, g)) for g in groups for r in g]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_SECONDS)
    assert errors == []
    for group, rank in ((g, r) for g in groups for r in g):
        assert seen[rank] == [sum(group) + step * len(group) for step in range(times)]


def test_the_block_has_a_line_for_each_and_a_word_to_stop() -> None:
    block = np.zeros(1000, np.uint8)
    counts = counts_over(block, 3)
    assert counts.size == GroupMeeting.size(3) == 32
    ends = [GroupMeeting(counts, rank, (rank,), HostLock(None)) for rank in range(3)]
    for times, end in itertools.product(range(4), ends):
        end.meet(times, once)
    assert counts.tolist() == [4, *[0] * 7] * 3 + [0] * 8
    stop_word(counts)[0] = 2
    assert counts[24] == 2
    assert counts[:24].tolist() == [4, *[0] * 7] * 3
