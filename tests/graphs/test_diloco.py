"""diloco equals a plain loop with AdamW inside and Nesterov momentum outside."""

import numpy as np
import pytest

import flowml as fl
from graphs import diloco
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


class AdamW:
    """Kingma and Ba's update with decoupled decay, one replica's state."""

    def __init__(self):
        self.m, self.v, self.t = zeros(), zeros(), 0

    def step(self, w, rows, lr=0.02, decay=0.1):
        if not len(rows):
            return w
        self.t += 1
        out = {}
        for name, g in softmax_gradient(w, X[rows], Y[rows]).items():
            self.m[name] = 0.9 * self.m[name] + 0.1 * g
            self.v[name] = 0.999 * self.v[name] + 0.001 * g**2
            m, v = self.m[name] / (1 - 0.9**self.t), self.v[name] / (1 - 0.999**self.t)
            out[name] = w[name] - lr * (m / (np.sqrt(v) + 1e-8) + decay * w[name])
        return out


def loop(replicas, steps, period, outer_lr=0.7, outer_momentum=0.9):
    anchor, velocity = zeros(), zeros()
    local, inner = [anchor] * replicas, [AdamW() for _ in range(replicas)]
    for step, rows in enumerate(batches(dealt(len(X), replicas), 10, steps)):
        local = [a.step(w, r) for a, w, r in zip(inner, local, rows, strict=True)]
        if (step + 1) % period == 0:
            drift = {n: anchor[n] - np.mean([w[n] for w in local], axis=0) for n in anchor}
            velocity = {n: outer_momentum * velocity[n] + drift[n] for n in anchor}
            anchor = {
                n: anchor[n] - outer_lr * (drift[n] + outer_momentum * velocity[n]) for n in anchor
            }
            local = [anchor] * replicas
    return anchor, local


@pytest.mark.parametrize("replicas", REPLICAS)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("period", [1, 2, 3])
def test_equals_a_plain_loop(replicas, steps, period):
    graph = diloco.build(MODEL, (X, Y), lr=0.02, weight_decay=0.1, batch_size=10, period=period)
    run = graph.run(steps=steps, replicas=replicas, executor="serial")
    anchor, local = loop(replicas, steps, period)
    assert_close(run.tables["anchor"], anchor)
    for found, expected in zip(run.tables["local"], local, strict=True):
        assert_close(found, expected)


def test_without_outer_momentum_the_outer_step_is_plain():
    graph = diloco.build(
        MODEL,
        (X, Y),
        lr=0.02,
        weight_decay=0.1,
        batch_size=10,
        period=2,
        outer_lr=1.0,
        outer_momentum=0.0,
    )
    run = graph.run(steps=7, replicas=2, executor="serial")
    assert_close(run.tables["anchor"], loop(2, 7, 2, 1.0, 0.0)[0])
