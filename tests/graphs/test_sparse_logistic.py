"""sparse_logistic equals a plain loop over a dict of weights; on real flights it ranks well."""

import math
from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from graphs import sparse_logistic
from graphs.sparse_logistic import Hashing
from tests.graphs.orders import BATCH, ORDERS, REPLICAS, STEPS
from tests.graphs.reference import batches, dealt

ROWS, COLUMNS, BITS = 61, 3, 5
RNG = np.random.default_rng(11)
X = RNG.integers(-3, 9, (ROWS, COLUMNS))
Y = (RNG.normal(size=ROWS) + X[:, 0] > 2).astype(int)
WRAP = 1 << 64


def mixed(x):
    for shift, factor in ((33, 0xFF51AFD7ED558CCD), (33, 0xC4CEB9FE1A85EC53)):
        x = (x ^ (x >> shift)) * factor % WRAP
    return x ^ (x >> 33)


def features(row, degree, signed):
    """Return (key, sign) of each feature, by integers of Python."""
    golden, pair = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F
    hashes = [mixed((int(v) + (i + 1) * golden) % WRAP) for i, v in enumerate(row)]
    if degree == 2:
        n = len(hashes)
        pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
        hashes += [mixed((hashes[i] + pair * hashes[j]) % WRAP) for i, j in pairs]
    found = [(h >> (64 - BITS), 1 if h % 2 or not signed else -1) for h in hashes]
    return [*found, (1 << BITS, 1)]


def gradient(w, rows, degree, signed):
    """Return the sum of the gradients of some examples, a number a key."""
    total = defaultdict(float)
    for row in rows:
        here = features(X[row], degree, signed)
        odds = 1 / (1 + math.exp(-sum(sign * w.get(key, 0.0) for key, sign in here)))
        for key, sign in here:
            total[key] += sign * (odds - Y[row])
    return total


class Ftrl:
    """The weights of algorithm 1, one at a time."""

    def __init__(self, alpha, beta, l1, l2):
        self.numbers, self.z, self.n = (alpha, beta, l1, l2), {}, {}

    def apply(self, w, grads):
        alpha, beta, l1, l2 = self.numbers
        for key, g in grads.items():
            n = self.n.get(key, 0.0)
            sigma = (math.sqrt(n + g * g) - math.sqrt(n)) / alpha
            z = self.z[key] = self.z.get(key, 0.0) + g - sigma * w.get(key, 0.0)
            n = self.n[key] = n + g * g
            sign = math.copysign(1.0, z)
            w[key] = (
                0.0 if abs(z) <= l1 else -(z - sign * l1) / ((beta + math.sqrt(n)) / alpha + l2)
            )


class Adagrad:
    def __init__(self, rate):
        self.rate, self.n = rate, {}

    def apply(self, w, grads):
        for key, g in grads.items():
            n = self.n[key] = self.n.get(key, 0.0) + g * g
            w[key] = w.get(key, 0.0) - self.rate * g / (math.sqrt(n) + 1e-10)


def loop(events, rule, degree=1, signed=True):
    rows, clocks = batches(dealt(ROWS, REPLICAS), BATCH, STEPS), [0] * REPLICAS
    w, seen = {}, {}
    for kind, replica, *_ in events:
        if kind == "read":
            seen[replica] = dict(w)
        elif kind == "deliver":
            mine = rows[clocks[replica]][replica]
            clocks[replica] += 1
            if len(mine):
                rule.apply(w, gradient(seen[replica], mine, degree, signed))
    return w


def assert_rows(found, expected):
    assert found.keys.tolist() == sorted(expected)
    wanted = np.array([expected[key] for key in sorted(expected)])
    np.testing.assert_allclose(found.rows[:, 0], wanted, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("degree", "signed"), [(1, False), (2, True)])
def test_ftrl_equals_a_plain_loop(order, degree, signed):
    options = {"degree": degree, "signed": signed, "bits": BITS, "batch_size": BATCH}
    graph = sparse_logistic.build(
        (X, Y), lr=0.3, beta=0.5, l1=2.0, l2=0.1, dtype="float64", **options
    )
    ran = ORDERS[order](graph)
    expected = loop(ran.events, Ftrl(0.3, 0.5, 2.0, 0.1), degree, signed)
    assert_rows(ran.tables["w"], expected)
    zeros = list(expected.values()).count(0.0)
    assert 0 < zeros < len(expected) / 2


@pytest.mark.parametrize("order", ORDERS)
def test_adagrad_equals_a_plain_loop(order):
    graph = sparse_logistic.build(
        (X, Y), rule="adagrad", lr=0.2, bits=BITS, batch_size=BATCH, dtype="float64"
    )
    ran = ORDERS[order](graph)
    assert_rows(ran.tables["w"], loop(ran.events, Adagrad(0.2)))


def test_sync_equals_a_loop_over_joined_batches():
    graph = sparse_logistic.build(
        (X, Y), promise="sync", lr=0.3, l1=0.7, bits=BITS, batch_size=BATCH, dtype="float64"
    )
    run = graph.run(steps=STEPS, replicas=REPLICAS, executor="serial")
    w, rule = {}, Ftrl(0.3, 1.0, 0.7, 0.0)
    for rows in batches(dealt(ROWS, REPLICAS), BATCH, STEPS):
        rule.apply(w, gradient(w, np.concatenate(rows), 1, True))
    assert_rows(run.tables["w"], w)


def test_predictions_and_evaluations_are_those_of_the_weights():
    graph = sparse_logistic.build((X, Y), test=(X, Y), bits=BITS, batch_size=BATCH, dtype="float64")
    run = graph.run(epochs=3, replicas=2, executor="serial")
    w = dict(zip(run.tables["w"].keys.tolist(), run.tables["w"].rows[:, 0], strict=True))
    scores = [sum(sign * w.get(key, 0.0) for key, sign in features(row, 1, True)) for row in X]
    odds = 1 / (1 + np.exp(-np.array(scores)))
    np.testing.assert_allclose(Hashing(BITS).predict(run.tables["w"], X), odds, rtol=1e-12)
    last = run.metrics[-1]
    loss = -np.mean(np.log(np.where(Y > 0, odds, 1 - odds)))
    assert last["loss"] == pytest.approx(loss)
    assert last["score"] == pytest.approx(np.mean((odds > 0.5) == Y))
    assert last["loss"] < run.metrics[0]["loss"] < math.log(2)


def test_a_category_is_told_apart_by_its_column_and_its_neighbour():
    keys, signs = Hashing(bits=30, degree=2).features(np.array([[1, 2, 3], [2, 1, 3]]))
    assert keys.shape == signs.shape == (2, 3 + 3 + 1)
    same = keys[0] == keys[1]
    assert same.tolist() == [False, False, True, False, False, False, True]
    many = np.arange(40_000)[:, None]
    keys, signs = Hashing(bits=10).features(many)
    assert abs(signs[:, 0].mean()) < 0.02
    counts = np.bincount(keys[:, 0], minlength=1024)
    assert ((counts - 40_000 / 1024) ** 2).sum() / (40_000 / 1024) < 1024 + 5 * math.sqrt(2 * 1024)


def test_a_category_is_its_number_whatever_its_dtype():
    whole, _ = Hashing().features(X)
    assert np.array_equal(whole, Hashing().features(X.astype(np.float32))[0])
    some = np.array([[0.0], [-0.0], [0.5], [np.nan], [2.0**70], [np.inf], [1.0]])
    assert len(np.unique(Hashing(bits=40).features(some)[0][:, 0])) == 6
    with pytest.raises(TypeError, match="categories must be numbers, got complex128"):
        Hashing().features(X.astype(complex))


KNOWN_BEFORE = (
    "Year", "Month", "DayofMonth", "DayOfWeek", "UniqueCarrier", "FlightNum", "TailNum", "Origin",
    "Dest",
)  # fmt: skip
"""Columns of a flight that are known before it leaves; the hour and the day are made of others."""


def flights(path):
    table = pd.read_csv(path, encoding="latin-1", dtype=str, keep_default_na=False)
    columns = {name: table[name] for name in KNOWN_BEFORE}
    columns["hour"] = table["CRSDepTime"].astype(int) // 100
    columns["day"] = table["Year"] + "-" + table["Month"] + "-" + table["DayofMonth"]
    X = np.stack([pd.factorize(column)[0] for column in columns.values()], 1)
    return X, (table["IsDepDelayed"] == "YES").to_numpy().astype(np.int8)


def test_airlines(flowml_data, client):
    X, y = flights(flowml_data / "airlines44k" / "airlines.csv.gz")
    order = np.random.default_rng(0).permutation(len(X))
    held, train = order[: len(X) // 5], order[len(X) // 5 :]
    graph = sparse_logistic.build((X[train], y[train]), lr=0.05, l1=1.0, bits=20, degree=2)
    run = graph.run(epochs=2, replicas=2)
    found = Hashing(20, 2).predict(run.tables["w"], X[held])
    assert roc_auc_score(y[held], found) >= 0.78
    assert 0.2 < np.mean(run.tables["w"].rows == 0) < 0.9
