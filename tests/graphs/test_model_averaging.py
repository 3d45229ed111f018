"""model_averaging equals a plain loop that weighs each model by the examples of its round."""

import numpy as np
import pytest

import flowml as fl
from graphs import model_averaging
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
    local_step,
    zeros,
)

X, Y = examples()
MODEL = fl.models.softmax(FEATURES, CLASSES, dtype="float64")


def loop(shares, steps, period, batch_size=10):
    mean = zeros()
    local, trained = [mean] * len(shares), np.zeros(len(shares))
    for step, rows in enumerate(batches(shares, batch_size, steps)):
        local = [local_step(w, X, Y, r, 0.3) for w, r in zip(local, rows, strict=True)]
        trained += [len(r) for r in rows]
        if (step + 1) % period == 0:
            share = trained / trained.sum()
            mean = {
                name: sum(s * w[name] for s, w in zip(share, local, strict=True)) for name in mean
            }
            local, trained = [mean] * len(shares), np.zeros(len(shares))
    return mean, local


@pytest.mark.parametrize("replicas", REPLICAS)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("period", [1, 2, 3])
def test_equals_a_plain_loop(replicas, steps, period):
    graph = model_averaging.build(MODEL, (X, Y), lr=0.3, batch_size=10, period=period)
    run = graph.run(steps=steps, replicas=replicas, executor="serial")
    mean, local = loop(dealt(len(X), replicas), steps, period)
    assert_close(run.tables["w"], mean)
    for found, expected in zip(run.tables["local"], local, strict=True):
        assert_close(found, expected)


@pytest.mark.parametrize("sizes", [(40, 1, 20), (9, 0, 4, 48), (50, 11)])
@pytest.mark.parametrize("period", [1, 2, 5])
def test_a_model_that_saw_no_example_in_a_round_weighs_nothing(sizes, period):
    shares = in_parts(sizes)
    source = fl.data.parts([(X[rows], Y[rows]) for rows in shares])
    graph = model_averaging.build(MODEL, source, lr=0.3, batch_size=10, period=period)
    run = graph.run(steps=10, replicas=len(sizes), executor="serial")
    assert_close(run.tables["w"], loop(shares, 10, period)[0])


def test_sample_weights_count_as_examples():
    weight = np.random.default_rng(0).integers(0, 4, len(X)).astype(float)
    weighted = model_averaging.build(
        MODEL, fl.data.arrays(X, Y, weight), lr=0.3, batch_size=31, period=1
    )
    run = weighted.run(steps=1, replicas=2, executor="serial")
    (rows,) = batches(dealt(len(X), 2), 31, 1)
    repeated = [np.repeat(r, weight[r].astype(int)) for r in rows]
    local = [local_step(zeros(), X, Y, r, 0.3) for r in repeated]
    share = np.array([len(r) for r in repeated]) / weight.sum()
    expected = {
        name: sum(s * w[name] for s, w in zip(share, local, strict=True)) for name in ("W", "b")
    }
    assert_close(run.tables["w"], expected)
