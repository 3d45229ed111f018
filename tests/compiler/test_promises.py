"""Promises: marked, taken from the loop, and mixed where that is legal."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flowml as fl
from flowml.compiler.promises import describe, looseness, resolve, schedules
from flowml.edges import Promise
from flowml.errors import ManyErrors
from flowml.freshness import Promises
from tests.compiler.declared import X, batch, both, grad, ssgd, table


def resolved(graph: fl.Graph) -> dict[str, str]:
    """Return the promise of each edge by ``source -> reader``."""
    logical = graph.logical
    return {
        f"{logical.operator(name).inputs[number].source} -> {name}": str(promise)
        for (name, number), promise in resolve(logical).items()
    }


Mark = Callable[[Any], Any]


def same(handle: Any) -> Any:
    return handle


def stale(steps: int) -> Mark:
    return lambda handle: handle.stale(steps)


def asynchronous(handle: Any) -> Any:
    return handle.async_()


ONE_WORD = [
    ((same, same, same), "sync"),
    ((stale(4), same, same), "stale(4)"),
    ((same, stale(4), same), "stale(4)"),
    ((same, same, stale(4)), "stale(4)"),
    ((asynchronous, same, same), "async"),
    ((same, asynchronous, same), "async"),
    ((stale(0), same, same), "sync"),
]


@pytest.mark.parametrize(("marks", "found"), ONE_WORD)
def test_unmarked_edges_take_the_promise_of_their_loop(
    marks: tuple[Mark, Mark, Mark], found: str
) -> None:
    edges = resolved(ssgd(*marks))
    assert edges == {
        "w -> grad": found,
        "load -> grad": "sync",
        "grad -> mean": found,
        "mean -> update_w": found,
    }


def test_the_loosest_of_several_is_taken_and_marked_edges_stay() -> None:
    edges = resolved(ssgd(asynchronous, stale(2), same))
    assert edges["grad -> mean"] == "stale(2)"
    assert edges["mean -> update_w"] == "async"


def test_sync_written_out_stays() -> None:
    edges = resolved(ssgd(asynchronous, lambda g: g.sync(), same))
    assert edges["grad -> mean"] == "sync"
    assert edges["mean -> update_w"] == "async"


def test_a_loop_goes_through_maps_behind_the_aggregate() -> None:
    w = table()
    mean = fl.aggregate("mean", fl.map(grad, w.stale(3), batch(), name="grad"), name="mean")
    clipped = fl.map(np.tanh, fl.map(both, mean, w, name="sum"), name="clip")
    graph = fl.Graph(fl.update(w, clipped, fl.sgd(0.1)))
    assert resolved(graph) == {
        "w -> grad": "stale(3)",
        "load -> grad": "sync",
        "grad -> mean": "stale(3)",
        "mean -> sum": "sync",
        "w -> sum": "stale(3)",
        "sum -> clip": "sync",
        "clip -> update_w": "stale(3)",
    }


def test_loops_of_two_tables_do_not_mix() -> None:
    a, b = table("a"), table("b")
    ga, gb = (fl.map(grad, t, batch(), name=n) for t, n in ((a.async_(), "ga"), (b, "gb")))
    graph = fl.Graph(fl.update(a, ga, fl.add()), fl.update(b, gb, fl.add()))
    edges = resolved(graph)
    assert edges["ga -> update_a"] == "async"
    assert (edges["b -> gb"], edges["gb -> update_b"]) == ("sync", "sync")


def test_an_edge_of_two_loops_takes_the_looser_one() -> None:
    a, b = table("a"), table("b")
    g = fl.map(both, a.stale(2), b.stale(5), fl.map(lambda x: x.mean(0), batch()), name="g")
    mean = fl.aggregate("mean", g)
    graph = fl.Graph(fl.update(a, mean, fl.add()), fl.update(b, mean, fl.add()))
    assert resolved(graph)["g -> mean"] == "stale(5)"
    assert resolved(graph)["mean -> update_a"] == "stale(2)"


def test_an_evaluation_reads_a_snapshot_whatever_the_loop() -> None:
    w = table()
    mean = fl.aggregate("mean", fl.map(grad, w.async_(), batch(), name="grad"))
    graph = fl.Graph(
        fl.update(w, mean, fl.sgd(0.1)), fl.evaluate(lambda p, b: 0.0, w, X, name="test")
    )
    assert resolved(graph)["w -> test"] == "sync"


def test_a_schedule_counts_as_its_last_promise() -> None:
    edges = resolved(ssgd(lambda w: w.sync(until=500).async_()))
    assert edges["grad -> mean"] == "async"


ILLEGAL = [
    ((lambda w: w.sync(), same, stale(4)), "a sync read of a stale(4) write"),
    ((lambda w: w.sync(), same, asynchronous), "a sync read of a async write"),
    ((stale(2), same, stale(4)), "a stale(2) read of a stale(4) write"),
    ((stale(9), same, asynchronous), "a stale(9) read of a async write"),
    ((lambda w: w.sync().every(3), same, asynchronous), "a sync read of a async write"),
]


@pytest.mark.parametrize(("marks", "got"), ILLEGAL)
def test_an_illegal_mix_names_both_edges(marks: tuple[Mark, Mark, Mark], got: str) -> None:
    with pytest.raises(fl.GraphError) as caught:
        ssgd(*marks)
    text = str(caught.value)
    assert "edge w -> grad (declared.py:" in text
    assert "on edge mean -> update_w (declared.py:" in text
    assert got in text


@pytest.mark.parametrize("steps", [1, 4])
def test_a_looser_read_of_tighter_writes_is_legal(steps: int) -> None:
    assert resolved(ssgd(stale(steps), same, lambda m: m.sync()))["mean -> update_w"] == "sync"


def test_a_table_read_sync_by_one_edge_is_read_sync_by_all() -> None:
    w = table()
    x = batch()
    one = fl.map(grad, w.sync(), x, name="one")
    two = fl.map(grad, w.stale(2), x, name="two")
    mean = fl.aggregate("mean", fl.map(both, one, two))
    with pytest.raises(ManyErrors) as caught:
        fl.Graph(fl.update(w, mean, fl.sgd(0.1)))
    assert "one: sync, two: stale(2)" in str(caught.value)
    assert "Mark all reads alike" in str(caught.value)


promises = st.one_of(
    st.just(Promise("sync")),
    st.just(Promise("async")),
    st.integers(0, 99).map(lambda s: Promise("stale", s)),
)


@given(promises, promises)
def test_looseness_orders_promises(one: Promise, two: Promise) -> None:
    assert looseness(one) >= 0
    assert (looseness(one) == looseness(two)) == (one == two)
    assert (looseness(one) == math.inf) == (one.kind == "async")
    assert describe(one) == str(one)


@given(promises, promises, promises)
def test_a_graph_is_legal_exactly_if_reads_are_no_tighter_than_writes(
    read: Promise, gather: Promise, push: Promise
) -> None:
    def mark(promise: Promise) -> Mark:
        if promise.kind == "async":
            return asynchronous
        return stale(promise.staleness or 0)

    legal = looseness(read) >= looseness(push)
    try:
        ssgd(mark(read), mark(gather), mark(push))
    except fl.GraphError:
        assert not legal
    else:
        assert legal


def scheduled(graph: fl.Graph) -> dict[str, Promises]:
    """Return the promises of each edge over the steps, by ``source -> reader``."""
    logical = graph.logical
    return {
        f"{logical.operator(name).inputs[number].source} -> {name}": promises
        for (name, number), promises in schedules(logical).items()
    }


SYNC = ((0, 0.0),)
ASYNC = ((0, math.inf),)
SWITCH = ((0, 0.0), (500, math.inf))


@pytest.mark.parametrize(("marks", "found"), ONE_WORD)
def test_a_promise_without_until_holds_from_the_first_step(
    marks: tuple[Mark, Mark, Mark], found: str
) -> None:
    numbers = {"sync": 0.0, "stale(4)": 4.0, "async": math.inf}
    assert scheduled(ssgd(*marks)) == {
        "w -> grad": ((0, numbers[found]),),
        "load -> grad": SYNC,
        "grad -> mean": ((0, numbers[found]),),
        "mean -> update_w": ((0, numbers[found]),),
    }


def test_unmarked_edges_take_the_earlier_promises_too() -> None:
    edges = scheduled(ssgd(lambda w: w.sync(until=500).async_()))
    assert edges == {
        "w -> grad": SWITCH,
        "load -> grad": SYNC,
        "grad -> mean": SWITCH,
        "mean -> update_w": SWITCH,
    }


def test_several_promises_stand_in_order() -> None:
    edges = scheduled(ssgd(lambda w: w.sync(until=5).stale(2, until=9).async_()))
    assert edges["w -> grad"] == ((0, 0.0), (5, 2.0), (9, math.inf))
    assert edges["grad -> mean"] == edges["w -> grad"]


def test_a_marked_edge_keeps_its_own_schedule() -> None:
    edges = scheduled(ssgd(lambda w: w.sync(until=500).async_(), asynchronous))
    assert edges["w -> grad"] == SWITCH
    assert edges["grad -> mean"] == ASYNC
    assert edges["mean -> update_w"] == SWITCH  # of the first of the loosest


def test_a_marked_edge_that_is_tighter_at_last_has_no_earlier_promises() -> None:
    edges = scheduled(ssgd(lambda w: w.sync(until=500).async_(), lambda g: g.sync()))
    assert edges["grad -> mean"] == SYNC


def test_schedules_of_two_tables_do_not_mix() -> None:
    a, b = table("a"), table("b")
    ga = fl.map(grad, a.sync(until=7).stale(2), batch(), name="ga")
    gb = fl.map(grad, b.async_(), batch(), name="gb")
    edges = scheduled(fl.Graph(fl.update(a, ga, fl.add()), fl.update(b, gb, fl.add())))
    assert edges["ga -> update_a"] == ((0, 0.0), (7, 2.0))
    assert (edges["b -> gb"], edges["gb -> update_b"]) == (ASYNC, ASYNC)


def test_an_edge_of_two_loops_takes_the_schedule_of_the_looser_one() -> None:
    a, b = table("a"), table("b")
    first = fl.map(lambda x: x.mean(0), batch(), name="first")
    g = fl.map(both, a.sync(until=3).stale(2), b.sync(until=8).stale(5), first, name="g")
    mean = fl.aggregate("mean", g, name="mean")
    edges = scheduled(fl.Graph(fl.update(a, mean, fl.add()), fl.update(b, mean, fl.add())))
    assert edges["g -> mean"] == ((0, 0.0), (8, 5.0))
    assert edges["mean -> update_a"] == ((0, 0.0), (3, 2.0))
    assert edges["mean -> update_b"] == ((0, 0.0), (8, 5.0))


@given(promises, promises, promises, st.integers(1, 99))
def test_the_last_of_a_schedule_is_what_resolve_says(
    read: Promise, gather: Promise, push: Promise, until: int
) -> None:
    def mark(promise: Promise) -> Mark:
        def last(handle: Any) -> Any:
            early = handle.sync(until=until)
            return early.async_() if promise.kind == "async" else early.stale(promise.staleness)

        return last

    if looseness(read) < looseness(push):
        return
    logical = ssgd(mark(read), mark(gather), mark(push)).logical
    resolved_to = resolve(logical)
    for key, made in schedules(logical).items():
        assert made[-1][1] == looseness(resolved_to[key])
        assert [start for start, _ in made] == sorted({start for start, _ in made})
        assert made[0][0] == 0
