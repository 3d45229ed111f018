"""downpour equals a plain loop: copies of their own, sums of gradients, Adagrad at the server."""

import numpy as np
import pytest

import flowml as fl
from graphs import downpour
from tests.graphs.orders import ORDERS, REPLICAS, Work, X, Y, moved
from tests.graphs.reference import CLASSES, FEATURES, assert_close, zeros

MODEL = fl.models.softmax(FEATURES, CLASSES, dtype="float64")
ALL = pytest.mark.parametrize("order", ORDERS)


def loop(events, n_fetch, n_push):
    work, w, squares = Work(events), zeros(), zeros()
    fetched, sums = {}, {}
    local = [zeros() for _ in range(REPLICAS)]
    for kind, replica, clock in work:
        if kind == "read" and clock % n_fetch == 0:
            fetched[replica] = w
        if kind != "deliver":
            continue
        if clock % n_fetch == 0:
            local[replica] = fetched[replica]
        grads = work.gradient(local[replica], replica, clock)
        if grads is not None:
            local[replica] = moved(local[replica], grads, 0.2)
            before = sums.get(replica) or zeros()
            sums[replica] = {name: before[name] + grads[name] for name in w}
        if (clock + 1) % n_push == 0 and sums.get(replica):
            total = sums.pop(replica)
            squares = {name: squares[name] + total[name] ** 2 for name in w}
            w = {name: w[name] - 0.1 * total[name] / (np.sqrt(squares[name]) + 1e-10) for name in w}
    return w, local


@ALL
@pytest.mark.parametrize(("n_fetch", "n_push"), [(1, 1), (4, 4), (2, 3), (5, 1)])
def test_equals_a_plain_loop(order, n_fetch, n_push):
    graph = downpour.build(
        MODEL, (X, Y), lr=0.1, local_lr=0.2, batch_size=10, n_fetch=n_fetch, n_push=n_push
    )
    ran = ORDERS[order](graph)
    w, local = loop(ran.events, n_fetch, n_push)
    assert_close(ran.tables["w"], w)
    assert len(ran.tables["local"]) == REPLICAS
    for found, expected in zip(ran.tables["local"], local, strict=True):
        assert_close(found, expected)
