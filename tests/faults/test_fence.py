"""The fence of windows: each is run once, in order, by the incarnation that it is for."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from typing import Any

import dask
import pytest

from flowml.cluster_run import probe_here
from flowml.compiler.stages import compile_graph
from flowml.errors import StaleRunError
from flowml.events import Event, RunStarted, WindowDone
from flowml.protocol.roster import Roster, Seat
from flowml.run import Graph
from flowml.runtime import remote
from flowml.runtime.feeding import RESIDENT_BYTES, loads, local_feed
from flowml.runtime.gang import Gang
from flowml.runtime.outcome import Order
from flowml.runtime.runspec import RunSpec
from tests.faults.bed import WAIT_SECONDS, Bed, assert_serial, same_bytes, training


def gang_of(graph: Graph, replicas: int) -> Gang:
    """Return a gang whose ranks are all in this process."""
    plan, order = compile_graph(graph.logical, replicas, None), Order(100, None)
    seats = [Seat(rank, "here", "this host") for rank in range(replicas)]
    feeds, parts = {}, {}
    for operator in loads(plan):
        feeds[operator.name], parts[operator.name] = local_feed(operator, replicas, order.seed)
    roster = Roster.seat(uuid.uuid4().bytes, 0, seats)
    spec = RunSpec(plan, probe_here(plan, order), order, feeds, roster, {"here": ""})
    gang = Gang(spec, "here", None, RESIDENT_BYTES)
    for name, shares in parts.items():
        for rank, share in enumerate(shares):
            gang.load(name, rank, share)
    gang.join(None)
    return gang


@pytest.fixture
def gang() -> Iterator[Gang]:
    found = gang_of(training(), 3)
    yield found
    found.close()


def tables_after(steps: int, replicas: int) -> Any:
    return training().run(steps=steps, replicas=replicas, executor="serial").tables["w"]


def test_a_window_that_comes_twice_is_run_once(gang: Gang) -> None:
    first = gang.run_window(0, 0, 5, False)
    assert gang.run_window(0, 0, 5, False) is first
    second = gang.run_window(1, 5, 9, False)
    assert gang.run_window(1, 5, 9, False) is second
    assert second.stop == 9
    assert same_bytes(gang.tables()["w", 0], tables_after(9, 3))


@pytest.mark.parametrize("number", [0, 2, 3, 7])
def test_a_window_out_of_turn_is_refused(number: int, gang: Gang) -> None:
    gang.run_window(0, 0, 3, False)
    gang.run_window(1, 3, 6, False)
    if number == 2:
        assert gang.run_window(2, 6, 8, False).stop == 8
        return
    with pytest.raises(StaleRunError, match="window 2 must be the next one"):
        gang.run_window(number, 6, 8, False)
    assert gang.run_window(2, 6, 8, False).stop == 8
    assert same_bytes(gang.tables()["w", 0], tables_after(8, 3))


def test_no_window_of_a_run_that_was_aborted(gang: Gang) -> None:
    gang.run_window(0, 0, 3, False)
    gang.abort(StaleRunError("run", "is over"))
    with pytest.raises(StaleRunError, match="is over"):
        gang.run_window(1, 3, 6, False)
    assert set(gang.committed()) == {3}


def test_windows_after_a_stop_are_empty(gang: Gang) -> None:
    gang.request_stop()
    first = gang.run_window(0, 0, 5, False)
    assert (first.stop, first.records[0][1].stopped) == (1, True)
    assert gang.run_window(1, 5, 9, False).stop == 1
    assert same_bytes(gang.tables()["w", 0], tables_after(1, 3))


def test_tasks_of_another_time_are_refused_on_a_cluster(pair: Bed) -> None:
    """A run is held between two windows, and its workers are given tasks of all wrong kinds."""
    held, go_on, names = threading.Event(), threading.Event(), []

    def listen(event: Event) -> None:
        if isinstance(event, RunStarted):
            names.append(event.run_id)
        if isinstance(event, WindowDone) and not held.is_set():
            held.set()
            assert go_on.wait(WAIT_SECONDS)

    with dask.config.set({"flowml.windows-ahead": 1}):
        run = training().start(steps=40, replicas=2, snapshots=[8], on_event=listen)
        assert held.wait(WAIT_SECONDS)
    name, worker = names[0], pair.address_of(0)

    def send(function: Any, *inputs: Any) -> Any:
        return pair.client.submit(function, name, *inputs, workers=[worker], pure=False).result(
            WAIT_SECONDS
        )

    kept = send(remote.run_superstep_window, 0, 0, 0, 8, False)
    assert (kept.number, kept.stop) == (0, 8)
    for incarnation, number in [(1, 1), (0, 2), (0, 3)]:
        with pytest.raises(StaleRunError):
            send(remote.run_superstep_window, incarnation, number, 8, 16, False)
    go_on.set()
    assert run.wait(WAIT_SECONDS).steps == 40
    assert_serial(run, training(), 2)
    pair.assert_clean()
    for function, inputs in [
        (remote.run_superstep_window, (0, 1, 8, 16, False)),
        (remote.open_worker, ("auto",)),
        (remote.load_rank, ("batch", 0)),
    ]:
        with pytest.raises(StaleRunError):
            send(function, *inputs)
