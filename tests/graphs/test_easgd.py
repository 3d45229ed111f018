"""easgd equals a plain loop: the same vector pulls a replica and the center together."""

import numpy as np
import pytest

import flowml as fl
from graphs import easgd
from tests.graphs.orders import ORDERS, REPLICAS, Work, X, Y, at_random
from tests.graphs.reference import CLASSES, FEATURES, assert_close, zeros

MODEL = fl.models.softmax(FEATURES, CLASSES, dtype="float64")
ALL = pytest.mark.parametrize("order", ORDERS)


def loop(events, period, alpha, momentum):
    work, center, seen = Work(events), zeros(), {}
    local = [zeros() for _ in range(REPLICAS)]
    velocity = [zeros() for _ in range(REPLICAS)]
    for kind, replica, clock in work:
        if kind == "read":
            seen[replica] = center
        if kind != "deliver":
            continue
        x, v = local[replica], velocity[replica]
        grads = work.gradient(x, replica, clock)
        if grads is not None:
            v = {name: momentum * v[name] + grads[name] for name in v}
            x = {name: x[name] - 0.3 * (grads[name] + momentum * v[name]) for name in x}
        if (clock + 1) % period == 0:
            force = {name: alpha * (x[name] - seen[replica][name]) for name in x}
            x = {name: x[name] - force[name] for name in x}
            center = {name: center[name] + force[name] for name in x}
        local[replica], velocity[replica] = x, v
    return center, local


@ALL
@pytest.mark.parametrize("period", [1, 3])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_equals_a_plain_loop(order, period, momentum):
    graph = easgd.build(
        MODEL, (X, Y), lr=0.3, momentum=momentum, batch_size=10, period=period, moving_rate=0.25
    )
    ran = ORDERS[order](graph)
    center, local = loop(ran.events, period, 0.25, momentum)
    assert_close(ran.tables["center"], center)
    assert len(ran.tables["local"]) == REPLICAS
    for found, expected in zip(ran.tables["local"], local, strict=True):
        assert_close(found, expected)


def test_the_rate_of_the_paper_depends_on_the_replicas():
    graph = easgd.build(MODEL, (X, Y), lr=0.3, batch_size=10, period=2)
    ran = at_random(graph, seed=4)
    assert_close(ran.tables["center"], loop(ran.events, 2, 0.9 / REPLICAS, 0.0)[0])


def test_the_force_is_neither_made_nor_lost():
    """With a rate of 0 the sum of center and replicas stays where it was."""
    start = MODEL.init(seed=0)
    graph = easgd.build(MODEL, (X, Y), lr=0.0, batch_size=10, period=1, moving_rate=0.4)
    ran = at_random(graph, seed=5)
    for name, value in start.items():
        total = ran.tables["center"][name] + sum(x[name] for x in ran.tables["local"])
        np.testing.assert_allclose(total, (1 + REPLICAS) * value, atol=1e-15)
