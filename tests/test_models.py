"""Models: gradients against finite differences, weights, sparse rows, buffers, checks."""

from __future__ import annotations

import pickle

import autograd.numpy as anp
import numpy as np
import pytest
import scipy.sparse
from dask.base import tokenize

import flowml as fl
from flowml.differentiate import loss_gradient
from flowml.errors import DataError, GraphError

FEATURES, ROWS = 6, 17


def models(dtype, l2=0.0):
    return {
        "linear": fl.models.linear(FEATURES, l2=l2, dtype=dtype),
        "linear without b": fl.models.linear(FEATURES, l2=l2, dtype=dtype, intercept=False),
        "logistic": fl.models.logistic(FEATURES, l2=l2, dtype=dtype),
        "logistic without b": fl.models.logistic(FEATURES, l2=l2, dtype=dtype, intercept=False),
        "softmax": fl.models.softmax(FEATURES, 4, l2=l2, dtype=dtype),
        "mlp": fl.models.mlp([FEATURES, 5, 4], l2=l2, dtype=dtype),
        "deep mlp": fl.models.mlp([FEATURES, 7, 5, 4], l2=l2, dtype=dtype),
    }


NAMES = list(models("float32"))


def problem(name, dtype="float64", rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, FEATURES)).astype(dtype)
    if name.startswith("linear"):
        return X, rng.normal(size=rows).astype(dtype)
    return X, rng.integers(0, 2 if name.startswith("logistic") else 4, rows)


def somewhere(model, seed=1):
    rng = np.random.default_rng(seed)
    return {k: (v + rng.normal(size=v.shape)).astype(v.dtype) for k, v in model.init(0).items()}


def plain_loss(name, l2):
    """Return the same loss once more, row by row as it is printed, for autograd."""

    def loss(params, X, y):
        if name.startswith(("linear", "logistic")):
            z = X @ params["w"] + (params["b"] if "b" in params else 0.0)
            signs = np.where(y > 0, 1.0, -1.0)
            rows = (z - y) ** 2 / 2 if name.startswith("linear") else anp.log1p(anp.exp(-signs * z))
            return anp.mean(rows) + l2 / 2 * anp.sum(params["w"] ** 2)
        if name == "softmax":
            z, matrices = X @ params["W"] + params["b"], [params["W"]]
        else:
            z, matrices = X, []
            for i in range(len(params) // 2):
                z = z @ params[f"W{i}"] + params[f"b{i}"]
                z = z if f"W{i + 1}" not in params else anp.maximum(z, 0)
                matrices.append(params[f"W{i}"])
        rows = anp.log(anp.sum(anp.exp(z), axis=1)) - z[np.arange(len(y)), y]
        return anp.mean(rows) + l2 / 2 * sum(anp.sum(W**2) for W in matrices)

    return loss


@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("name", NAMES)
def test_gradient_agrees_with_autograd(name, l2):
    model = models("float64", l2)[name]
    params, batch = somewhere(model), problem(name)
    loss, grads = model.value_and_grad(params, batch)
    expected, slopes = loss_gradient(plain_loss(name, l2)).value_and_grad(params, *batch)
    assert loss == pytest.approx(expected, rel=1e-12)
    assert grads.keys() == params.keys()
    for leaf in params:
        np.testing.assert_allclose(grads[leaf], slopes[leaf], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_agrees_with_finite_differences(name):
    model = models("float64", 0.3)[name]
    params, batch = somewhere(model), problem(name)
    weighted = (*batch, np.random.default_rng(2).random(ROWS))
    _, grads = model.value_and_grad(params, weighted)
    for leaf, values in params.items():
        for i in np.ndindex(values.shape):
            ends = []
            for h in (1e-6, -1e-6):
                moved = {k: v.copy() for k, v in params.items()}
                moved[leaf][i] += h
                ends.append(model.loss(moved, weighted))
            assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(grads[leaf][i], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_out_is_filled_with_the_same_bits(name, dtype):
    model = models(dtype, 0.1)[name]
    params, (X, y) = somewhere(model), problem(name, dtype)
    for array in (*params.values(), X, y):
        array.flags.writeable = False
    loss, grads = model.value_and_grad(params, (X, y))
    flat = np.full(sum(p.size for p in params.values()) + 1, np.nan, dtype)
    out, start = {}, 1
    for leaf, values in params.items():
        out[leaf] = flat[start : start + values.size].reshape(values.shape)
        start += values.size
    again, returned = model.value_and_grad(params, (X, y), out=out)
    assert returned is out
    assert (again, model.loss(params, (X, y))) == (loss, loss)
    for leaf in params:
        assert grads[leaf].dtype == dtype
        assert grads[leaf].tobytes() == out[leaf].tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_weights_mean_repeated_rows(name):
    model = models("float64", 0.1)[name]
    params, (X, y) = somewhere(model), problem(name)
    times = np.random.default_rng(3).integers(0, 4, ROWS)
    loss, grads = model.value_and_grad(params, (X, y, times))
    repeated = (np.repeat(X, times, axis=0), np.repeat(y, times))
    expected, slopes = model.value_and_grad(params, repeated)
    assert loss == pytest.approx(expected, rel=1e-12)
    assert model.loss(params, (X, y, times.astype("f4"))) == pytest.approx(loss, rel=1e-12)
    for leaf in params:
        np.testing.assert_allclose(grads[leaf], slopes[leaf], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_parts_of_a_batch_average_to_the_whole(name):
    model = models("float64")[name]
    params, (X, y) = somewhere(model), problem(name)
    _, whole = model.value_and_grad(params, (X, y))
    parts = [(slice(0, 5), 5), (slice(5, ROWS), ROWS - 5)]
    for leaf in params:
        mean = sum(n * model.value_and_grad(params, (X[s], y[s]))[1][leaf] for s, n in parts) / ROWS
        np.testing.assert_allclose(mean, whole[leaf], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("form", [scipy.sparse.csr_array, scipy.sparse.csr_matrix])
@pytest.mark.parametrize("name", NAMES)
def test_sparse_rows_equal_dense_ones(name, form):
    model = models("float64", 0.1)[name]
    params, (X, y) = somewhere(model), problem(name)
    X = np.where(X > 0.3, X, 0.0)
    loss, grads = model.value_and_grad(params, (X, y))
    out = {leaf: np.full_like(values, np.nan) for leaf, values in params.items()}
    again, _ = model.value_and_grad(params, (form(X.astype("f4")), y), out=out)
    sparse, slopes = model.value_and_grad(params, (form(X), y))
    assert sparse == pytest.approx(loss, rel=1e-12)
    assert again == pytest.approx(loss, rel=1e-5)
    model.check_batch((form(X), y))
    assert np.array_equal(model.predict(params, form(X)) > 0, model.predict(params, X) > 0)
    for leaf in params:
        np.testing.assert_allclose(slopes[leaf], grads[leaf], rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(out[leaf], grads[leaf], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("x_dtype", ["uint8", "float16", "float64", "int32"])
@pytest.mark.parametrize("name", NAMES)
def test_work_is_done_in_the_dtype_of_the_parameters(name, x_dtype):
    model = models("float32")[name]
    params, (X, y) = somewhere(model), problem(name)
    X = np.abs(X * 10).astype(x_dtype)
    loss, grads = model.value_and_grad(params, (X, y, np.ones(ROWS)))
    expected, slopes = model.value_and_grad(params, (X.astype("f4"), y, np.ones(ROWS, "f4")))
    assert loss == expected
    assert all(np.array_equal(grads[leaf], slopes[leaf]) for leaf in params)
    assert all(grads[leaf].dtype == np.float32 for leaf in params)


@pytest.mark.parametrize("y_dtype", ["uint8", "int32", "float32", "float64"])
@pytest.mark.parametrize("name", ["softmax", "mlp", "logistic"])
def test_labels_may_have_any_dtype(name, y_dtype):
    model = models("float32")[name]
    params, (X, y) = somewhere(model), problem(name, "float32", rows=300)
    expected = model.value_and_grad(params, (X, y))
    loss, grads = model.value_and_grad(params, (X, y.astype(y_dtype)))
    assert loss == expected[0]
    assert all(np.array_equal(grads[leaf], expected[1][leaf]) for leaf in params)


@pytest.mark.parametrize("rows", [0, ROWS])
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_weight_has_no_loss_and_no_gradient(name, rows):
    model = models("float64")[name]
    X, y = problem(name, rows=rows)
    loss, grads = model.value_and_grad(somewhere(model), (X, y, np.zeros(rows)))
    assert loss == 0.0
    assert not any(g.any() for g in grads.values())
    if not rows:
        assert model.value_and_grad(somewhere(model), (X, y))[0] == 0.0
        model.check_batch((X, y))


@pytest.mark.parametrize("name", ["logistic", "softmax", "mlp"])
def test_far_scores_neither_overflow_nor_lose_the_loss(name):
    model = models("float32")[name]
    params = {k: np.zeros_like(v) for k, v in model.init(0).items()}
    first = "w" if name == "logistic" else ("W" if name == "softmax" else "W0")
    params[first][...] = 0
    params[first].reshape(FEATURES, -1)[0, 0] = 1000.0
    if name == "mlp":
        params["W1"][0, 0] = 1.0
    X = np.zeros((2, FEATURES), "f4")
    X[:, 0] = (1, 1)
    right, wrong = (1, 0) if name == "logistic" else (0, 1)
    loss, grads = model.value_and_grad(params, (X, np.array([right, wrong])))
    assert loss == pytest.approx(500.0, rel=1e-3)
    assert all(np.isfinite(g).all() for g in grads.values())
    assert any(g.any() for g in grads.values())


def test_both_spellings_of_two_classes_mean_the_same():
    model = models("float32")["logistic"]
    params, (X, y) = somewhere(model), problem("logistic", "float32")
    zero_one, signs = (X, y), (X, 2 * y - 1)
    for batch in (zero_one, signs, (X, y.astype(bool))):
        model.check_batch(batch)
        assert model.loss(params, batch) == model.loss(params, zero_one)
        assert model.score(params, *batch) == model.score(params, *zero_one)


@pytest.mark.parametrize(
    ("name", "goal"), [("linear", 0.99), ("logistic", 0.95), ("softmax", 0.9), ("mlp", 0.9)]
)
def test_descent_learns_what_can_be_learned(name, goal):
    model = models("float32")[name]
    X, _ = problem(name, "float32", rows=400)
    truth = np.random.default_rng(9).normal(size=(FEATURES, 4))
    if name == "linear":
        y = (X @ truth[:, 0] + 2).astype("f4")
    else:
        y = np.argmax(X @ truth, axis=1) if name != "logistic" else (X @ truth[:, 0] > 0.2)
    params = model.init(seed=0)
    before = model.score(params, X, y)
    for _ in range(300):
        _, grads = model.value_and_grad(params, (X, y))
        params = {k: v - 0.3 * grads[k] for k, v in params.items()}
    assert before < goal < model.score(params, X, y)
    assert model.predict(params, X).shape == y.shape


def test_r_squared_is_that_of_the_textbook():
    model = fl.models.linear(1, dtype="float64")
    params = {"w": np.array([1.0]), "b": np.zeros(1)}
    X, y = np.array([[0.0], [1.0], [2.0]]), np.array([0.0, 1.0, 5.0])
    assert model.score(params, X, y) == pytest.approx(1 - 9 / 14)
    assert model.score(params, X[:1], y[:1]) == 1.0
    assert model.score(params, X[:1], y[:1] + 1) == 0.0


def test_mlp_starts_from_the_seed_alone():
    small, wide = fl.models.mlp([4, 3, 2]), fl.models.mlp([4, 3, 2], dtype="float64")
    a, b, c = small.init(seed=5), small.init(seed=5), small.init(seed=6)
    assert all(np.array_equal(a[leaf], b[leaf]) for leaf in a)
    assert not np.array_equal(a["W0"], c["W0"])
    assert np.array_equal(wide.init(seed=5)["W0"].astype("f4"), a["W0"])
    spread = fl.models.mlp([1000, 100, 2]).init(0)["W0"].std()
    assert spread == pytest.approx((2 / 1000) ** 0.5, rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_model_is_a_picklable_value(name):
    model = models("float32", 0.1)[name]
    again = pickle.loads(pickle.dumps(model))
    assert again == model
    assert tokenize(again, ensure_deterministic=True) == tokenize(model, ensure_deterministic=True)


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("softmax", [1, 4], r"labels must be whole numbers from 0 to 3, got 1 to 4"),
        ("mlp", [-1, 2], r"labels must be whole numbers from 0 to 3, got -1 to 2"),
        ("softmax", [0.5, 1.0], r"labels must be whole numbers from 0 to 3, got 0\.5 to 1"),
        ("softmax", [np.nan, 1.0], r"labels must be whole numbers"),
        ("logistic", [1, 2], r"labels must be 0 and 1, or -1 and 1, got 1, 2\. Class 1 is y > 0"),
        ("logistic", [-1, 0], r"labels must be 0 and 1, or -1 and 1, got -1, 0"),
        ("linear", [1.0, np.inf], r"y must be finite, got inf in row 1"),
    ],
)
def test_labels_are_checked_on_the_first_batch(name, labels, message):
    with pytest.raises(DataError, match=message) as caught:
        models("float32")[name].check_batch((np.zeros((2, FEATURES), "f4"), np.array(labels)))
    assert caught.value.where == f"fl.models.{name}"


@pytest.mark.parametrize("name", NAMES)
def test_shapes_are_checked_on_the_first_batch(name):
    model, (X, y) = models("float32")[name], problem(name)
    model.check_batch((X, y))
    model.check_batch((X, y, np.ones(ROWS)))
    for batch, message in [
        ((X[:, 1:], y), rf"X must have shape \(rows, 6\), got \({ROWS}, 5\)"),
        ((list(X), y), r"X must have shape \(rows, 6\), got \(\)"),
        ((X.astype("U9"), y), r"X must hold numbers, got <U9"),
        ((X, y[1:]), rf"y must have shape \({ROWS},\), one item a row of X, got \({ROWS - 1},\)"),
        ((X, y[:, None]), rf"y must have shape \({ROWS},\)"),
        ((X, y, np.ones(3)), rf"weight must have shape \({ROWS},\)"),
        ((X, y, -np.ones(ROWS)), r"weights must be finite and >= 0, got -1 to -1"),
    ]:
        with pytest.raises(DataError, match=message):
            model.check_batch(batch)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fl.models.linear(0), r"n_features must be an int >= 1, got 0"),
        (lambda: fl.models.softmax(3, 1), r"n_classes must be an int >= 2, got 1"),
        (lambda: fl.models.logistic(3, l2=-1), r"l2 must be a finite number >= 0, got -1"),
        (lambda: fl.models.softmax(3, 2, dtype="int32"), r"dtype must be a float dtype, got int32"),
        (lambda: fl.models.mlp([3]), r"sizes must be features, hidden units and classes"),
        (lambda: fl.models.mlp([3, 2.5, 2]), r"every size must be an int >= 1, got 2\.5"),
        (lambda: fl.models.mlp([3, 1]), r"the number of classes must be an int >= 2, got 1"),
    ],
)
def test_arguments_are_checked_at_declaration(make, message):
    with pytest.raises(GraphError, match=message):
        make()
