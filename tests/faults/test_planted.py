"""Faults planted in the runtime: the comparison with the serial executor must catch each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flowml.cluster_run import probe_here
from flowml.compiler.stages import compile_graph
from flowml.plan import Plan
from flowml.reductions import Tree
from flowml.run import Graph
from flowml.runtime.feeding import loads, local_feed, open_stream
from flowml.runtime.gang import Gang, Window
from flowml.runtime.outcome import Order
from flowml.runtime.program import Programs
from flowml.runtime.rank import Rank, start_rules
from flowml.runtime.threads import run_thread_window, thread_ranks
from tests.faults.bed import same_bytes, training
from tests.faults.test_fence import gang_of

REPLICAS, STEPS, WINDOW = 5, 9, 3


def serial(graph: Graph) -> Any:
    return graph.run(steps=STEPS, replicas=REPLICAS, executor="serial").tables["w"]


def ranks_of(graph: Graph) -> list[Rank]:
    plan, order = compile_graph(graph.logical, REPLICAS, None), Order(STEPS, None)
    streams: list[dict[str, Any]] = [{} for _ in range(REPLICAS)]
    for operator in loads(plan):
        feed, parts = local_feed(operator, REPLICAS, order.seed)
        for rank in range(REPLICAS):
            streams[rank][operator.name] = open_stream(feed, rank, parts[rank], prefetch=False)
    return thread_ranks(plan, probe_here(plan, order), order, streams)


def resident(graph: Graph, plant: Callable[[Rank], None] = lambda rank: None) -> Any:
    """Run windows of the resident loop in threads and return the table.

    Parameters
    ----------
    plant : callable
        Called with each rank before each window.
    """
    ranks = ranks_of(graph)
    for start in range(0, STEPS, WINDOW):
        for rank in ranks:
            plant(rank)
        programs = [Programs(rank) for rank in ranks]
        run_thread_window(ranks, programs, start, start + WINDOW)
    for rank in ranks:
        for stream in rank.streams.values():
            stream.close()
    return ranks[0].tables["w"].copy()


def test_without_a_fault_the_bytes_are_equal() -> None:
    assert same_bytes(resident(training()), serial(training()))


def test_rule_state_that_is_lost_between_windows_is_caught() -> None:
    assert not same_bytes(resident(training(), start_rules), serial(training()))


def test_state_in_a_closure_of_an_operator_is_caught() -> None:
    """Operators must be pure: what one keeps for itself makes two equal runs differ."""

    def counting() -> Graph:
        seen: list[int] = []

        def fade(grads: Any, place: Any) -> Any:
            seen.append(place.clock)
            return {name: (value / len(seen)).astype(value.dtype) for name, value in grads.items()}

        return training(between=fade)

    graph = counting()
    assert not same_bytes(serial(graph), serial(graph))
    assert not same_bytes(serial(counting()), resident(counting()))
    pure = training(between=lambda grads, place: grads)
    assert same_bytes(serial(pure), serial(pure))


def test_a_wrong_order_of_summation_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = serial(training())

    def left_fold(self: Plan, operator: Any, instance: int) -> Tree:
        tree: Tree = self.members(operator, instance)[0]
        for member in self.members(operator, instance)[1:]:
            tree = (tree, member)
        return tree

    monkeypatch.setattr(Plan, "tree", left_fold)
    assert not same_bytes(resident(training()), truth)


def twice(gang: Gang) -> Any:
    """Run three windows of which Dask submits the second one twice; return the table."""
    for number in (0, 1, 1, 2):
        gang.run_window(number, number * WINDOW, (number + 1) * WINDOW, False)
    table = gang.tables()["w", 0]
    gang.close()
    return table


def test_a_window_that_is_run_twice_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = serial(training())
    assert same_bytes(twice(gang_of(training(), REPLICAS)), truth)
    fenced = Gang.run_window

    def unfenced(self: Gang, number: int, start: int, stop: int, snapshot: bool) -> Window:
        self._windows, self._next = {}, number
        return fenced(self, number, start, stop, snapshot)

    monkeypatch.setattr(Gang, "run_window", unfenced)
    assert not same_bytes(twice(gang_of(training(), REPLICAS)), truth)


def test_a_slice_that_is_not_written_is_caught() -> None:
    def idle(*inputs: Any) -> None:
        """Write nothing."""

    def tear(rank: Rank) -> None:
        if rank.number == 1:
            rank.tables["w"].rules["update"].apply = idle  # type: ignore[method-assign]

    assert not same_bytes(resident(training(), tear), serial(training()))
