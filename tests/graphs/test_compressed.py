"""top_k_ssgd, sign_sgd and power_sgd: plain loops with a memory, and what rank 1 means."""

import numpy as np
import pytest

import flowml as fl
from graphs import power_sgd, sign_sgd, ssgd, top_k_ssgd
from tests.graphs.reference import (
    CLASSES,
    FEATURES,
    REPLICAS,
    STEPS,
    assert_close,
    batches,
    dealt,
    examples,
    softmax_gradient,
    zeros,
)

X, Y = examples()
MODEL = fl.models.softmax(FEATURES, CLASSES, dtype="float64")


def largest(values, fraction):
    flat, out = values.ravel(), np.zeros(values.size)
    count = max(1, round(fraction * flat.size))
    chosen = np.argsort(-np.abs(flat), kind="stable")[:count]
    out[chosen] = flat[chosen]
    return out.reshape(values.shape)


def signs(values):
    return np.abs(values).mean() * np.where(values < 0, -1.0, 1.0)


def loop(replicas, steps, sent, feedback=True):
    """Send ``sent(gradient + memory)`` from each replica; apply the mean by examples."""
    w = zeros()
    memory = [zeros() for _ in range(replicas)]
    for rows in batches(dealt(len(X), replicas), 10, steps):
        total = sum(map(len, rows))
        mean = zeros()
        for kept, mine in zip(memory, rows, strict=True):
            if not len(mine):
                continue
            grads = softmax_gradient(w, X[mine], Y[mine])
            for name in w:
                wanted = grads[name] + kept[name]
                came = sent(wanted)
                kept[name] = wanted - came if feedback else kept[name]
                mean[name] = mean[name] + len(mine) / total * came
        w = {name: w[name] - 0.3 * mean[name] for name in w}
    return w


@pytest.mark.parametrize("replicas", REPLICAS)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("fraction", [0.1, 0.4])
def test_top_k_equals_a_plain_loop(replicas, steps, fraction):
    graph = top_k_ssgd.build(MODEL, (X, Y), lr=0.3, fraction=fraction, batch_size=10)
    run = graph.run(steps=steps, replicas=replicas, executor="serial")
    assert_close(run.tables["w"], loop(replicas, steps, lambda v: largest(v, fraction)))


@pytest.mark.parametrize("replicas", REPLICAS)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("feedback", [True, False])
def test_signs_equal_a_plain_loop(replicas, steps, feedback):
    graph = sign_sgd.build(MODEL, (X, Y), lr=0.3, feedback=feedback, batch_size=10)
    run = graph.run(steps=steps, replicas=replicas, executor="serial")
    assert_close(run.tables["w"], loop(replicas, steps, signs, feedback))


def test_power_sgd_moves_by_matrices_of_its_rank():
    graph = power_sgd.build(MODEL, (X, Y), lr=0.3, rank=1, batch_size=10)
    moved = graph.run(steps=1, replicas=1, executor="serial").tables["w"]["W"]
    assert np.linalg.matrix_rank(moved, tol=1e-9) == 1
    full = np.linalg.matrix_rank(
        ssgd.build(MODEL, (X, Y), lr=0.3, batch_size=10)
        .run(steps=1, replicas=1, executor="serial")
        .tables["w"]["W"],
        tol=1e-9,
    )
    assert full == CLASSES - 1  # the slopes of the classes sum to 0


@pytest.mark.parametrize("graph", [power_sgd.build, top_k_ssgd.build], ids=["power", "top_k"])
def test_what_sends_everything_is_synchronous_sgd(graph):
    whole = {"rank": CLASSES} if graph is power_sgd.build else {"fraction": 1.0}
    found = graph(MODEL, (X, Y), lr=0.3, batch_size=10, **whole)
    plain = ssgd.build(MODEL, (X, Y), lr=0.3, batch_size=10)
    options = {"steps": 7, "replicas": 3, "executor": "serial"}
    assert_close(found.run(**options).tables["w"], plain.run(**options).tables["w"])


def test_the_ledger_counts_what_travels():
    graph = top_k_ssgd.build(MODEL, (X, Y), fraction=0.2, batch_size=10)
    ledger = graph.run(steps=4, replicas=2, executor="serial", record=True).ledger
    sent = ledger["bytes"][ledger["kind"] == "deliver"]
    matrix, vector = round(0.2 * FEATURES * CLASSES), max(1, round(0.2 * CLASSES))
    assert set(sent.tolist()) <= {0, (matrix + vector) * (4 + 8)}
    assert sent.max() > 0
    read = ledger["bytes"][ledger["kind"] == "read"]
    assert read[0] == 8 * (FEATURES * CLASSES + CLASSES)
