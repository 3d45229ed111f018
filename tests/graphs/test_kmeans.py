"""kmeans equals Lloyd's loop and scikit-learn's from the same start."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.cluster import KMeans

import flowml as fl
from graphs import kmeans
from tests.graphs.reference import REPLICAS, STEPS, assert_close

CLUSTERS = 4
CORNERS = np.array([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0], [6.0, 6.0]])
RNG = np.random.default_rng(3)
X = CORNERS[RNG.integers(CLUSTERS, size=97)] + RNG.normal(size=(97, 2)) * 1.5


def start(rows, seed=0):
    return rows[np.random.default_rng(seed).choice(len(rows), CLUSTERS, replace=False)]


def lloyd(rows, centres, steps):
    for _ in range(steps):
        distances = np.linalg.norm(rows[:, None] - centres[None], axis=2)
        nearest = distances.argmin(1)
        centres = np.array(
            [
                rows[nearest == k].mean(0) if (nearest == k).any() else centres[k]
                for k in range(len(centres))
            ]
        )
    return centres


@pytest.mark.parametrize("replicas", REPLICAS)
@pytest.mark.parametrize("steps", STEPS)
def test_equals_a_plain_loop(replicas, steps):
    graph = kmeans.build(X, clusters=CLUSTERS, tol=0.0)
    run = graph.run(steps=steps, replicas=replicas, executor="serial")
    assert_close(run.tables["centres"], lloyd(X, start(X), run.steps))
    assert run.steps == steps


@pytest.mark.parametrize("replicas", REPLICAS)
def test_ends_when_no_centre_moves_further_than_tol(replicas):
    graph = kmeans.build(X, clusters=CLUSTERS, tol=0.05)
    run = graph.run(steps=300, replicas=replicas, executor="serial")
    path = [lloyd(X, start(X), n) for n in range(run.steps + 1)]
    moves = [np.linalg.norm(b - a, axis=1).max() for a, b in pairwise(path)]
    assert run.status == "until"
    assert [move <= 0.05 for move in moves] == [False] * (run.steps - 1) + [True]
    assert_close(run.tables["centres"], path[-1])


@pytest.mark.parametrize("replicas", [1, 3])
def test_equals_scikit_learn_from_the_same_start(replicas):
    graph = kmeans.build(X, test=X, clusters=CLUSTERS, tol=0.0, seed=5)
    run = graph.run(steps=300, replicas=replicas, executor="serial")
    theirs = KMeans(CLUSTERS, init=start(X, seed=5), n_init=1, tol=0.0, algorithm="lloyd").fit(X)
    assert run.status == "until"
    assert_close(run.tables["centres"], theirs.cluster_centers_)
    assert run.metrics[-1]["distortion"] == pytest.approx(theirs.inertia_ / len(X), rel=1e-12)


@pytest.mark.parametrize("replicas", REPLICAS)
def test_an_empty_cluster_keeps_its_centre(replicas):
    twins = np.repeat(np.array([[1.0, 1.0], [4.0, 1.0]]), [5, 3], axis=0)
    graph = kmeans.build(twins, clusters=CLUSTERS, tol=0.0)
    run = graph.run(steps=10, replicas=replicas, executor="serial")
    assert_close(run.tables["centres"], start(twins))  # of equal centres, the first takes all


@pytest.mark.parametrize("replicas", [1, 3])
def test_unequal_and_empty_shares(replicas):
    source = fl.data.parts([X[:50], X[50:50], X[50:]])
    graph = kmeans.build(source, clusters=CLUSTERS, tol=0.0)
    run = graph.run(steps=7, replicas=replicas, executor="serial")
    assert_close(run.tables["centres"], lloyd(X, start(X[:50]), 7))


def test_sparse_rows_and_labels():
    rows = np.where(np.abs(X) < 1, 0, X)
    sparse, labelled = (
        kmeans.build(source, clusters=CLUSTERS, test=source).run(
            steps=7, replicas=2, executor="serial"
        )
        for source in (csr_array(rows), (rows, np.zeros(len(rows))))
    )
    assert_close(sparse.tables["centres"], lloyd(rows, start(rows), 7))
    assert_close(sparse.tables["centres"], labelled.tables["centres"])
    assert sparse.metrics[-1]["distortion"] == pytest.approx(labelled.metrics[-1]["distortion"])


def test_whole_numbers_become_floats_wide_enough():
    def dtype(rows):
        run = kmeans.build(rows, clusters=2).run(steps=1, executor="serial")
        return run.tables["centres"].dtype

    assert dtype(np.arange(8, dtype=np.uint8).reshape(4, 2)) == np.float32
    assert dtype(np.arange(8).reshape(4, 2)) == np.float64


@pytest.mark.parametrize("clusters", [0, 98])
def test_more_clusters_than_rows_are_refused(clusters):
    with pytest.raises(ValueError, match=f"clusters must be from 1 to 97.*, got {clusters}"):
        kmeans.build(X, clusters=clusters)
