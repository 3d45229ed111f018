"""The link among the processes of one host: meeting, barrier, failures, nothing left behind."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from flowml.errors import PlanError, StaleRunError, StalledError
from flowml.protocol.arrival import Arrival
from flowml.protocol.failures import Aborted, PeerLost, ProtocolError
from flowml.protocol.superstep import SuperstepBarrier, Verdict
from flowml.runtime import cores, host_hello, host_meeting
from flowml.runtime.host_hello import Hello, HostListener, HostUnreachable, peer_user, reach
from flowml.runtime.host_link import HostLink
from flowml.runtime.segment import Segment
from tests.runtime.host_peers import PATIENCE, RUN, crew, join_all, linked, start_server

LISTENING = {
    "abstract seqpacket": {},
    "file stream": {"kind": socket.SOCK_STREAM, "abstract": False},
}


pytestmark = pytest.mark.leaks


@pytest.fixture(scope="module", autouse=True)
def _server_of_processes() -> None:
    """Start what multiprocessing keeps for good, so that it does not count as left behind."""
    start_server()


def in_thread(link: HostLink, stop: bool = False, flip: int = 0) -> tuple[threading.Thread, list]:
    """Enter a barrier in a thread; return it once blocked, and where its outcome will be."""
    outcome: list = []
    blocked = threading.Event()
    link.on_silence = lambda missing, waited: blocked.set()

    def run() -> None:
        try:
            outcome.append(link.barrier(stop, flip))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert blocked.wait(PATIENCE)
    return thread, outcome


def finished(thread: threading.Thread, outcome: list) -> object:
    """Return the outcome of a barrier in a thread."""
    thread.join(PATIENCE)
    assert len(outcome) == 1
    return outcome[0]


@pytest.mark.parametrize("listening", LISTENING)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_all_members_get_the_same_verdicts(count: int, listening: str) -> None:
    with linked(count, **LISTENING[listening]) as links, ThreadPoolExecutor(count) as pool:

        def play(link: HostLink) -> list[Verdict]:
            return [link.barrier(n == 40 + link.me, n // 2) for n in range(45)]

        verdicts = list(pool.map(play, links))
    expected = [Verdict(n, 40 <= n < 40 + count, n // 2) for n in range(45)]
    assert verdicts == [expected] * count


def test_who_shares_a_core_looks_for_a_shorter_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: 2)
    spins = []
    for count in (1, 2, 3):
        with linked(count) as links:
            spins += [{link._spin_ns for link in links}]
    assert spins == [{1_000_000}, {1_000_000}, {100_000}]


def test_members_share_one_zeroed_segment() -> None:
    with linked(3) as links:
        views = [link.segment.view(64, (5,), np.float32) for link in links]
        views[1][2] = 7
        assert [list(view) for view in views] == [[0, 0, 7, 0, 0]] * 3


def test_a_socket_file_is_gone_once_all_have_met() -> None:
    listeners = [HostListener(abstract=False) for _ in range(2)]
    folders = [Path(listener.address).parent for listener in listeners]
    assert [folder.stat().st_mode & 0o777 for folder in folders] == [0o700] * 2
    for closing in (*join_all(listeners), *listeners):
        assert not any(folder.exists() for folder in folders)
        closing.close()


def test_crew_of_processes_computes_what_one_would() -> None:
    count, steps = 3, 60
    with crew(count) as hands:
        for me in range(count):
            hands.tell(me, ("owner computes", steps))
        found = [hands.hear(me) for me in range(count)]
    alone = 0.0
    for _ in range(steps):
        alone = sum(alone + me for me in range(count)) / count
    assert found == [[alone] * count] * count


def test_crew_member_killed_is_noticed_at_once() -> None:
    with crew(2) as hands:
        hands.tell(0, ("barrier", False, 0))
        assert hands.hear(0)[:2] == ("silence", (1,))  # now it is blocked
        os.kill(hands.processes[1].pid, signal.SIGKILL)
        lost = hands.hear(0)
        assert isinstance(lost, PeerLost)
        assert lost.member == 1


def test_crew_member_killed_is_the_one_that_all_survivors_name() -> None:
    with crew(4) as hands:
        for me in (0, 1, 3):
            hands.tell(me, ("barrier", False, 0))
        for me in (0, 1, 3):
            assert hands.hear(me)[:2] == ("silence", (2,))
        os.kill(hands.processes[2].pid, signal.SIGKILL)
        for me in (0, 1, 3):
            lost = hands.hear(me)
            assert isinstance(lost, PeerLost)
            assert lost.member == 2
            hands.tell(me, ("leave",))


def test_crew_member_stopped_is_reported_until_it_goes_on() -> None:
    with crew(2) as hands:
        os.kill(hands.processes[1].pid, signal.SIGSTOP)
        hands.tell(1, ("barrier", True, 0))
        hands.tell(0, ("barrier", False, 0))
        reports = [hands.hear(0) for _ in range(3)]
        assert [report[:2] for report in reports] == [("silence", (1,))] * 3
        assert reports[0][2] < reports[1][2] < reports[2][2]
        os.kill(hands.processes[1].pid, signal.SIGCONT)
        while (reply := hands.hear(0))[0] == "silence":
            assert reply[1] == (1,)
        assert reply == Verdict(0, True, 0)


def test_what_on_silence_raises_ends_the_wait() -> None:
    def give_up(missing: tuple[int, ...], waited: float) -> None:
        raise StalledError("edge w -> gradient", f"members {missing} must arrive")

    with linked(2) as links:
        links[0].on_silence = give_up
        with pytest.raises(StalledError, match=r"members \(1,\) must arrive"):
            links[0].barrier()


def test_an_abort_reaches_all_and_names_the_first() -> None:
    with linked(3) as links:
        waiting = [in_thread(link) for link in links[1:]]
        links[0].abort("operator 'gradient' raised")
        for thread, outcome in waiting:
            error = finished(thread, outcome)
            assert isinstance(error, Aborted)
            assert error.member == 0
        with pytest.raises(Aborted, match="operator 'gradient' raised"):
            links[0].barrier()


def test_who_leaves_because_of_another_does_not_take_the_blame() -> None:
    with linked(3) as links:
        links[0].abort()
        with pytest.raises(Aborted):
            links[1].barrier()
        links[1].close()
        links[0].close()
        with pytest.raises(Aborted) as aborted:
            links[2].barrier()
        assert aborted.value.member == 0


def test_an_abort_is_heard_although_the_connection_was_reset() -> None:
    with linked(2) as links:
        waiting = in_thread(links[0])  # its frame is never read, so closing resets the connection
        links[1].abort()
        links[1].close()
        error = finished(*waiting)
        assert isinstance(error, Aborted)
        assert error.member == 1


def test_leaving_after_the_last_superstep_harms_nobody() -> None:
    with linked(3) as links:
        waiting = in_thread(links[0], flip=5)
        early = in_thread(links[1], flip=5)
        assert links[2].barrier(True, 5) == Verdict(0, True, 5)
        links[2].close()
        assert finished(*early) == Verdict(0, True, 5)
        links[1].close()
        assert finished(*waiting) == Verdict(0, True, 5)
        with pytest.raises(PeerLost):
            links[0].barrier()


def test_who_arrived_and_left_is_not_missed_before_the_next_superstep() -> None:
    with linked(3) as links:
        waiting = in_thread(links[0])
        early = in_thread(links[1])
        links[1].wake(KeyboardInterrupt())
        assert isinstance(finished(*early), KeyboardInterrupt)
        links[1].close()
        assert links[2].barrier() == Verdict(0, False, 0)
        assert finished(*waiting) == Verdict(0, False, 0)
        with pytest.raises(PeerLost) as lost:
            links[0].barrier()
        assert lost.value.member == 1


def test_wake_ends_a_blocked_barrier_and_every_later_one() -> None:
    with linked(2) as links:
        waiting = in_thread(links[0])
        error = StaleRunError("run", "incarnation 3 is over")
        links[0].wake(error)
        links[0].wake(ValueError("too late"))
        assert finished(*waiting) is error
        with pytest.raises(StaleRunError, match="is over"):
            links[0].barrier()


def test_close_wakes_a_blocked_barrier_and_can_be_repeated() -> None:
    with linked(2) as links:
        waiting = in_thread(links[0])
        links[0].close()
        links[0].close()
        assert isinstance(finished(*waiting), Aborted)
        links[0].wake(ValueError())
        links[0].abort()
        with pytest.raises(Aborted, match="has been closed"):
            links[0].barrier()
        assert links[1].barrier() == Verdict(0, False, 0)  # it had arrived in this one
        with pytest.raises(PeerLost):
            links[1].barrier()


def test_close_from_on_silence_ends_the_wait() -> None:
    with linked(2) as links:
        links[0].on_silence = lambda missing, waited: links[0].close()
        with pytest.raises(Aborted, match="has been closed"):
            links[0].barrier()


def test_flips_that_differ_are_refused_at_both_ends() -> None:
    with linked(2) as links:
        waiting = in_thread(links[0], flip=1)
        with pytest.raises(ProtocolError, match="must commit the same step"):
            links[1].barrier(False, 2)
        assert isinstance(finished(*waiting), ProtocolError)


def bare_link(kind: int) -> tuple[HostLink, socket.socket]:
    """Return member 0 of two and the other end of its connection."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, kind)
    state = SuperstepBarrier(0, (0, 1), RUN, 3)
    return HostLink(state, {1: mine}, Segment.local(64)), theirs


def test_frames_in_parts_are_put_together() -> None:
    link, theirs = bare_link(socket.SOCK_STREAM)
    frames = Arrival(RUN, 3, 0, 1).encode() + Arrival(RUN, 3, 1, 1, stop=True).encode()
    with theirs:
        theirs.sendall(frames[:10])
        waiting = in_thread(link)
        theirs.sendall(frames[10:100])
        assert finished(*waiting) == Verdict(0, False, 0)
        waiting = in_thread(link)
        theirs.sendall(frames[100:])
        assert finished(*waiting) == Verdict(1, True, 0)
    link.close()


def test_a_damaged_frame_is_refused() -> None:
    link, theirs = bare_link(socket.SOCK_SEQPACKET)
    frame = bytearray(Arrival(RUN, 3, 0, 1).encode())
    frame[40] ^= 1
    with theirs:
        theirs.send(frame)
        with pytest.raises(ProtocolError, match="CRC"):
            link.barrier()
    link.close()


def meet(
    listener: HostListener, me: int, members: dict[int, str], **changes: object
) -> HostLink | Exception:
    """Join with one thing changed; return the link or the error."""
    run, incarnation = changes.get("run", RUN), changes.get("incarnation", 3)
    nbytes, seconds = changes.get("nbytes", 4096), changes.get("seconds", PATIENCE)
    try:
        return HostLink.join(listener, me, members, run, incarnation, nbytes, seconds)  # type: ignore[arg-type]
    except Exception as error:
        return error


@pytest.fixture
def pair() -> Iterator[tuple[HostListener, HostListener, dict[int, str]]]:
    """Give two listeners and their addresses."""
    first, second = HostListener(), HostListener()
    yield first, second, {0: first.address, 1: second.address}
    first.close()
    second.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"incarnation": 2}, "incarnation 2 of run .* got incarnation 3"),
        ({"run": bytes(16)}, "run 00000000 .* got run 00010203"),
        ({"nbytes": 64}, "all members must want 64 bytes, got 4096 of 0"),
    ],
)
def test_a_wrong_hello_is_refused_and_the_right_one_still_welcome(
    changes: dict[str, object], words: str, pair: tuple
) -> None:
    first, second, members = pair
    with ThreadPoolExecutor(1) as pool:
        accepting = pool.submit(meet, first, 0, members)
        refused = meet(second, 1, members, **changes)
        assert isinstance(refused, StaleRunError | ProtocolError)
        with pytest.raises(type(refused), match=words):
            raise refused
        links = [meet(second, 1, members), accepting.result(PATIENCE)]
    for link in links:
        assert isinstance(link, HostLink)
        link.close()


def test_who_meets_a_newer_incarnation_learns_that_it_is_stale(pair: tuple) -> None:
    first, second, members = pair
    with ThreadPoolExecutor(1) as pool:
        accepting = pool.submit(meet, first, 0, members)
        newer = meet(second, 1, members, incarnation=4)
        stale = accepting.result(PATIENCE)
    assert isinstance(stale, StaleRunError)
    assert stale.fields["newer"]
    assert isinstance(newer, StaleRunError)
    assert not newer.fields["newer"]


@pytest.mark.parametrize(
    "noise", [b"", b"x" * 64, b"GET / HTTP/1.1\r\n", Arrival(RUN, 3, 0, 1).encode()]
)
def test_noise_is_refused_and_the_right_member_still_welcome(noise: bytes, pair: tuple) -> None:
    first, second, members = pair
    with reach(first.address, 0, first.kind, PATIENCE) as stranger:
        if noise:
            stranger.send(noise)
        else:
            stranger.shutdown(socket.SHUT_WR)
        with ThreadPoolExecutor(1) as pool:
            accepting = pool.submit(meet, first, 0, members)
            links = [meet(second, 1, members), accepting.result(PATIENCE)]
    for link in links:
        assert isinstance(link, HostLink)
        link.close()


def test_a_second_claim_to_a_member_is_refused(pair: tuple) -> None:
    first, second, members = pair
    third = HostListener()
    members = {**members, 2: third.address}
    with ThreadPoolExecutor(2) as pool:
        joining = [pool.submit(meet, first, 0, members), pool.submit(meet, second, 1, members)]
        with reach(first.address, 0, first.kind, PATIENCE) as twin:
            twin.send(Hello(RUN, 3, 4096, 7).encode())
            assert Hello.decode(twin.recv(64)).member == 0
            assert twin.recv(64) == b""
        links = [meet(third, 2, members), *(future.result(PATIENCE) for future in joining)]
    third.close()
    for link in links:
        assert isinstance(link, HostLink)
        link.close()


@pytest.mark.parametrize("me", [0, 1])
def test_a_deadline_names_who_is_awaited(me: int, pair: tuple) -> None:
    listener, members = pair[me], pair[2]
    stalled = meet(listener, me, members, seconds=0.2)
    assert isinstance(stalled, StalledError)
    assert stalled.waiting_for == f"member {1 - me}"
    assert stalled.since_seconds >= 0.2
    assert f"must meet member {1 - me} within 0.2 s" in str(stalled)


def test_nobody_at_the_address_is_unreachable(pair: tuple) -> None:
    first, second, members = pair
    first.close()
    found = meet(second, 1, members)
    assert isinstance(found, HostUnreachable)
    assert found.member == 0


def test_a_member_that_leaves_early_is_lost(pair: tuple) -> None:
    first, second, members = pair
    with ThreadPoolExecutor(1) as pool:
        joining = pool.submit(meet, second, 1, members)
        first.accept(PATIENCE).close()
        lost = joining.result(PATIENCE)
    assert isinstance(lost, PeerLost)
    assert lost.member == 0


def test_another_user_is_refused_at_both_ends(pair: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, members = pair
    users = iter([os.getuid() + 1, os.getuid()])
    monkeypatch.setattr(host_hello, "peer_user", lambda connection: next(users))
    found = meet(second, 1, members)
    assert isinstance(found, HostUnreachable)
    assert f"must run as user {os.getuid()}, got user {os.getuid() + 1}" in str(found)
    # Our end, then the listener's: of the connection that we gave up, and of this one.
    users = iter([os.getuid(), os.getuid() + 1, os.getuid() + 1])
    with reach(first.address, 0, first.kind, PATIENCE) as stranger:
        with pytest.raises(TimeoutError):
            first.accept(0.1)
        assert stranger.recv(64) == b""


def test_the_kernel_knows_the_user_at_the_other_end(pair: tuple) -> None:
    with reach(pair[0].address, 0, pair[0].kind, PATIENCE) as mine, pair[0].accept(1) as theirs:
        assert peer_user(mine) == peer_user(theirs) == os.getuid()


def test_a_segment_that_cannot_be_made_is_told_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(nbytes: int, reserved: int | None) -> Segment:
        raise PlanError("shared segment", "needs more memory")

    monkeypatch.setattr(host_meeting.Segment, "create", refuse)
    listeners = [HostListener() for _ in range(3)]
    found = join_all(listeners)
    for listener in listeners:
        listener.close()
    assert isinstance(found[0], PlanError)
    assert [(type(error), error.member) for error in found[1:]] == [(Aborted, 0)] * 2


@pytest.mark.parametrize("at", range(60))
def test_every_flipped_byte_of_a_hello_is_refused(at: int) -> None:
    frame = bytearray(Hello(RUN, 3, 4096, 1).encode())
    frame[at] ^= 0x10
    with pytest.raises(ProtocolError):
        Hello.decode(bytes(frame))
