"""local_sgd equals a plain loop; with a period of 1 it is ssgd."""

import numpy as np
import pytest

import flowml as fl
from graphs import local_sgd, ssgd
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


def loop(replicas, steps, period, outer_lr, outer_momentum):
    anchor, slow = zeros(), zeros()
    local = [anchor] * replicas
    for step, rows in enumerate(batches(dealt(len(X), replicas), 10, steps)):
        local = [local_step(w, X, Y, r, 0.3) for w, r in zip(local, rows, strict=True)]
        if (step + 1) % period == 0:
            for name in anchor:
                drift = anchor[name] - np.mean([w[name] for w in local], axis=0)
                slow[name] = outer_momentum * slow[name] + drift
            anchor = {name: anchor[name] - outer_lr * slow[name] for name in anchor}
            local = [anchor] * replicas
    return anchor, local


@pytest.mark.parametrize("replicas", REPLICAS)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("period", [1, 2, 3])
@pytest.mark.parametrize("outer", [(1.0, 0.0), (0.5, 0.6)], ids=["mean", "slow"])
def test_equals_a_plain_loop(replicas, steps, period, outer):
    outer_lr, outer_momentum = outer
    graph = local_sgd.build(
        MODEL,
        (X, Y),
        lr=0.3,
        batch_size=10,
        period=period,
        outer_lr=outer_lr,
        outer_momentum=outer_momentum,
    )
    run = graph.run(steps=steps, replicas=replicas, executor="serial")
    anchor, local = loop(replicas, steps, period, outer_lr, outer_momentum)
    assert_close(run.tables["anchor"], anchor)
    assert len(run.tables["local"]) == replicas
    for found, expected in zip(run.tables["local"], local, strict=True):
        assert_close(found, expected)


@pytest.mark.parametrize("replicas", [1, 2, 3, 4])
def test_at_period_one_it_is_ssgd(replicas):
    X, Y = examples(rows=60)  # equal shares, equal batches
    each = 60 // replicas // 3
    local = local_sgd.build(MODEL, (X, Y), lr=0.3, batch_size=each, period=1)
    plain = ssgd.build(MODEL, (X, Y), lr=0.3, batch_size=each)
    found, expected = (g.run(steps=7, replicas=replicas, executor="serial") for g in (local, plain))
    assert_close(found.tables["anchor"], expected.tables["w"])
    for copy in found.tables["local"]:
        assert_close(copy, found.tables["anchor"], rtol=0.0)
