"""admm equals a plain loop and converges to the optimum of least squares, ridge and lasso."""

import numpy as np
import pytest
from scipy.sparse import csr_array

import flowml as fl
from graphs import admm
from tests.graphs.reference import REPLICAS, STEPS, assert_close, dealt, in_parts

FEATURES = 6
RNG = np.random.default_rng(11)
A = RNG.normal(size=(61, FEATURES))
B = A @ np.array([1.0, -2.0, 0.0, 0.5, 0.0, 3.0]) + 0.3 * RNG.normal(size=61)


def loop(shares, steps, rho, l1, l2):
    """Run the unscaled form of the algorithm: dual variables y = rho * u."""
    count = len(shares)
    z = np.zeros(FEATURES)
    y = np.zeros((count, FEATURES))
    for _ in range(steps):
        x = np.array(
            [
                np.linalg.inv(A[s].T @ A[s] + rho * np.eye(FEATURES))
                @ (A[s].T @ B[s] - d + rho * z)
                for s, d in zip(shares, y, strict=True)
            ]
        )
        pull = (rho * x + y).sum(0)  # z minimises l1|z| + l2/2 |z|^2 + count rho/2 |z|^2 - pull.z
        z = np.sign(pull) * np.maximum(np.abs(pull) - l1, 0) / (count * rho + l2)
        y = y + rho * (x - z)
    return x, y, z


@pytest.mark.parametrize("replicas", REPLICAS)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("penalties", [(0.0, 0.0), (0.0, 2.0), (3.0, 0.0), (3.0, 2.0)])
def test_equals_a_plain_loop(replicas, steps, penalties):
    l1, l2 = penalties
    graph = admm.build((A, B), rho=5.0, l1=l1, l2=l2, tol=0.0)
    run = graph.run(steps=steps, replicas=replicas, executor="serial")
    x, y, z = loop(dealt(len(A), replicas), steps, 5.0, l1, l2)
    # The inverse and the solve round differently; the duals of one replica are 0 to rounding.
    assert_close(run.tables["z"], z)
    assert_close(np.array(run.tables["x"]), x)
    assert np.abs(5.0 * np.array(run.tables["u"]) - y).max() <= 1e-12 * np.abs(5.0 * x).max()


@pytest.mark.parametrize("replicas", [1, 2, 3, 5])
def test_least_squares(replicas):
    graph = admm.build((A, B), test=(A, B), rho=10.0, tol=1e-10)
    run = graph.run(steps=500, replicas=replicas, executor="serial")
    best = np.linalg.lstsq(A, B, rcond=None)[0]
    assert run.status == "until"
    assert_close(run.tables["z"], best, rtol=1e-8)
    expected = 0.5 * np.mean((A @ best - B) ** 2)
    assert run.metrics[-1]["loss"] == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("replicas", [1, 3])
def test_ridge_on_sparse_rows_with_weights(replicas):
    weight = RNG.uniform(0, 2, len(A))
    sparse = np.where(np.abs(A) < 0.5, 0, A)
    graph = admm.build(fl.data.arrays(csr_array(sparse), B, weight), rho=10.0, l2=4.0, tol=1e-10)
    run = graph.run(steps=500, replicas=replicas, executor="serial")
    gram = sparse.T @ (weight[:, None] * sparse) + 4.0 * np.eye(FEATURES)
    assert run.status == "until"
    assert_close(run.tables["z"], np.linalg.solve(gram, sparse.T @ (weight * B)), rtol=1e-8)


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_lasso_meets_the_conditions_of_its_optimum(replicas):
    run = admm.build((A, B), rho=10.0, l1=20.0, tol=1e-11).run(
        steps=1000, replicas=replicas, executor="serial"
    )
    z = run.tables["z"]
    slope = A.T @ (A @ z - B)  # -l1 * sign(z) where z is not 0, within [-l1, l1] where it is
    kept = z != 0
    assert run.status == "until"
    assert 0 < kept.sum() < FEATURES
    np.testing.assert_allclose(slope[kept], -20.0 * np.sign(z[kept]), rtol=1e-8)
    assert np.abs(slope[~kept]).max() < 20.0


@pytest.mark.parametrize("sizes", [(40, 1, 20), (30, 0, 31)])
def test_unequal_and_empty_shares(sizes):
    shares = in_parts(sizes)
    source = fl.data.parts([(A[s], B[s]) for s in shares])
    run = admm.build(source, rho=5.0, l1=3.0, tol=0.0).run(steps=7, replicas=3, executor="serial")
    _, _, z = loop([s for s in shares if len(s)], 7, 5.0, 3.0, 0.0)
    assert_close(run.tables["z"], z)
