"""The barrier among the rank threads of one process."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from flowml.errors import PlanError, StalledError
from flowml.protocol.failures import ProtocolError
from flowml.protocol.superstep import Verdict
from flowml.runtime.local_barrier import RankBarrier

PATIENCE = 60.0


def blocked(barrier: RankBarrier, pool: ThreadPoolExecutor, party: int) -> Future[Verdict]:
    """Let a party wait in a thread; return once it does."""
    seen = threading.Event()
    barrier.on_silence = lambda missing, waited: seen.set()
    future = pool.submit(barrier.wait, party)
    assert seen.wait(PATIENCE)
    return future


@pytest.mark.parametrize("parties", [1, 2, 3, 5])
def test_all_threads_get_the_same_verdicts(parties: int) -> None:
    barrier = RankBarrier(parties)
    entered = [-1] * parties

    def play(party: int) -> list[Verdict]:
        verdicts = []
        for n in range(300):
            entered[party] = n
            verdicts.append(barrier.wait(party, n == 200 + party, n // 2))
            assert min(entered) >= n
        return verdicts

    with ThreadPoolExecutor(parties) as pool:
        found = list(pool.map(play, range(parties)))
    assert found == [[Verdict(n, 200 <= n < 200 + parties, n // 2) for n in range(300)]] * parties


@pytest.mark.parametrize("parties", [1, 3])
def test_one_thread_crosses_for_all(parties: int) -> None:
    calls = []

    def across(stop: bool, flip: int) -> Verdict:
        calls.append((stop, flip))
        return Verdict(len(calls) + 10, True, flip)

    barrier = RankBarrier(parties, across)
    with ThreadPoolExecutor(parties) as pool:
        found = list(pool.map(lambda party: barrier.wait(party, party == 0, 4), range(parties)))
    assert calls == [(True, 4)]
    assert found == [Verdict(11, True, 4)] * parties


def test_an_error_across_is_raised_in_every_thread() -> None:
    error = StalledError("host link", "must arrive")

    def across(stop: bool, flip: int) -> Verdict:
        raise error

    barrier = RankBarrier(3, across)
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(barrier.wait, party) for party in range(3)]
        assert [future.exception(PATIENCE) for future in futures] == [error] * 3
    with pytest.raises(StalledError):
        barrier.wait(0)


def test_abort_wakes_who_waits_and_refuses_who_comes() -> None:
    barrier = RankBarrier(3)
    error = RuntimeError("planned")
    with ThreadPoolExecutor(2) as pool:
        futures = [blocked(barrier, pool, party) for party in (0, 2)]
        barrier.abort(error)
        barrier.abort(ValueError("too late"))
        assert [future.exception(PATIENCE) for future in futures] == [error] * 2
    with pytest.raises(RuntimeError, match="planned"):
        barrier.wait(1)


def test_abort_while_one_thread_crosses_reaches_all() -> None:
    inside, go_on = threading.Event(), threading.Event()

    def across(stop: bool, flip: int) -> Verdict:
        inside.set()
        assert go_on.wait(PATIENCE)
        return Verdict(0, stop, flip)

    barrier = RankBarrier(2, across)
    error = RuntimeError("planned")
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(barrier.wait, party) for party in range(2)]
        assert inside.wait(PATIENCE)
        barrier.abort(error)
        go_on.set()
        assert [future.exception(PATIENCE) for future in futures] == [error] * 2


def test_abort_of_a_single_party() -> None:
    barrier = RankBarrier(1)
    barrier.abort(RuntimeError("planned"))
    with pytest.raises(RuntimeError, match="planned"):
        barrier.wait(0)


def test_silence_names_the_missing_parties_and_may_raise() -> None:
    barrier = RankBarrier(3)
    seen = []

    def give_up(missing: tuple[int, ...], waited: float) -> None:
        seen.append(missing)
        if len(seen) == 3:
            raise StalledError("rank 1", "must arrive")

    barrier.on_silence = give_up
    with ThreadPoolExecutor(1) as pool:
        stalled = pool.submit(barrier.wait, 1).exception(PATIENCE)
    assert isinstance(stalled, StalledError)
    assert seen == [(0, 2)] * 3
    with pytest.raises(StalledError):
        barrier.wait(0)


def test_no_silence_is_reported_while_one_thread_crosses() -> None:
    go_on = threading.Event()
    seen = []

    def across(stop: bool, flip: int) -> Verdict:
        assert not go_on.wait(0.6)  # longer than two slices
        return Verdict(0, stop, flip)

    barrier = RankBarrier(2, across)
    barrier.on_silence = lambda missing, waited: seen.append(missing)
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(barrier.wait, party) for party in range(2)]
        assert [future.result(PATIENCE) for future in futures] == [Verdict(0, False, 0)] * 2
    assert () not in seen


def test_faults_of_flowml_are_named_and_end_it() -> None:
    barrier = RankBarrier(2)
    with ThreadPoolExecutor(1) as pool:
        waiting = blocked(barrier, pool, 0)
        with pytest.raises(ProtocolError, match="all parties must commit step 0, got 3 from 1"):
            barrier.wait(1, False, 3)
        assert isinstance(waiting.exception(PATIENCE), ProtocolError)
    barrier = RankBarrier(2)
    with ThreadPoolExecutor(1) as pool:
        waiting = blocked(barrier, pool, 0)
        with pytest.raises(ProtocolError, match="party 0 must wait once"):
            barrier.wait(0)
        assert isinstance(waiting.exception(PATIENCE), ProtocolError)


def test_at_least_one_party() -> None:
    with pytest.raises(PlanError, match="at least one party, got 0"):
        RankBarrier(0)
