"""ssgd equals a plain loop, whatever the number of replicas and the sizes of their shares."""

from pathlib import Path

import numpy as np
import pytest

import flowml as fl
from graphs import ssgd
from tests.graphs.reference import (
    CLASSES,
    FEATURES,
    REPLICAS,
    STEPS,
    assert_close,
    batches,
    dealt,
    examples,
    in_parts,
    mean_gradient,
    zeros,
)

X, Y = examples()
MODEL = fl.models.softmax(FEATURES, CLASSES, dtype="float64")


def loop(shares, batch_size, steps, rate, momentum):
    w, velocity = zeros(), zeros()
    for step, rows in enumerate(batches(shares, batch_size, steps)):
        grads = mean_gradient(w, X, Y, rows)
        for name in w:
            velocity[name] = momentum * velocity[name] + grads[name]
            w[name] = w[name] - rate(step) * velocity[name]
    return w


@pytest.mark.parametrize("replicas", REPLICAS)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_equals_a_plain_loop(replicas, steps, momentum):
    graph = ssgd.build(MODEL, (X, Y), lr=0.3, momentum=momentum, batch_size=10)
    run = graph.run(steps=steps, replicas=replicas, executor="serial")
    shares = dealt(len(X), replicas)
    assert_close(run.tables["w"], loop(shares, 10, steps, lambda step: 0.3, momentum))


@pytest.mark.parametrize("replicas", REPLICAS)
def test_a_schedule_is_given_the_step(replicas):
    lr = fl.schedules.cosine(0.5, steps=7)
    graph = ssgd.build(MODEL, (X, Y), lr=lr, batch_size=10)
    run = graph.run(steps=7, replicas=replicas, executor="serial")
    expected = loop(
        dealt(len(X), replicas), 10, 7, lambda t: 0.25 * (1 + np.cos(np.pi * t / 7)), 0.0
    )
    assert_close(run.tables["w"], expected)


# Shares of 3 replicas and more: unequal ones, some smaller than a batch, and empty ones.
PARTS = {2: (31, 30), 3: (40, 1, 20), 4: (9, 0, 4, 48), 5: (20, 3, 0, 37, 1)}


@pytest.mark.parametrize("sizes", PARTS.values())
@pytest.mark.parametrize("steps", STEPS)
def test_unequal_and_empty_shares(sizes, steps):
    shares = in_parts(sizes)
    source = fl.data.parts([(X[rows], Y[rows]) for rows in shares])
    graph = ssgd.build(MODEL, source, lr=0.3, momentum=0.9, batch_size=10)
    run = graph.run(steps=steps, replicas=len(sizes), executor="serial")
    assert_close(run.tables["w"], loop(shares, 10, steps, lambda step: 0.3, 0.9))


def one_step_alone(rows):
    alone = ssgd.build(MODEL, (X[rows], Y[rows]), lr=0.3, batch_size=len(rows))
    return alone.run(steps=1, replicas=1, executor="serial").tables["w"]


@pytest.mark.parametrize("replicas", PARTS)
def test_k_replicas_with_batches_of_b_are_one_with_k_times_b(replicas):
    run = ssgd.build(MODEL, (X, Y), lr=0.3, batch_size=8).run(
        steps=1, replicas=replicas, executor="serial"
    )
    (rows,) = batches(dealt(len(X), replicas), 8, 1)
    assert [len(r) for r in rows] == [8] * replicas
    assert_close(run.tables["w"], one_step_alone(np.concatenate(rows)))


@pytest.mark.parametrize(("replicas", "sizes"), PARTS.items())
def test_also_with_unequal_batches_and_an_empty_replica(replicas, sizes):
    shares = in_parts(sizes)
    source = fl.data.parts([(X[rows], Y[rows]) for rows in shares])
    run = ssgd.build(MODEL, source, lr=0.3, batch_size=15).run(
        steps=1, replicas=replicas, executor="serial"
    )
    (rows,) = batches(shares, 15, 1)
    assert [len(r) for r in rows] == [min(15, size) for size in sizes]
    assert_close(run.tables["w"], one_step_alone(np.concatenate(rows)))


def test_a_replica_without_a_partition_changes_nothing():
    source = fl.data.parts([(X[:40], Y[:40]), (X[40:], Y[40:])])
    graph = ssgd.build(MODEL, source, lr=0.3, batch_size=10)
    two, four = (graph.run(steps=7, replicas=k, executor="serial").tables["w"] for k in (2, 4))
    assert all(np.array_equal(two[name], four[name]) for name in two)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_fashion_mnist(flowml_data: Path, seed: int):
    folder = flowml_data / "fashion-mnist"
    train, test = (
        fl.data.idx(
            folder / f"{part}-images-idx3-ubyte.gz",
            folder / f"{part}-labels-idx1-ubyte.gz",
            scale=1 / 255,
        )
        for part in ("train", "t10k")
    )
    steps = 20 * 469
    lr = fl.schedules.cosine(0.2, steps=steps)
    graph = ssgd.build(fl.models.softmax(784, 10), train, test=test, lr=lr, batch_size=64)
    run = graph.run(epochs=20, replicas=2, executor="serial", seed=seed)
    assert run.steps == steps
    assert run.metrics[-1]["score"] >= 0.842
