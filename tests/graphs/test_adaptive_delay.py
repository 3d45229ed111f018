"""adaptive_delay equals a plain loop whose rate is divided by one and the delay."""

import numpy as np
import pytest

import flowml as fl
from graphs import adaptive_delay, ssgd
from tests.graphs.orders import ORDERS, REPLICAS, Work, X, Y, moved
from tests.graphs.reference import CLASSES, FEATURES, assert_close, zeros

MODEL = fl.models.softmax(FEATURES, CLASSES, dtype="float64")
ALL = pytest.mark.parametrize("order", ORDERS)


def loop(events):
    work, w, copies, late = Work(events), zeros(), {}, {}
    clocks = [0.0] * REPLICAS
    for kind, replica, clock in work:
        if kind == "read":
            copies[replica], late[replica] = w, clock - min(clocks)
        elif kind == "leave":
            clocks[replica] = np.inf
        else:
            clocks[replica] += 1
            grads = work.gradient(copies[replica], replica, clock)
            if grads is not None:
                w = moved(w, {n: g / (1 + late[replica]) for n, g in grads.items()}, 0.3)
    return w, late


@ALL
def test_equals_a_plain_loop(order):
    ran = ORDERS[order](adaptive_delay.build(MODEL, (X, Y), lr=0.3, batch_size=10))
    w, _ = loop(ran.events)
    assert_close(ran.tables["w"], w)
    assert (max(ran.staleness()) > 0) == (order != "in turns")


def test_one_replica_is_ssgd():
    graphs = (g.build(MODEL, (X, Y), lr=0.3, batch_size=10) for g in (adaptive_delay, ssgd))
    one, plain = (g.run(steps=9, replicas=1, executor="serial").tables["w"] for g in graphs)
    assert_close(one, plain)
