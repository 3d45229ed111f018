"""K x b = K*b where it should hold, and the table that is named where it does not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

import flowml as fl
from flowml.events import Warned

RNG = np.random.default_rng(0)
X = RNG.normal(size=(23, 3))
Y = RNG.integers(0, 2, 23)
HERE = "test_equivalence.py"


def graph(
    rule: Any = None,
    how: Any = "mean",
    dtype: str = "float64",
    source: Any = None,
    weight: Any = None,
    **load: Any,
) -> fl.Graph:
    model = fl.models.softmax(3, 2, dtype=dtype)
    w = fl.table("w", model.init(seed=1))
    rows = fl.load((X.astype(dtype), Y) if source is None else source, **{"batch_size": 4} | load)
    mean = fl.aggregate(how, fl.gradient(model, w, rows), name="mean", weight=weight)
    return fl.Graph(fl.update(w, mean, rule or fl.sgd(0.1)), name="g")


def pushes(rule: Any, read: Callable[[Any], Any] = lambda w: w) -> fl.Graph:
    model = fl.models.softmax(3, 2, dtype="float64")
    w = fl.table("w", model.init(seed=1))
    grad = fl.gradient(model, read(w), fl.load((X, Y), batch_size=4))
    return fl.Graph(fl.update(w, grad, rule, name="push"), name="g")


def kmeans() -> fl.Graph:
    centres = fl.table("centres", X[:2])
    near = fl.map(
        lambda c, x: {"n": np.array(len(x)), "s": x.sum(0)}, centres, fl.load(X, batch_size=None)
    )
    total = fl.aggregate("sum", near)
    return fl.Graph(
        fl.assign(centres, fl.map(lambda c, t: c * 0 + t["s"] / t["n"], centres, total))
    )


def local_sgd() -> fl.Graph:
    model = fl.models.linear(3, dtype="float64")
    anchor = fl.table("anchor", model.init(seed=0))
    local = fl.table("local", model.init(seed=0), scope="replica")
    rows = fl.load((X[:20], X[:20, 0]), batch_size=4)
    moved = fl.update(local, fl.gradient(model, local, rows), fl.sgd(0.1))
    drift = fl.map(lambda a, m: {k: a[k] - m[k] for k in a}, anchor, moved.every(8))
    outer = fl.update(anchor, fl.aggregate("mean", drift, weight="equal"), fl.sgd(1.0))
    return fl.Graph(moved, outer, fl.assign(local, outer))


SAME: list[tuple[Callable[[], fl.Graph], float]] = [
    (graph, 1e-12),
    (lambda: graph(fl.sgd(0.1, momentum=0.9, nesterov=True, weight_decay=0.01)), 1e-12),
    (lambda: graph(fl.adagrad(0.1)), 1e-9),
    (lambda: graph(fl.clip_norm(0.1, fl.sgd(0.1))), 1e-12),
    (lambda: graph(dtype="float32"), 1e-5),
    (lambda: graph(batch_size=None), 1e-12),
    (lambda: graph(batch_size=99), 1e-12),
    (lambda: graph(source=(csr_array(X), Y)), 1e-12),
    (lambda: graph(source=fl.data.arrays(X, Y, weight=RNG.random(23))), 1e-12),
    (lambda: graph(source=fl.data.parts([(X[:9], Y[:9]), (X[9:], Y[9:])])), 1e-12),
    (kmeans, 1e-12),
    (local_sgd, 1e-12),
]


@pytest.mark.parametrize("replicas", [1, 2, 3, 7])
@pytest.mark.parametrize(("make", "bound"), SAME)
def test_a_mean_by_examples_is_equivalent(
    make: Callable[[], fl.Graph], bound: float, replicas: int
) -> None:
    if make is local_sgd and replicas > 5:
        replicas = 5  # equal weights are by examples only where all batches are of one size
    assert make().check_equivalent(replicas) <= bound


def test_groups_make_no_difference() -> None:
    model = fl.models.softmax(3, 2, dtype="float64")
    w = fl.table("w", model.init(seed=1))
    inside = fl.aggregate(
        "mean", fl.gradient(model, w, fl.load((X, Y), batch_size=4)), within="rack"
    )
    two = fl.Graph(fl.update(w, fl.aggregate("mean", inside), fl.sgd(0.1)))
    assert two.check_equivalent(5, groups=2) <= 1e-12


def test_it_tells_when_there_are_more_replicas_than_rows() -> None:
    assert graph(source=(X[:3], Y[:3])).check_equivalent(8) <= 1e-12


def noisy() -> fl.Graph:
    model = fl.models.softmax(3, 2, dtype="float64")
    w = fl.table("w", model.init(seed=1))
    grad = fl.gradient(model, w, fl.load((X, Y), batch_size=4))
    noise = fl.map(
        lambda g, h: {k: v + h.rng().normal(size=v.shape) for k, v in g.items()}, grad, fl.here()
    )
    return fl.Graph(fl.update(w, fl.aggregate("mean", noise), fl.sgd(0.1)))


def sum_of_a_loss() -> fl.Graph:
    w = fl.table("w", np.ones(3))
    grad = fl.gradient(lambda w, x: np.sum((x @ w) ** 2), w, fl.load(X, batch_size=4))
    return fl.Graph(fl.update(w, fl.aggregate("mean", grad), fl.sgd(0.1)))


DIFFERENT: list[tuple[Callable[[], fl.Graph], str]] = [
    (lambda: graph(how="sum"), f"operator 'mean' ({HERE}:"),
    (lambda: graph(how="median"), f"operator 'mean' ({HERE}:"),
    (lambda: graph(weight="equal", source=(X[:4], Y[:4]), batch_size=3), "is not a mean weighed"),
    (lambda: pushes(fl.sgd(0.1)), f"The pushes of operator 'push' ({HERE}:"),
    (noisy, "Random numbers of fl.here()"),
    (sum_of_a_loss, "is not a mean over the examples of its batch"),
]


@pytest.mark.parametrize(("make", "suspect"), DIFFERENT)
def test_the_table_that_differs_is_named(make: Callable[[], fl.Graph], suspect: str) -> None:
    with pytest.raises(fl.PlanError) as caught:
        make().check_equivalent(3)
    text = str(caught.value)
    assert text.startswith(f"table 'w' ({HERE}:")
    assert "one step of 3 replicas must equal one of a single replica" in text
    assert suspect in text
    assert caught.value.fields["difference"] > 1e-3
    assert caught.value.fields["table"] == "w"


def test_a_sum_of_three_is_too_large_by_two() -> None:
    """Shares of one size and gradients alike: the sum moves the table three times as far."""
    same = (np.tile(X[0], (12, 1)), np.ones(12, int))
    with pytest.raises(fl.PlanError) as caught:
        graph(how="sum", source=same).check_equivalent(3)
    assert caught.value.fields["difference"] == pytest.approx(2.0)


def test_the_first_table_that_differs_is_named() -> None:
    a, b = fl.table("a", np.zeros(3)), fl.table("b", np.zeros(3))
    x = fl.map(lambda x: x.mean(0), fl.load(X, batch_size=4))
    good, bad = fl.aggregate("mean", x), fl.aggregate("sum", x)
    with pytest.raises(fl.PlanError, match="table 'b'"):
        fl.Graph(fl.assign(a, good), fl.assign(b, bad)).check_equivalent(2)


def test_a_tolerance_may_be_given() -> None:
    unequal = graph(weight="equal", source=(X[:7], Y[:7]), batch_size=4)
    found = unequal.check_equivalent(2, tolerance=0.9)
    assert 1e-9 < found < 0.9
    with pytest.raises(fl.PlanError):
        unequal.check_equivalent(2, tolerance=found / 2)


def test_tables_of_replicas_alone_have_nothing_to_compare() -> None:
    local = fl.table("local", np.zeros(3), scope="replica")
    alone = fl.Graph(fl.assign(local, fl.map(lambda x: x.mean(0), fl.load(X, batch_size=4))))
    with pytest.raises(fl.PlanError, match="compares global tables"):
        alone.check_equivalent(2)


def test_replicas_and_seed_are_checked() -> None:
    with pytest.raises(fl.PlanError, match="replicas: must be an integer >= 1"):
        graph().check_equivalent(0)
    with pytest.raises(fl.PlanError, match="seed: must be an integer >= 0"):
        graph().check_equivalent(2, seed=-1)


# K pushes a step under a learning rate


@pytest.mark.parametrize(
    ("rule", "word"),
    [
        (fl.sgd(0.1), "sgd"),
        (fl.adam(0.1), "adam"),
        (fl.clip_norm(1.0, fl.adagrad(0.1)), "clip_norm"),
    ],
)
def test_pushes_under_a_learning_rate_are_noted(
    rule: Any, word: str, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Any] = []
    made = pushes(rule)
    with caplog.at_level(logging.WARNING, "flowml"):
        made.run(steps=2, replicas=3, executor="serial", on_event=told.append)
    (text,) = [e.text for e in told if isinstance(e, Warned)]
    assert text.startswith(f"operator 'push' ({HERE}:")
    assert "3 pushes a step into table 'w'" in text
    assert word in text
    assert "are a sum" in text
    assert 'fl.aggregate("mean", values)' in text
    assert caplog.messages == [text]
    assert f"note: {text}" in str(made.explain(3))


@pytest.mark.parametrize(
    ("make", "replicas"),
    [
        (lambda: pushes(fl.add(-0.1)), 3),
        (lambda: pushes(fl.sgd(0.1)), 1),
        (lambda: pushes(fl.sgd(0.1), lambda w: w.async_()), 3),
        (lambda: pushes(fl.sgd(0.1), lambda w: w.stale(2)), 3),
        (graph, 3),
        (kmeans, 3),
        (local_sgd, 3),
    ],
)
def test_what_is_meant_is_not_noted(
    make: Callable[[], fl.Graph], replicas: int, caplog: pytest.LogCaptureFixture
) -> None:
    made = make()
    with caplog.at_level(logging.WARNING, "flowml"):
        made.run(steps=1, replicas=replicas, executor="serial")
    assert caplog.messages == []
    assert "note:" not in str(made.explain(replicas))


def of_rows(kind: str, how: str | None = "mean", rule: Any = None) -> fl.Graph:
    """Return a graph that pulls the rows of three keys an example towards targets."""
    rng = np.random.default_rng(2)
    ids, wanted = rng.integers(0, 9, (23, 3)), rng.normal(size=(23, 3, 2))
    init = fl.init.normal(0.1, seed=3)
    if kind == "dense":
        u = fl.table("w", np.linspace(0, 1, 18).reshape(9, 2))
    else:
        known = 9 if kind == "direct" else None
        u = fl.sparse_table("w", 2, init=init, dtype="float64", rows=known)
    batch = fl.load((ids, wanted), batch_size=4)
    keys, target = fl.map(lambda b: (b[0], b[1]), batch, outputs=2, name="split")

    @fl.value_and_grad
    def distance(found: Any, target: Any) -> Any:
        return float(((found - target) ** 2).mean()), (found - target) / len(target)

    grads = fl.gradient(distance, u.at(keys), target)
    if how is None:
        return fl.Graph(fl.update(u.at(keys), grads, rule or fl.sgd(0.1), name="push"))
    return fl.Graph(fl.update(u, fl.aggregate(how, grads.at(keys)), rule or fl.sgd(0.1)))


@pytest.mark.parametrize("replicas", [1, 2, 5, 7])
@pytest.mark.parametrize("rule", [fl.sgd(0.1), fl.adagrad(0.1)])
@pytest.mark.parametrize("kind", ["direct", "hash", "dense"])
def test_a_mean_of_rows_is_equivalent(kind: str, rule: Any, replicas: int) -> None:
    """One replica names a row once where several do; all have seen the same examples."""
    assert of_rows(kind, rule=rule).check_equivalent(replicas) <= 1e-9


@pytest.mark.parametrize("how", ["sum", None])
@pytest.mark.parametrize("kind", ["direct", "hash", "dense"])
def test_a_sum_of_rows_is_not(kind: str, how: str | None) -> None:
    with pytest.raises(fl.PlanError, match="table 'w'") as caught:
        of_rows(kind, how).check_equivalent(3)
    suspect = "The pushes of operator 'push'" if how is None else "is not a mean weighed by"
    assert suspect in str(caught.value)
    assert 1.0 < caught.value.fields["difference"] < 3.0


def test_a_quorum_has_all_in_it_and_a_codec_sends_all() -> None:
    model = fl.models.softmax(3, 2, dtype="float64")
    w = fl.table("w", model.init(seed=1))
    grad = fl.gradient(model, w, fl.load((X, Y), batch_size=4))
    marked = grad.quorum(1, late="drop").compress(fl.codecs.top_k(0.1))
    whole = fl.Graph(fl.update(w, fl.aggregate("mean", marked), fl.sgd(0.1)))
    assert whole.check_equivalent(4) <= 1e-12
