"""asgd equals a plain loop that applies each gradient in the order of the run."""

import numpy as np
import pytest

import flowml as fl
from graphs import asgd, ssgd
from tests.graphs.orders import ORDERS, Work, X, Y, at_random, moved
from tests.graphs.reference import CLASSES, FEATURES, assert_close, zeros

MODEL = fl.models.softmax(FEATURES, CLASSES, dtype="float64")
ALL = pytest.mark.parametrize("order", ORDERS)


def loop(events, rate=lambda step: 0.3):
    work, w, copies = Work(events), zeros(), {}
    for kind, replica, clock in work:
        if kind == "read":
            copies[replica] = w
        elif kind == "deliver":
            grads = work.gradient(copies[replica], replica, clock)
            w = w if grads is None else moved(w, grads, rate(clock))
    return w


@ALL
def test_equals_a_plain_loop(order):
    ran = ORDERS[order](asgd.build(MODEL, (X, Y), lr=0.3, batch_size=10))
    assert_close(ran.tables["w"], loop(ran.events))


@ALL
def test_a_schedule_is_given_the_step_of_the_replica(order):
    lr = fl.schedules.cosine(0.5, steps=14)
    ran = ORDERS[order](asgd.build(MODEL, (X, Y), lr=lr, batch_size=10))
    expected = loop(ran.events, lambda t: 0.25 * (1 + np.cos(np.pi * t / 14)))
    assert_close(ran.tables["w"], expected)


def test_nobody_waits():
    ran = at_random(asgd.build(MODEL, (X, Y), batch_size=10), seed=1)
    done = [(kind, replica) for kind, replica, _, _ in ran.events if kind == "leave"]
    assert done == [("leave", 2), ("leave", 1), ("leave", 0)]
    assert max(ran.staleness()) >= 8


def test_one_replica_is_ssgd():
    graphs = (g.build(MODEL, (X, Y), lr=0.3, batch_size=10) for g in (asgd, ssgd))
    one, plain = (g.run(steps=9, replicas=1, executor="serial").tables["w"] for g in graphs)
    assert_close(one, plain)
