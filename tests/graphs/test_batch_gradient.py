"""batch_gradient equals a plain loop over the whole data set, whatever the number of replicas."""

from pathlib import Path

import numpy as np
import pytest

import flowml as fl
from graphs import batch_gradient
from tests.graphs.reference import (
    CLASSES,
    FEATURES,
    REPLICAS,
    STEPS,
    assert_close,
    examples,
    in_parts,
    softmax_gradient,
    zeros,
)

X, Y = examples()
MODEL = fl.models.softmax(FEATURES, CLASSES, dtype="float64")


def loop(steps, lr, momentum):
    """Nesterov's method as he wrote it: a step from the point looked ahead to.

    The table of the graph holds that point, x + m * (x - x_before).
    """
    ahead, before = zeros(), zeros()
    for _ in range(steps):
        grads = softmax_gradient(ahead, X, Y)
        for name in ahead:
            x = ahead[name] - lr * grads[name]
            ahead[name] = x + momentum * (x - before[name])
            before[name] = x
    return ahead


@pytest.mark.parametrize("replicas", REPLICAS)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_equals_a_plain_loop(replicas, steps, momentum):
    graph = batch_gradient.build(MODEL, (X, Y), lr=0.5, momentum=momentum)
    run = graph.run(steps=steps, replicas=replicas, executor="serial")
    assert_close(run.tables["w"], loop(steps, 0.5, momentum))


@pytest.mark.parametrize("replicas", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_twenty_steps_whatever_the_number_of_replicas(replicas, momentum):
    graph = batch_gradient.build(MODEL, (X, Y), lr=0.5, momentum=momentum)
    run = graph.run(steps=20, replicas=replicas, executor="serial")
    assert_close(run.tables["w"], loop(20, 0.5, momentum), rtol=1e-9)


@pytest.mark.parametrize("sizes", [(40, 1, 20), (9, 0, 4, 48), (61, 0)])
def test_unequal_and_empty_shares(sizes):
    parts = [(X[rows], Y[rows]) for rows in in_parts(sizes)]
    graph = batch_gradient.build(MODEL, fl.data.parts(parts), lr=0.5)
    run = graph.run(steps=7, replicas=len(sizes), executor="serial")
    assert_close(run.tables["w"], loop(7, 0.5, 0.9))


@pytest.mark.parametrize("replicas", [1, 3])
def test_ends_where_the_gradient_is_small(replicas):
    graph = batch_gradient.build(MODEL, (X, Y), lr=0.5, tol=1e-3)
    run = graph.run(steps=1000, replicas=replicas, executor="serial")
    sizes = [
        max(np.abs(g).max() for g in softmax_gradient(loop(n, 0.5, 0.9), X, Y).values())
        for n in range(run.steps)
    ]
    assert run.status == "until"
    assert [size <= 1e-3 for size in sizes] == [False] * (run.steps - 1) + [True]


A9A_OPTIMUM = 0.3245069247
"""Of (1/n) sum log(1 + exp(-y w.x)) + 5e-5 w.w, to ten digits."""


@pytest.mark.parametrize("replicas", [1, 3])
def test_a9a_reaches_its_optimum(flowml_data: Path, replicas: int):
    source = fl.data.libsvm(flowml_data / "a9a" / "a9a.gz", n_features=123)
    model = fl.models.logistic(123, l2=1e-4, dtype="float64", intercept=False)
    graph = batch_gradient.build(model, source, lr=0.63, momentum=0.98)
    run = graph.run(steps=800, replicas=replicas, executor="serial")
    rows, labels = source.rows().value()
    w = run.tables["w"]["w"]
    loss = np.mean(np.logaddexp(0, -labels * (rows @ w))) + 0.5e-4 * w @ w
    assert abs(loss - A9A_OPTIMUM) <= 1e-6
