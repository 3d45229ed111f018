"""delay_compensated equals a plain loop that keeps what each replica had read."""

import numpy as np
import pytest

import flowml as fl
from graphs import asgd, delay_compensated, ssgd
from tests.graphs.orders import ORDERS, Work, X, Y, at_random
from tests.graphs.reference import CLASSES, FEATURES, assert_close, zeros

MODEL = fl.models.softmax(FEATURES, CLASSES, dtype="float64")
ALL = pytest.mark.parametrize("order", ORDERS)


def graph(**options):
    return delay_compensated.build(MODEL, (X, Y), lr=0.3, batch_size=10, **options)


def loop(events, variance, decay):
    work, w, backups = Work(events), zeros(), {}
    squares, gone = zeros(), 0.0
    for kind, replica, clock in work:
        if kind == "read":
            backups[replica] = w
        elif kind == "deliver":
            grads = work.gradient(backups[replica], replica, clock)
            if grads is None:
                continue
            fresh = {}
            for name, g in grads.items():
                factor = variance
                if decay is not None:
                    squares[name] = decay * squares[name] + (1 - decay) * g * g
                    factor = variance / np.sqrt(squares[name] + 1e-7)
                since = w[name] - backups[replica][name]
                gone = max(gone, np.abs(since).max())
                fresh[name] = w[name] - 0.3 * (g + factor * g * g * since)
            w = fresh
    return w, gone


@ALL
@pytest.mark.parametrize(("variance", "decay"), [(3.0, None), (2.0, 0.9), (2.0, 0.0)])
def test_equals_a_plain_loop(order, variance, decay):
    ran = ORDERS[order](graph(variance=variance, decay=decay))
    w, gone = loop(ran.events, variance, decay)
    assert_close(ran.tables["w"], w)
    assert (gone > 0.01) == (order != "in turns")


@pytest.mark.parametrize("decay", [None, 0.9])
def test_without_variance_it_is_asgd(decay):
    plain = asgd.build(MODEL, (X, Y), lr=0.3, batch_size=10)
    found, expected = at_random(graph(variance=0.0, decay=decay), 3), at_random(plain, 3)
    assert found.events == expected.events
    assert_close(found.tables["w"], expected.tables["w"])


@pytest.mark.parametrize("decay", [None, 0.9])
def test_one_replica_is_ssgd(decay):
    graphs = graph(variance=5.0, decay=decay), ssgd.build(MODEL, (X, Y), lr=0.3, batch_size=10)
    one, plain = (g.run(steps=9, replicas=1, executor="serial").tables["w"] for g in graphs)
    assert_close(one, plain)


def test_what_was_read_goes_along_with_each_gradient():
    runs = [
        g.run(steps=9, replicas=2, executor="serial", record=True)
        for g in (graph(), asgd.build(MODEL, (X, Y), lr=0.3, batch_size=10))
    ]
    with_read, plain = (sum(run.moved.written.values()) for run in runs)
    assert with_read == 2 * plain > 0
