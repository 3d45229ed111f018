"""bmuf equals the recursion of its paper, in both variants."""

import numpy as np
import pytest

import flowml as fl
from graphs import bmuf, local_sgd
from tests.graphs.reference import (
    CLASSES,
    FEATURES,
    REPLICAS,
    STEPS,
    assert_close,
    batches,
    dealt,
    examples,
    local_step,
    zeros,
)

X, Y = examples()
MODEL = fl.models.softmax(FEATURES, CLASSES, dtype="float64")


def loop(replicas, steps, period, zeta, eta, nesterov):
    """Keep model, delta, and the global model that blocks start from, as the paper does."""
    model, delta, start = zeros(), zeros(), zeros()
    local = [start] * replicas
    for step, rows in enumerate(batches(dealt(len(X), replicas), 10, steps)):
        local = [local_step(w, X, Y, r, 0.3) for w, r in zip(local, rows, strict=True)]
        if (step + 1) % period:
            continue
        for name in model:
            update = np.mean([w[name] for w in local], axis=0) - start[name]
            delta[name] = eta * delta[name] + zeta * update
            model[name] = model[name] + delta[name]
        start = {name: model[name] + nesterov * eta * delta[name] for name in model}
        local = [start] * replicas
    return start, local


@pytest.mark.parametrize("replicas", REPLICAS)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("period", [1, 2, 3])
@pytest.mark.parametrize("variant", ["classical", "nesterov"])
def test_equals_the_recursion_of_the_paper(replicas, steps, period, variant):
    graph = bmuf.build(
        MODEL,
        (X, Y),
        lr=0.3,
        batch_size=10,
        period=period,
        block_lr=0.8,
        block_momentum=0.6,
        variant=variant,
    )
    run = graph.run(steps=steps, replicas=replicas, executor="serial")
    anchor, local = loop(replicas, steps, period, 0.8, 0.6, variant == "nesterov")
    assert_close(run.tables["anchor"], anchor)
    for found, expected in zip(run.tables["local"], local, strict=True):
        assert_close(found, expected)


@pytest.mark.parametrize("replicas", REPLICAS)
def test_the_momentum_is_one_less_a_replicas_share(replicas):
    graph = bmuf.build(MODEL, (X, Y), lr=0.3, batch_size=10, period=2, replicas=replicas)
    run = graph.run(steps=7, replicas=replicas, executor="serial")
    anchor, _ = loop(replicas, 7, 2, 1.0, 1 - 1 / replicas, True)
    assert_close(run.tables["anchor"], anchor)


@pytest.mark.parametrize("variant", ["classical", "nesterov"])
def test_without_momentum_it_is_local_sgd(variant):
    block = bmuf.build(
        MODEL, (X, Y), lr=0.3, batch_size=10, period=3, block_momentum=0.0, variant=variant
    )
    local = local_sgd.build(MODEL, (X, Y), lr=0.3, batch_size=10, period=3)
    found, expected = (g.run(steps=7, replicas=3, executor="serial") for g in (block, local))
    assert_close(found.tables["anchor"], expected.tables["anchor"], rtol=0.0)
