"""rotated_mf equals a loop that takes one rating after another, block after block."""

import numpy as np
import pytest

import flowml as fl
from flowml.data import random_seed
from graphs import rotated_mf

ROWS, COLUMNS, RANK, L2, SEED = 23, 17, 3, 0.05, 4
RNG = np.random.default_rng(2)
CELLS = np.argwhere(RNG.random((ROWS, COLUMNS)) < 0.4)
CELLS = CELLS[RNG.permutation(len(CELLS))]
RATINGS = RNG.normal(size=len(CELLS))
OPTIONS = {"l2": L2, "rank": RANK, "scale": 0.3, "dtype": "float64", "seed": SEED}
SCHEDULE = fl.schedules.step(0.2, every=2, factor=0.5)


def start():
    """Return the factors that nobody has written, shape (ROWS + COLUMNS, RANK)."""
    graph = rotated_mf.build((CELLS, RATINGS), lr=0.0, **OPTIONS)
    run = graph.run(steps=1, replicas=1, executor="serial")
    return run.tables["factors"].at(np.arange(ROWS + COLUMNS))


def block(replica, replicas, clock, blocks):
    """Return the ratings of a block in the order in which they are taken: (row, column, rating)."""
    mine = [
        (int(i), int(j), float(v))
        for (i, j), v in zip(CELLS, RATINGS, strict=True)
        if int(i) % blocks % replicas == replica
        and int(j) % replicas == (replica + clock) % replicas
    ]
    rows, columns = (sorted({cell[axis] for cell in mine}) for axis in (0, 1))
    side = max(len(rows), len(columns), 1)
    entropy = (0, SEED, random_seed("here"), clock, replica)
    rng = np.random.default_rng(np.random.SeedSequence(entropy))
    turns = rng.permutation(side)
    return sorted(
        mine, key=lambda cell: turns[(columns.index(cell[1]) - rows.index(cell[0])) % side]
    )


def loop(steps, replicas, rate, blocks=64):
    """Return the factors after some strata; blocks of one stratum, and all ratings, in a row."""
    factors = start()
    losses = []
    for clock in range(steps):
        for replica in range(replicas):
            errors = []
            for i, j, v in block(replica, replicas, clock, blocks):
                w, h = factors[i].copy(), factors[ROWS + j].copy()
                error = float(w @ h) - v
                factors[i] -= rate(clock) * (error * h + L2 * w)
                factors[ROWS + j] -= rate(clock) * (error * w + L2 * h)
                errors.append(error)
            losses.append(0.5 * np.mean(np.square(errors)) if errors else 0.0)
    return factors, losses


@pytest.mark.parametrize("replicas", [1, 2, 3, 4])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_equals_a_plain_loop(replicas, steps):
    graph = rotated_mf.build((CELLS, RATINGS), lr=SCHEDULE, **OPTIONS)
    run = graph.run(steps=steps, replicas=replicas, executor="serial")
    expected, losses = loop(steps, replicas, SCHEDULE)
    found = run.tables["factors"].at(np.arange(ROWS + COLUMNS))
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(run.history["loss"], losses, rtol=1e-12)


def test_replicas_without_rows_have_no_work():
    graph = rotated_mf.build((CELLS, RATINGS), lr=0.1, blocks=2, **OPTIONS)
    run = graph.run(steps=3, replicas=3, executor="serial")
    expected, _ = loop(3, 3, lambda clock: 0.1, blocks=2)
    found = run.tables["factors"].at(np.arange(ROWS + COLUMNS))
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("replicas", [2, 4])
def test_strata_cover_the_matrix_and_share_nothing(replicas):
    class Here:
        def __init__(self, replica, clock):
            self.replica, self.replicas, self.clock = replica, replicas, clock

        def rng(self):
            return np.random.default_rng(0)

    taken = 0
    for clock in range(replicas):
        keys = []
        for replica in range(replicas):
            share = CELLS[:, 0] % replicas == replica
            found, stratum = rotated_mf._stratum(
                ROWS, (CELLS[share], RATINGS[share]), Here(replica, clock)
            )
            keys += found.tolist()
            taken += len(stratum["rating"])
            for begin, end in zip([0, *stratum["ends"]], stratum["ends"], strict=False):
                for name in ("row", "column"):
                    part = stratum[name][begin:end]
                    assert len(np.unique(part)) == len(part)
        assert len(keys) == len(set(keys))
    assert taken == len(CELLS)


def test_it_finds_the_factors_of_a_matrix():
    left, right = RNG.normal(size=(40, 2)), RNG.normal(size=(30, 2))
    cells = np.argwhere(RNG.random((40, 30)) < 0.5)
    ratings = (left[cells[:, 0]] * right[cells[:, 1]]).sum(1)
    others = np.argwhere(np.ones((40, 30)))
    test = (others, (left[others[:, 0]] * right[others[:, 1]]).sum(1))
    graph = rotated_mf.build(
        (cells, ratings), test=test, lr=0.1, l2=0.0, rank=2, scale=0.5, dtype="float64"
    )
    run = graph.run(steps=600, replicas=2, executor="serial")
    assert run.metrics[0]["rmse"] > 0.5
    assert run.metrics[-1]["rmse"] < 1e-6


@pytest.mark.parametrize(
    "cells", [CELLS.astype(float), CELLS[:, :1], CELLS - 3], ids=["floats", "one", "negative"]
)
def test_ratings_without_a_place_are_refused(cells):
    with pytest.raises(TypeError, match="X must be integers >= 0 of shape"):
        rotated_mf.build((cells, RATINGS))
