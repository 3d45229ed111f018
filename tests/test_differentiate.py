"""Losses in plain NumPy: gradients, pytrees, threads, and what autograd cannot trace."""

from __future__ import annotations

import threading

import autograd
import autograd.numpy as anp
import cloudpickle
import numpy as np
import pytest
from dask.base import tokenize

from flowml.differentiate import loss_gradient, value_and_grad
from flowml.errors import GraphError

X = np.random.default_rng(0).normal(size=(9, 3))
Y = np.arange(9) % 4


def softmax_loss(params, X, y, np=np):
    z = np.dot(X, params["W"]) + params["b"]
    z = z - np.max(z, axis=1, keepdims=True)
    return np.mean(np.log(np.sum(np.exp(z), axis=1)) - z[np.arange(len(y)), y])


def autograd_loss(params, X, y):
    return softmax_loss(params, X, y, np=anp)


def start(dtype="f8"):
    rng = np.random.default_rng(1)
    return {"W": rng.normal(size=(3, 4)).astype(dtype), "b": rng.normal(size=4).astype(dtype)}


def by_differences(loss, params, *inputs):
    grads = {k: np.empty_like(v) for k, v in params.items()}
    for leaf, values in params.items():
        for i in np.ndindex(values.shape):
            ends = []
            for h in (1e-6, -1e-6):
                moved = {k: v.copy() for k, v in params.items()}
                moved[leaf][i] += h
                ends.append(loss(moved, *inputs))
            grads[leaf][i] = (ends[0] - ends[1]) / 2e-6
    return grads


@pytest.mark.parametrize("loss", [softmax_loss, autograd_loss])
def test_gradient_of_a_plain_loss(loss):
    value, grads = loss_gradient(loss).value_and_grad(start(), X, Y)
    assert type(value) is float
    assert value == pytest.approx(softmax_loss(start(), X, Y), rel=1e-14)
    expected = by_differences(softmax_loss, start(), X, Y)
    for leaf in expected:
        np.testing.assert_allclose(grads[leaf], expected[leaf], rtol=1e-5, atol=1e-8)


WHOLE_ARRAY = {
    "dot": lambda w: np.dot(X, w).sum(),
    "where": lambda w: np.where(w > 0, w, 0.1 * w).sum(),
    "concatenate": lambda w: (np.concatenate([w, 2 * w]) ** 2).sum(),
    "stack": lambda w: (np.stack([w, w * w], axis=1) ** 2).sum(),
    "vstack": lambda w: np.vstack([w, w * w]).sum(),
    "einsum": lambda w: np.einsum("ij,j->", X, w * w),
    "outer": lambda w: np.outer(w, w).sum(),
    "norm": lambda w: np.linalg.norm(w) ** 3,
    "solve": lambda w: np.linalg.solve(np.eye(3) * 2 + X[:3], w).sum(),
    "fft": lambda w: np.abs(np.fft.fft(w)).sum(),
    "clip": lambda w: np.clip(w * w, 0.1, 5).sum(),
    "logaddexp": lambda w: np.mean(np.logaddexp(0, -X @ w)),
    "var": lambda w: np.var(w) + np.std(w),
    "methods": lambda w: (w.reshape(3, 1) * X.T).mean() + w.sum() + w[1:].max(),
    "reshape": lambda w: np.reshape(w, (3, 1)).T.sum() * np.prod(w.shape),
    "select": lambda w: np.select([w > 0, w <= 0], [w, 3 * w]).sum(),
    "list": lambda w: np.sum(np.array([w[0], w[1] * w[2]])),
    "python": lambda w: sum(v * v for v in w),
}


@pytest.mark.parametrize("name", WHOLE_ARRAY)
def test_numpy_functions_are_traced(name):
    w = np.array([0.7, -1.3, 2.1])
    loss = WHOLE_ARRAY[name]
    value, grads = loss_gradient(loss).value_and_grad(w)
    assert value == pytest.approx(float(loss(w)))
    expected = by_differences(lambda p: loss(p["w"]), {"w": w})
    np.testing.assert_allclose(grads, expected["w"], rtol=1e-5, atol=1e-8)


def test_whole_arrays_are_traced_not_their_items(monkeypatch):
    calls = []
    getitem = autograd.numpy.numpy_boxes.ArrayBox.__getitem__
    monkeypatch.setattr(
        autograd.numpy.numpy_boxes.ArrayBox,
        "__getitem__",
        lambda box, i: calls.append(i) or getitem(box, i),
    )
    loss_gradient(lambda w: np.dot(X, np.where(w > 0, w, 0)).sum()).value_and_grad(np.ones(3))
    assert calls == []


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_gradients_have_the_shapes_and_dtypes_of_the_parameters(dtype):
    params = {"a": [np.ones((2, 3), dtype), np.array(2.0, dtype)], "b": (np.zeros(3, dtype),)}

    def loss(p):
        return np.log1p(np.exp(p["a"][0] @ p["b"][0])).mean() * p["a"][1]

    value, grads = loss_gradient(loss).value_and_grad(params)
    assert value == pytest.approx(2 * np.log(2), rel=1e-6)
    assert type(grads["a"]) is list
    assert type(grads["b"]) is tuple
    for found, given in [(grads["a"][0], params["a"][0]), (grads["a"][1], params["a"][1])]:
        assert (found.shape, found.dtype) == (given.shape, given.dtype)
    np.testing.assert_allclose(grads["b"][0], [1, 1, 1])


def test_a_leaf_that_the_loss_does_not_use_has_gradient_zero():
    _, grads = loss_gradient(lambda p: np.sum(p[0] ** 2)).value_and_grad((X, np.ones(2, "f4")))
    assert np.array_equal(grads[0], 2 * X)
    assert np.array_equal(grads[1], np.zeros(2, "f4"))
    assert grads[1].dtype == np.float32


def test_parameters_may_be_read_only_and_stay_as_they_are():
    params = start()
    for leaf in params.values():
        leaf.flags.writeable = False
    f = loss_gradient(softmax_loss)
    first, second = (f.value_and_grad(params, X, Y) for _ in range(2))
    assert first[0] == second[0]
    assert all(np.array_equal(first[1][k], second[1][k]) for k in params)
    assert all(np.array_equal(params[k], start()[k]) for k in params)


def test_what_the_loss_returns_beside_comes_back_without_traces():
    def loss(w):
        return np.sum(w**2), {"norm": np.sqrt(np.sum(w**2)), "n": 2}

    (value, beside), grads = loss_gradient(loss, aux=True).value_and_grad(np.array([3.0, 4.0]))
    assert (value, beside) == (25.0, {"norm": 5.0, "n": 2})
    assert isinstance(beside["norm"], float)
    assert grads.tolist() == [6.0, 8.0]
    with pytest.raises(GraphError, match=r"with aux=True the loss must return \(loss, something\)"):
        loss_gradient(np.sum, aux=True).value_and_grad(np.ones(2))


def test_autograd_inside_the_loss_is_another_trace():
    def penalised(w):
        return np.sum(autograd.grad(lambda v: np.sum(v**3 * w))(w))

    value, grads = loss_gradient(penalised).value_and_grad(np.array([2.0]))
    assert (value, grads.tolist()) == (24.0, [36.0])


def test_threads_do_not_mix_their_traces():
    f, expected = (
        loss_gradient(softmax_loss),
        loss_gradient(softmax_loss).value_and_grad(start(), X, Y),
    )
    meet, wrong = threading.Barrier(4), []

    def loop():
        meet.wait(timeout=60)
        for _ in range(50):
            value, grads = f.value_and_grad(start(), X, Y)
            if value != expected[0] or not np.array_equal(grads["W"], expected[1]["W"]):
                wrong.append(value)

    threads = [threading.Thread(target=loop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda w: w, r"must be a real scalar made from the parameters, got shape \(3,\)"),
        (lambda w: 3.0, r"must be a real scalar made from the parameters, got float 3\.0"),
        (lambda w: None, r"got NoneType None"),
        (lambda w: np.sum(w * 1j), r"got a complex number"),
        (lambda w: float(np.sum(w)), r"autograd must be able to trace the loss, got TypeError"),
        (lambda w: np.average(w), r"trace the loss, got NotImplementedError: VJP of average"),
    ],
)
def test_a_loss_that_has_no_gradient_is_refused(loss, message):
    with pytest.raises(GraphError, match=message):
        loss_gradient(loss).value_and_grad(np.ones(3))


def test_a_mistake_in_the_loss_is_raised_as_it_is():
    with pytest.raises(ValueError, match="matmul") as caught:
        loss_gradient(lambda w: np.sum(X @ w)).value_and_grad(np.ones(7))
    assert not isinstance(caught.value, GraphError)


def test_parameters_must_be_floats():
    with pytest.raises(GraphError, match="every parameter must be a float, got int64"):
        loss_gradient(np.sum).value_and_grad(np.arange(3))


@value_and_grad
def half_square(w, x):
    """Half the square of the distance."""
    return 0.5 * float(np.sum((w - x) ** 2)), w - x


def test_marked_function_is_passed_through():
    assert half_square.value_and_grad(np.array([3.0]), np.array([1.0])) == (2.0, np.array([2.0]))
    assert half_square(np.array([3.0]), np.array([1.0]))[0] == 2.0
    with pytest.raises(GraphError, match=r"must return \(loss, gradients\), got float 3\.0"):
        value_and_grad(lambda w: 3.0).value_and_grad(np.ones(1))


@pytest.mark.parametrize("f", [loss_gradient(softmax_loss), half_square])
def test_cloudpickle_and_token(f):
    again = cloudpickle.loads(cloudpickle.dumps(f))
    inputs = (start(), X, Y) if f is not half_square else (np.ones(2), np.zeros(2))
    assert again.value_and_grad(*inputs)[0] == f.value_and_grad(*inputs)[0]
    assert tokenize(f, ensure_deterministic=True) == tokenize(f, ensure_deterministic=True)
