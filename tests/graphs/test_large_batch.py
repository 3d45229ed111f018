"""large_batch equals a plain loop with a ramp; its rate grows with the replicas."""

import pytest

import flowml as fl
from graphs import large_batch, ssgd
from tests.graphs.reference import (
    CLASSES,
    FEATURES,
    REPLICAS,
    STEPS,
    assert_close,
    batches,
    dealt,
    examples,
    mean_gradient,
    zeros,
)

X, Y = examples()
MODEL = fl.models.softmax(FEATURES, CLASSES, dtype="float64")


def loop(replicas, steps, ramp):
    w, velocity = zeros(), zeros()
    for step, rows in enumerate(batches(dealt(len(X), replicas), 10, steps)):
        done = min(1.0, step / ramp)
        rate = 0.1 + (replicas * 0.1 - 0.1) * done
        grads = mean_gradient(w, X, Y, rows)
        for name in w:
            velocity[name] = 0.9 * velocity[name] + grads[name]
            w[name] = w[name] - rate * velocity[name]
    return w


@pytest.mark.parametrize("replicas", REPLICAS)
@pytest.mark.parametrize("steps", STEPS)
def test_equals_a_plain_loop(replicas, steps):
    graph = large_batch.build(
        MODEL, (X, Y), lr=0.1, batch_size=10, warmup_epochs=2, replicas=replicas, steps_per_epoch=2
    )
    run = graph.run(steps=steps, replicas=replicas, executor="serial")
    assert_close(run.tables["w"], loop(replicas, steps, ramp=4))


def test_without_a_warm_up_it_is_ssgd_at_the_scaled_rate():
    graph = large_batch.build(
        MODEL, (X, Y), lr=0.1, momentum=0.5, batch_size=10, warmup_epochs=0, replicas=3
    )
    plain = ssgd.build(MODEL, (X, Y), lr=0.1 * 3, momentum=0.5, batch_size=10)
    scaled, expected = (g.run(steps=7, replicas=3, executor="serial") for g in (graph, plain))
    assert_close(scaled.tables["w"], expected.tables["w"])


def test_a_schedule_is_scaled_and_warmed_up_too():
    halved = fl.schedules.step(0.2, every=4, factor=0.5)
    graph = large_batch.build(
        MODEL, (X, Y), lr=halved, batch_size=10, warmup_epochs=1, replicas=2, steps_per_epoch=4
    )
    run = graph.run(steps=7, replicas=2, executor="serial")
    rates = [0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2]  # from 0.2 up to 2 * 0.1, then that
    w, velocity = zeros(), zeros()
    for rate, rows in zip(rates, batches(dealt(len(X), 2), 10, 7), strict=True):
        grads = mean_gradient(w, X, Y, rows)
        for name in w:
            velocity[name] = 0.9 * velocity[name] + grads[name]
            w[name] = w[name] - rate * velocity[name]
    assert_close(run.tables["w"], w)
