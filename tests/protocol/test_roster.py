"""Rosters: domains from host keys, splitting, fencing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowml.errors import PlanError, StaleRunError
from flowml.protocol.roster import Roster, Seat

RUN = bytes(range(16))


def roster(*places: str) -> Roster:
    """Return a roster from ``worker@host`` in order of rank."""
    seats = [Seat(rank, *place.split("@")) for rank, place in enumerate(places)]
    return Roster.seat(RUN, 2, reversed(seats))


def test_domains_follow_host_keys_in_order_of_lowest_rank() -> None:
    found = roster("b@x", "a@y", "c@x", "b@x", "d@y")
    assert found.domains == (("b", "c"), ("a", "d"))
    assert found.workers == ("b", "a", "c", "d")
    assert found.ranks("b") == (0, 3)
    assert found.ranks("nobody") == ()
    assert found.leader("c") == "b"
    assert [seat.rank for seat in found.seats] == [0, 1, 2, 3, 4]


def test_split_keeps_all_but_one_domain() -> None:
    found = roster("b@x", "a@y", "c@x", "d@y")
    cut = found.split(("b", "c"))
    assert cut.domains == (("b",), ("a", "d"), ("c",))
    assert (cut.seats, cut.incarnation) == (found.seats, found.incarnation)
    with pytest.raises(PlanError, match="must be one of the domains"):
        cut.split(("b", "c"))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=12))
def test_domains_partition_the_workers(places: list[tuple[int, int]]) -> None:
    keys: dict[int, int] = {}
    seats = [
        Seat(rank, f"w{worker}", f"h{keys.setdefault(worker, host)}")
        for rank, (worker, host) in enumerate(places)
    ]
    found = Roster.seat(RUN, 0, seats)
    assert sorted(w for d in found.domains for w in d) == sorted(found.workers)
    for worker in found.workers:
        assert min(found.ranks(found.leader(worker))) <= min(found.ranks(worker))
    alone = found
    for domain in found.domains:
        alone = alone.split(domain)
    assert alone.domains == tuple((worker,) for worker in found.workers)


@pytest.mark.parametrize(
    ("run", "incarnation", "words", "newer"),
    [
        (RUN, 1, "must belong to incarnation 2 of run 00010203, got incarnation 1", False),
        (RUN, 3, "got incarnation 3. The receiver is out of date", True),
        (bytes(16), 2, r"run 00010203 .* got run 00000000 \(incarnation 2\)", False),
    ],
)
def test_fence_names_both_sides(run: bytes, incarnation: int, words: str, newer: bool) -> None:
    found = roster("a@x")
    found.fence(RUN, 2)
    with pytest.raises(StaleRunError, match=words) as stale:
        found.fence(run, incarnation)
    assert stale.value.fields["newer"] is newer
    assert stale.value.fields["got_incarnation"] == incarnation


@pytest.mark.parametrize(
    ("seats", "words"),
    [
        ([], "without gaps"),
        ([Seat(1, "a", "x")], "without gaps"),
        ([Seat(0, "a", "x"), Seat(0, "b", "x")], "without gaps"),
        ([Seat(0, "a", "x"), Seat(1, "a", "y")], "one host key, got 'x' and 'y'"),
    ],
)
def test_bad_seats_are_refused(seats: list[Seat], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        Roster.seat(RUN, 0, seats)


def test_a_run_has_sixteen_bytes() -> None:
    with pytest.raises(PlanError, match="run must be 16 bytes, got 1"):
        Roster.seat(b"r", 0, [Seat(0, "a", "x")])


def test_a_stranger_has_no_domain() -> None:
    with pytest.raises(PlanError, match="must have a seat, got z"):
        roster("a@x").domain("z")
