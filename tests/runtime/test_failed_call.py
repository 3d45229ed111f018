"""The call of a user's function that failed: kept, repeated, and written without pickle."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

import flowml as fl
from flowml.errors import DataError, OperatorError, PlanError
from flowml.rules import At
from flowml.runtime import failed_call
from flowml.runtime.failed_call import KEPT, FailedCall
from flowml.runtime.npz_tree import read_tree, write_tree
from flowml.runtime.place import Place

X = np.random.default_rng(0).normal(size=(24, 3))
Y = X @ np.array([1.0, 2.0, 3.0])


def parts() -> tuple[Any, Any, Any]:
    w = fl.table("w", np.zeros(3))
    batch = fl.load((X, Y), batch_size=4, name="batch")
    return w, batch, fl.gradient(squares, w, batch, name="grad")


def squares(w: Any, batch: Any) -> Any:
    return np.mean((batch[0] @ w - batch[1]) ** 2)


@fl.value_and_grad
def failing_late(w: Any, batch: Any) -> Any:
    if w.any():
        raise LookupError("not in my dictionary")
    return 1.0, np.ones(3)


@fl.value_and_grad
def short(w: Any, batch: Any) -> Any:
    return 1.0, w[:1] + 1


@fl.value_and_grad
def endless(w: Any, batch: Any) -> Any:
    return np.inf if w.any() else 1.0, np.ones(3)


def of_map(function: Any) -> fl.Graph:
    w, _, grad = parts()
    mine = fl.map(function, grad, fl.here(), name="mine")
    return fl.Graph(fl.update(w, fl.aggregate("mean", mine), fl.sgd(0.1)))


def of_gradient(model: Any) -> fl.Graph:
    w, batch, _ = parts()
    grad = fl.gradient(model, w, batch, name="mine")
    return fl.Graph(fl.update(w, fl.aggregate("mean", grad), fl.sgd(0.1)))


def of_until(function: Any) -> fl.Graph:
    w, _, grad = parts()
    mean = fl.aggregate("mean", grad)
    return fl.Graph(fl.update(w, mean, fl.sgd(0.1)), fl.until(function, mean))


def of_evaluation(function: Any) -> fl.Graph:
    w, _, grad = parts()
    test = fl.evaluate(function, w, (X, Y), every=1, name="mine")
    return fl.Graph(fl.update(w, fl.aggregate("mean", grad), fl.sgd(0.1)), test)


def of_rule(step: Any) -> fl.Graph:
    w, _, grad = parts()
    rule = fl.Rule(lambda params: {"seen": np.zeros_like(params)}, step, name="mine")
    return fl.Graph(fl.update(w, fl.aggregate("mean", grad), rule, name="mine"))


def of_reduction(combine: Any) -> fl.Graph:
    w, _, grad = parts()
    how = fl.Reduction("mine", tree=False, divide=False, weighted=False, combine=combine)
    return fl.Graph(fl.update(w, fl.aggregate(how, grad, name="mine"), fl.sgd(0.1)))


def late(grad: Any, here: Any) -> Any:
    return grad if (here.clock, here.replica) != (2, 1) else grad.reshape(2, 2)


def no_step(params: Any, update: Any, state: Any, at: At, out: Any) -> None:
    raise ArithmeticError(f"seen {params.size} of {at.step}")


def no_combination(slices: Any, weights: Any, out: Any) -> None:
    raise ArithmeticError(f"of {len(slices)}")


def no_answer(mean: Any) -> bool:
    raise ArithmeticError("yes and no")


def no_metric(w: Any, rows: Any) -> Any:
    raise ArithmeticError(f"of {len(rows[0])} rows")


CASES = {
    "map": (of_map(late), ValueError, "cannot reshape array"),
    "gradient": (of_gradient(failing_late), LookupError, "not in my dictionary"),
    "until": (of_until(no_answer), ArithmeticError, "yes and no"),
    "evaluate": (of_evaluation(no_metric), ArithmeticError, "of 24 rows"),
    "update": (of_rule(no_step), ArithmeticError, "seen 3 of 0"),
    "aggregate": (of_reduction(no_combination), ArithmeticError, "of 2"),
}


def failure(graph: fl.Graph, **options: Any) -> Any:
    with pytest.raises(OperatorError) as caught:
        graph.run(steps=4, replicas=2, executor="serial", **options)
    return caught.value


@pytest.mark.parametrize("kind", CASES)
def test_the_call_fails_again_as_it_did(kind: str, tmp_path: Path) -> None:
    graph, error, words = CASES[kind]
    found = failure(graph)
    assert str(found).endswith(KEPT)
    assert words in str(found)
    assert (found.call.kind, found.call.operator) == (kind, found.operator)
    assert (found.call.replica, found.call.step) == (found.replica, found.step)
    with pytest.raises(error, match=words):
        found.call.again()
    path = found.call.save(tmp_path / "call")
    assert path == tmp_path / "call.npz"
    with pytest.raises(error, match=words):
        graph.failed_call(path).again()


@pytest.mark.parametrize("kind", CASES)
def test_a_run_with_a_folder_writes_the_input_there(kind: str, tmp_path: Path) -> None:
    graph, error, _ = CASES[kind]
    found = failure(graph, failures=tmp_path / "calls")
    (path,) = (tmp_path / "calls").iterdir()
    assert path.name == f"{found.operator}-replica{found.replica}-step{found.step}.npz"
    assert found.input_file == str(path)
    assert str(found).endswith(
        f"Its input is in {path}: graph.failed_call({str(path)!r}).again() repeats the call."
    )
    with pytest.raises(error):
        graph.failed_call(path).again()


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    failure(CASES["map"][0])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_does_not_hide_the_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = failure(CASES["map"][0], failures=tmp_path / "file")
    assert "cannot reshape array" in str(found)
    assert "could not be written" in str(found)
    assert found.call.inputs[0].shape == (3,)


@pytest.mark.parametrize(
    "graph", [of_gradient(short), of_map(lambda grad, here: None)], ids=["gradient", "map"]
)
def test_a_wrong_result_keeps_its_input_too(graph: fl.Graph) -> None:
    found = failure(graph)
    assert found.kind == "returned"
    assert str(found).endswith(KEPT)
    found.call.again()  # it returns, what it returns is wrong


def test_a_loss_that_is_not_finite_keeps_its_input() -> None:
    with pytest.raises(fl.DivergedError) as caught:
        of_gradient(endless).run(steps=4, replicas=2, executor="serial")
    loss, _ = caught.value.call.again()
    assert loss == np.inf


def test_the_input_is_a_copy_that_may_not_be_changed() -> None:
    found = failure(CASES["map"][0])
    grad, here = found.call.inputs
    assert not grad.flags.writeable
    assert here == Place(1, 2, 0, 2, here.entropy)
    assert found.call.inputs[0] is not grad


def test_it_travels_without_its_function_which_the_graph_gives_back() -> None:
    graph = CASES["map"][0]
    call = failure(graph).call
    back = pickle.loads(pickle.dumps(call))
    assert (back, back.function) == (call, None)
    with pytest.raises(PlanError, match=r"call of operator 'mine': needs the operator's function"):
        back.again()
    with pytest.raises(ValueError, match="cannot reshape"):
        back.of(graph.logical.operator("mine")).again()


def test_a_large_input_is_named_and_left_out(monkeypatch: Any) -> None:
    monkeypatch.setattr(failed_call, "LARGEST_INPUT", 8)
    found = failure(CASES["map"][0])
    assert found.call is None
    assert str(found).endswith("Its input of 24 B is too large to be kept.")


def test_an_input_that_cannot_travel_does_not_hide_the_error() -> None:
    w, batch, grad = parts()
    locked = fl.map(lambda rows: threading.Lock(), batch, name="locked")
    mine = fl.map(lambda g, lock: g[7], grad, locked, name="mine")
    found = failure(fl.Graph(fl.update(w, fl.aggregate("mean", mine), fl.sgd(0.1))))
    assert "raised IndexError" in str(found)
    assert found.call is None
    assert "Its input cannot be kept: TypeError: cannot pickle '_thread.lock'" in str(found)


def test_a_call_of_another_graph_is_refused(tmp_path: Path) -> None:
    path = failure(CASES["update"][0]).call.save(tmp_path / "call.npz")
    w, _, grad = parts()
    other = fl.Graph(fl.update(w, fl.aggregate("mean", grad), fl.sgd(0.1)))
    with pytest.raises(PlanError, match="must be a call of one of batch, grad, mean, update_w"):
        other.failed_call(path)


# -- files ----------------------------------------------------------------------------------------

TREES: dict[str, Any] = {
    "arrays": {"W": np.arange(6.0).reshape(2, 3), "b": np.float32([1, 2])},
    "nested": (1, [2.5, "word", None, True], {"a": (np.int64(3),), 4: np.array(True)}),
    "at": At(3, 7, 1, 2, 8.0, {"W": np.ones(2)}),
    "place": Place(1, 4, 0, 9, (0, 1, 2)),
    "words": np.array(["a", "bc"]),
    "nan": float("nan"),
    "empty": (),
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray | np.generic):
        return np.asarray(a).dtype == b.dtype and np.array_equal(a, b)
    return bool(a == b or (a != a and b != b))


@pytest.mark.parametrize("name", TREES)
def test_what_is_written_is_read(name: str, tmp_path: Path) -> None:
    path = write_tree(tmp_path / "tree", TREES[name], {"step": 3})
    found, facts = read_tree(path)
    assert same(TREES[name], found)
    assert facts == {"step": 3}


def test_sparse_rows_are_read_as_they_were(tmp_path: Path) -> None:
    rows = csr_array(np.array([[0.0, 1.0, 0.0], [2.0, 0.0, 3.0]]))
    (found, y), _ = read_tree(write_tree(tmp_path / "rows", (rows, np.array([1, 0])), {}))
    assert type(found) is csr_array
    assert np.array_equal(found.toarray(), rows.toarray())
    assert y.tolist() == [1, 0]


def test_what_is_no_array_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"input 1/a of the call: .*, got a lock\. error\.call"):
        write_tree(tmp_path / "tree", (np.ones(2), {"a": threading.Lock()}), {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["text", "arrays", "pickle"])
def test_another_file_is_refused_and_nothing_is_unpickled(content: str, tmp_path: Path) -> None:
    path = tmp_path / "other.npz"
    if content == "text":
        path.write_text("no arrays")
    elif content == "arrays":
        np.savez(path, a=np.ones(2))
    else:
        np.savez(path, **{"tree.json": np.array([threading.Lock], object)})
    with pytest.raises(DataError, match="must be a file that flowml wrote of a call"):
        FailedCall.load(path)
