"""skip_gram equals a plain loop over pairs; words that keep company come to lie together."""

import math
from collections import defaultdict

import numpy as np
import pytest

import flowml as fl
from flowml.data import random_seed
from graphs import skip_gram
from tests.graphs.orders import ORDERS, REPLICAS, STEPS
from tests.graphs.reference import batches, dealt

WORDS, LENGTH, ROWS, BATCH = 12, 9, 40, 6
WINDOW, NEGATIVES, DRAWN, SUBSAMPLE, RATE, DIMENSIONS, SEED = 3, 5, 4, 0.05, 0.3, 4, 2
OPTIONS = {
    "lr": RATE, "batch_size": BATCH, "dimensions": DIMENSIONS, "window": WINDOW,
    "negatives": NEGATIVES, "drawn": DRAWN, "subsample": SUBSAMPLE, "dtype": "float64",
    "seed": SEED,
}  # fmt: skip
RNG = np.random.default_rng(5)
TEXT = np.minimum(RNG.geometric(0.2, (ROWS, LENGTH)) - 1, WORDS - 1)
TEXT[:3, 6:] = -1
COUNTS = [int((TEXT == word).sum()) for word in range(WORDS)]


def stream(replica, clock):
    entropy = (0, SEED, random_seed("here"), clock, replica)
    return np.random.default_rng(np.random.SeedSequence(entropy))


def drawn(rows, replica, clock):
    """Return pairs (centre, context), and (centre, negative) with weights, of some rows."""
    rng, text = stream(replica, clock), TEXT[rows]
    luck = rng.random(text.shape)
    reach = rng.integers(1, WINDOW + 1, text.shape)
    noise = rng.random((len(text), DRAWN))
    powers = [count**0.75 for count in COUNTS]
    positive, negative = [], []
    for i, row in enumerate(text):
        kept = []
        for j, word in enumerate(row):
            if word >= 0:
                frequency = COUNTS[word] / sum(COUNTS)
                if luck[i, j] < min(1.0, math.sqrt(SUBSAMPLE / frequency)):
                    kept.append((int(word), int(reach[i, j])))
        strangers = []
        for level in noise[i]:
            word, below = 0, powers[0]
            while below / sum(powers) <= level:
                word += 1
                below += powers[word]
            strangers.append(word)
        for at, (centre, far) in enumerate(kept):
            near = [kept[k][0] for k in range(len(kept)) if k != at and abs(k - at) <= far]
            positive += [(centre, context) for context in near]
            negative += [(centre, word, len(near) * NEGATIVES / DRAWN) for word in strangers]
    return positive, negative


def odds(x):
    return 1 / (1 + math.exp(-x))


def gradients(inner, outer, positive, negative):
    """Return the gradients of the sum over pairs, and the mean loss of a pair."""
    to_inner, to_outer = (defaultdict(lambda: np.zeros(DIMENSIONS)) for _ in "ab")
    loss = 0.0
    pairs = [(c, o, 1.0, 1.0) for c, o in positive] + [(c, n, 0.0, w) for c, n, w in negative]
    for centre, other, label, weight in pairs:
        found = odds(inner[centre] @ outer[other])
        loss -= weight * math.log(found if label else 1 - found)
        to_inner[centre] += weight * (found - label) * outer[other]
        to_outer[other] += weight * (found - label) * inner[centre]
    return to_inner, to_outer, loss / max(len(positive), 1)


def adagrad(table, squares, grads):
    for key, g in grads.items():
        squares[key] = squares[key] + g * g
        table[key] = table[key] - RATE * g / (np.sqrt(squares[key]) + 1e-10)


def start():
    """Return the vectors that nobody has written: those that flowml makes for all keys."""
    init = fl.init.uniform(-0.5 / DIMENSIONS, 0.5 / DIMENSIONS, seed=SEED)
    table = fl.sparse_table("inner", DIMENSIONS, init, "float64", rows=WORDS)
    keys = fl.map(lambda x: np.arange(WORDS), fl.load(np.zeros((1, 1)), batch_size=1))
    still = fl.update(table.at(keys), fl.map(np.zeros_like, table.at(keys)), fl.add())
    run = fl.Graph(still).run(steps=1, replicas=1, executor="serial")
    return run.tables["inner"].rows


def loop(events):
    shares, clocks = batches(dealt(ROWS, REPLICAS), BATCH, STEPS), [0] * REPLICAS
    inner, outer = dict(enumerate(start())), {w: np.zeros(DIMENSIONS) for w in range(WORDS)}
    squares = [{w: np.zeros(DIMENSIONS) for w in range(WORDS)} for _ in "ab"]
    seen, touched = {}, (set(), set())
    for kind, replica, *_ in events:
        if kind == "read":
            seen[replica] = dict(inner), dict(outer)
        elif kind == "deliver":
            clock = clocks[replica]
            clocks[replica] += 1
            rows = shares[clock][replica]
            if len(rows):
                to_inner, to_outer, _ = gradients(*seen[replica], *drawn(rows, replica, clock))
                adagrad(inner, squares[0], to_inner)
                adagrad(outer, squares[1], to_outer)
                touched[0].update(to_inner)
                touched[1].update(to_outer)
    return inner, outer, touched


@pytest.mark.parametrize("order", ORDERS)
def test_equals_a_plain_loop(order):
    ran = ORDERS[order](skip_gram.build(TEXT, **OPTIONS))
    *expected, touched = loop(ran.events)
    for name, table, keys in zip(("inner", "outer"), expected, touched, strict=True):
        wanted = np.array([table[word] for word in range(WORDS)])
        np.testing.assert_allclose(ran.tables[name].at(np.arange(WORDS)), wanted, rtol=1e-10)
        assert keys <= set(ran.tables[name].keys.tolist())


def test_the_loss_is_that_of_a_pair():
    run = skip_gram.build(TEXT, **OPTIONS).run(steps=3, replicas=1, executor="serial")
    inner, outer = dict(enumerate(start())), {w: np.zeros(DIMENSIONS) for w in range(WORDS)}
    rows = batches(dealt(ROWS, 1), BATCH, 1)[0][0]
    *_, loss = gradients(inner, outer, *drawn(rows, 0, 0))
    assert loss == pytest.approx((1 + NEGATIVES) * math.log(2))
    assert run.history["loss"][0] == pytest.approx(loss)


def company(rows=600):
    """Return rows, each of words of one of two groups, and pairs with whether they are of one."""
    rng = np.random.default_rng(0)
    text = rng.integers(0, 10, (rows, 12)) + 10 * rng.integers(0, 2, (rows, 1))
    pairs = np.array([(a, b) for a in range(20) for b in range(a)])
    return text, (pairs, (pairs[:, 0] // 10 == pairs[:, 1] // 10).astype(float))


@pytest.mark.parametrize("replicas", [1, 2])
def test_words_that_keep_company_lie_together(replicas):
    text, (pairs, same) = company()
    graph = skip_gram.build(
        text, test=(pairs, same), dimensions=8, batch_size=20, drawn=8, subsample=0.0
    )
    run = graph.run(epochs=4, replicas=replicas, executor="serial")
    vectors = run.tables["inner"].at(np.arange(20))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    alike = (vectors @ vectors.T)[tuple(pairs.T)]
    assert alike[same == 1].min() > alike[same == 0].max()
    # Half of the pairs are alike, all equally: what is best in such a case is below 1.
    assert run.metrics[-1]["spearman"] > 0.8
    assert run.metrics[0]["name"] == "test"


def test_ranks_of_equal_values_are_shared():
    assert skip_gram._ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        (TEXT.astype(float), TypeError, "words must be integers of shape"),
        (np.full((3, 4), -1), ValueError, "the source must hold words, got none"),
    ],
)
def test_a_source_without_words_is_refused(text, error, says):
    with pytest.raises(error, match=says):
        skip_gram.build(text)
