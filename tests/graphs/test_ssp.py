"""ssp equals a plain loop, keeps its bound, and is synchronous at staleness 0."""

import numpy as np
import pytest

import flowml as fl
from graphs import asgd, ssgd, ssp
from tests.graphs.orders import ORDERS, REPLICAS, Work, X, Y, at_random, in_turns, moved
from tests.graphs.reference import CLASSES, FEATURES, assert_close, zeros

MODEL = fl.models.softmax(FEATURES, CLASSES, dtype="float64")
ALL = pytest.mark.parametrize("order", ORDERS)


def graph(staleness, combine):
    return ssp.build(MODEL, (X, Y), lr=0.3, batch_size=10, staleness=staleness, combine=combine)


def push_loop(events):
    work, w, copies = Work(events), zeros(), {}
    for kind, replica, clock in work:
        if kind == "read":
            copies[replica] = w
        elif kind == "deliver":
            grads = work.gradient(copies[replica], replica, clock)
            w = w if grads is None else moved(w, grads, 0.3)
    return w


def mean_loop(events, staleness):
    """Take the mean of all that has come, when nothing of the step ``staleness`` back is out."""
    work, w, copies = Work(events), zeros(), {}
    done, waiting, fired = dict.fromkeys(range(REPLICAS), 0), [], 0
    for kind, replica, clock in work:
        if kind == "read":
            copies[replica] = w
            continue
        if kind == "leave":
            done[replica] = np.inf
        else:
            done[replica] += 1
            grads = work.gradient(copies[replica], replica, clock)
            waiting.append((len(work.rows(replica, clock)), grads))
        while waiting and min(done.values()) >= fired - staleness + 1:
            total = sum(count for count, _ in waiting)
            if total:
                parts = [(count / total, grads) for count, grads in waiting if count]
                mean = {name: sum(share * grads[name] for share, grads in parts) for name in w}
                w = moved(w, mean, 0.3)
            waiting, fired = [], fired + 1
    return w


@ALL
@pytest.mark.parametrize("staleness", [1, 2, 5])
def test_pushes_equal_a_plain_loop(order, staleness):
    ran = ORDERS[order](graph(staleness, "push"))
    assert_close(ran.tables["w"], push_loop(ran.events))


@ALL
@pytest.mark.parametrize("staleness", [1, 2, 5])
def test_means_equal_a_plain_loop(order, staleness):
    ran = ORDERS[order](graph(staleness, "mean"))
    assert_close(ran.tables["w"], mean_loop(ran.events, staleness))


@pytest.mark.parametrize("combine", ["push", "mean"])
@pytest.mark.parametrize("staleness", [1, 2, 5])
@pytest.mark.parametrize("seed", range(4))
def test_no_read_is_later_than_promised(combine, staleness, seed):
    ran = at_random(graph(staleness, combine), seed)
    late = ran.staleness()
    assert all(0 <= steps <= staleness for steps in late)
    if combine == "push":
        assert max(late) == staleness  # the slow replica holds the others back
    lead = staleness if combine == "push" else 2 * staleness  # of a read, or of the sum and a read
    clocks = [0] * REPLICAS
    for kind, replica, _, _ in ran.events:
        clocks[replica] += kind == "deliver"
        assert clocks[replica] - min(clocks) <= lead + 1


@pytest.mark.parametrize("seed", range(3))
def test_the_staleness_of_a_read_is_how_far_the_slowest_replica_is_behind(seed):
    ran = at_random(graph(3, "push"), seed)
    clocks = [0.0] * REPLICAS
    for kind, replica, clock, late in ran.events:
        if kind == "read":
            assert late == clock - min(clocks)
        clocks[replica] = np.inf if kind == "leave" else clocks[replica] + (kind == "deliver")


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_staleness_0_is_ssgd_to_the_byte(replicas):
    found = in_turns_or_sync(graph(0, "mean"), replicas)
    truth = in_turns_or_sync(ssgd.build(MODEL, (X, Y), lr=0.3, batch_size=10), replicas)
    assert all(found[name].tobytes() == truth[name].tobytes() for name in truth)


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_staleness_0_with_pushes_is_sync_to_the_byte(replicas):
    w = fl.table("w", MODEL.init(seed=0))
    grads = fl.gradient(MODEL, w.sync(), fl.load((X, Y), batch_size=10))
    truth = in_turns_or_sync(fl.Graph(fl.update(w, grads, fl.sgd(0.3))), replicas)
    found = in_turns_or_sync(graph(0, "push"), replicas)
    assert all(found[name].tobytes() == truth[name].tobytes() for name in truth)


def in_turns_or_sync(graph, replicas):
    return graph.run(steps=9, replicas=replicas, executor="serial").tables["w"]


def test_the_loosest_staleness_is_asgd_in_the_same_order():
    loose = in_turns(asgd.build(MODEL, (X, Y), lr=0.3, batch_size=10))
    stale = in_turns(graph(1000, "push"))
    assert loose.events == stale.events
    assert all(
        loose.tables["w"][name].tobytes() == stale.tables["w"][name].tobytes()
        for name in loose.tables["w"]
    )
