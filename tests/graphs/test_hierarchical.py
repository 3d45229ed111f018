"""hierarchical equals a plain loop of two means, and one mean over all."""

import numpy as np
import pytest

import flowml as fl
from graphs import hierarchical, ssgd
from tests.graphs.reference import (
    CLASSES,
    FEATURES,
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
GROUPS = {1: [[0]], 2: [[0], [1]], 3: [[0, 2], [1]], 5: [[4, 0, 1], [2], [3]]}


def loop(groups, steps):
    replicas = sum(map(len, groups))
    w, velocity = zeros(), zeros()
    for rows in batches(dealt(len(X), replicas), 10, steps):
        inside = []
        for ranks in groups:
            mine = [rows[rank] for rank in sorted(ranks)]
            count = sum(map(len, mine))
            if count:
                inside.append((count, mean_gradient(w, X, Y, mine)))
        total = sum(count for count, _ in inside)
        for name in w:
            mean = sum(count / total * grads[name] for count, grads in inside)
            velocity[name] = 0.9 * velocity[name] + mean
            w[name] = w[name] - 0.3 * velocity[name]
    return w


@pytest.mark.parametrize(("replicas", "groups"), GROUPS.items())
@pytest.mark.parametrize("steps", STEPS)
def test_equals_a_plain_loop(replicas, groups, steps):
    graph = hierarchical.build(MODEL, (X, Y), lr=0.3, momentum=0.9, batch_size=10)
    run = graph.run(steps=steps, replicas=replicas, groups=groups, executor="serial")
    assert_close(run.tables["w"], loop(groups, steps))


@pytest.mark.parametrize("groups", [None, 1, 2, 4, [[0, 3], [1, 2]]])
def test_the_groups_do_not_matter(groups):
    two = hierarchical.build(MODEL, (X, Y), lr=0.3, batch_size=10)
    one = ssgd.build(MODEL, (X, Y), lr=0.3, batch_size=10)
    found = two.run(steps=7, replicas=4, groups=groups, executor="serial")
    expected = one.run(steps=7, replicas=4, executor="serial")
    assert_close(found.tables["w"], expected.tables["w"])


def test_a_group_without_examples_is_left_out():
    source = fl.data.parts([(X[:40], Y[:40]), (X[:0], Y[:0]), (X[40:], Y[40:])])
    graph = hierarchical.build(MODEL, source, lr=0.3, batch_size=10)
    found = graph.run(steps=7, replicas=3, groups=[[0, 2], [1]], executor="serial")
    plain = ssgd.build(MODEL, source, lr=0.3, batch_size=10)
    expected = plain.run(steps=7, replicas=3, executor="serial")
    assert_close(found.tables["w"], expected.tables["w"])
    assert np.abs(found.tables["w"]["W"]).max() > 0
