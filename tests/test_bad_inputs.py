"""What people get wrong, and what they are told: place, requirement, finding and remedy.

Each case is a function that makes one mistake of the table in the reliability page. It runs where
a user's mistake would: an attempt to reach a cluster fails the test unless the case is about one.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import pytest

import flowml as fl
from flowml import cluster_run, run
from flowml.errors import ManyErrors
from flowml.events import Warned
from flowml.runtime import attach

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 3)).astype("float32")
Y = RNG.integers(0, 2, 12)
MODEL = fl.models.softmax(3, 2)
HERE = "test_bad_inputs.py"

FORBIDDEN = (
    r"LLGExpr",
    r"\b0x[0-9a-f]+",
    r"\b[0-9a-f]{16,}\b",  # hashes
    r"<function",
    r"object at",
    r"\('[\w-]+', \d+",  # keys of Dask
)


def parts(scope: str = "global") -> tuple[Any, Any, Any]:
    """Return a table, a batch and a gradient."""
    w = fl.table("w", MODEL.init(seed=0), scope=scope)
    batch = fl.load((X, Y), batch_size=4)
    return w, batch, fl.gradient(MODEL, w, batch, name="grad")


def ssgd(gradient: Any = None, rule: Any = None, source: Any = None) -> fl.Graph:
    """Return synchronous SGD, where the gradient may be another one."""
    w = fl.table("w", MODEL.init(seed=0))
    batch = fl.load((X, Y) if source is None else source, batch_size=4)
    grad = fl.gradient(gradient or MODEL, w, batch, name="grad")
    return fl.Graph(fl.update(w, fl.aggregate("mean", grad), rule or fl.sgd(0.1)), name="g")


def mapped(function: Callable[..., Any], **options: Any) -> fl.Graph:
    """Return a graph in which a function changes the gradient."""
    w, _, grad = parts()
    changed = fl.map(function, grad, name="mine", **options)
    return fl.Graph(fl.update(w, fl.aggregate("mean", changed), fl.sgd(0.1)), name="g")


@dataclass(frozen=True)
class Case:
    """A mistake and what must be said about it.

    Attributes
    ----------
    row : int
        Of the table of bad inputs.
    mistake : callable
    error, builtin : type
        What is raised, and the builtin that a caller would guess.
    says : tuple of str
        Parts of the message: the place, what was required, what was got, the fix.
    declared : bool
        The message names a line of ``mistake``.
    """

    row: int
    mistake: Callable[[], object]
    error: type[Exception]
    builtin: type[Exception]
    says: tuple[str, ...]
    declared: bool = True

    def __str__(self) -> str:
        return f"{self.row}-{self.mistake.__name__}"


CASES: list[Case] = []


def bad(
    row: int, error: type[Exception], builtin: type[Exception], *says: str, declared: bool = True
) -> Callable[[Callable[[], object]], Callable[[], object]]:
    def add(mistake: Callable[[], object]) -> Callable[[], object]:
        CASES.append(Case(row, mistake, error, builtin, says, declared))
        return mistake

    return add


@bad(1, AttributeError, AttributeError, "flowml has no 'gradiant'", "Did you mean 'gradient'?")
def misspelt_word() -> None:
    fl.gradiant(MODEL, None, None)  # type: ignore[attr-defined]


@bad(
    1,
    fl.GraphError,
    ValueError,
    "aggregate 'mine'",
    "'mean', 'sum', 'median'",
    "got 'maen'",
    "Did you mean 'mean'?",
)
def misspelt_reduction() -> None:
    _, _, grad = parts()
    fl.aggregate("maen", grad, name="mine")


@bad(
    1,
    fl.GraphError,
    ValueError,
    "table 'w'",
    '"global", "replica", "host"',
    "got 'golbal'",
    "Did you mean 'global'?",
)
def misspelt_scope() -> None:
    fl.table("w", np.zeros(2), scope="golbal")


@bad(
    1,
    fl.PlanError,
    ValueError,
    "graph.run",
    "got 'replica'",
    "Did you mean 'replicas'?",
    declared=False,
)
def misspelt_option() -> None:
    ssgd().run(steps=1, replica=2)


@bad(
    1,
    fl.PlanError,
    ValueError,
    "on_nonfinite",
    "must be one of stop, ignore",
    "got 'sotp'",
    "Did you mean 'stop'?",
    declared=False,
)
def misspelt_choice() -> None:
    ssgd().run(steps=1, on_nonfinite="sotp")


@bad(
    2,
    fl.GraphError,
    ValueError,
    "table 'w'",
    "the name 'w' is already taken by table 'w'",
    "Pass the handle of one of them everywhere",
)
def handle_of_another_graph() -> None:
    w = fl.table("w", MODEL.init(seed=0))
    other, batch = fl.table("w", MODEL.init(seed=0)), fl.load((X, Y), batch_size=4)
    grad = fl.gradient(MODEL, other, batch)
    fl.Graph(fl.update(w, fl.aggregate("mean", grad), fl.sgd(0.1)))


@bad(
    2,
    fl.GraphError,
    ValueError,
    "map 'mine'",
    "input 2 must be a handle",
    "got a float",
    "Close over constants",
)
def number_for_a_handle() -> None:
    _, batch, _ = parts()
    fl.map(lambda b, c: b, batch, 0.5, name="mine")  # type: ignore[arg-type]


@bad(
    2,
    fl.GraphError,
    ValueError,
    "table 'w'",
    "ids must be a handle",
    "got a list",
    "Make them with fl.map",
)
def rows_for_a_handle() -> None:
    fl.table("w", np.zeros((4, 2))).at([0, 1])  # type: ignore[arg-type]


@bad(
    2,
    fl.GraphError,
    ValueError,
    "graph 'g'",
    "a sink must be a handle",
    "got a list",
    "Pass what fl.update",
)
def list_of_sinks() -> None:
    w, _, grad = parts()
    fl.Graph([fl.update(w, grad, fl.add())], name="g")  # type: ignore[arg-type]


@bad(
    3,
    fl.GraphError,
    ValueError,
    "gradient 'grad'",
    "the name 'grad' is already taken by map",
    "Give one of them another name=",
)
def name_used_twice() -> None:
    w = fl.table("w", MODEL.init(seed=0))
    batch = fl.map(lambda b: b, fl.load((X, Y), batch_size=4), name="grad")
    grad = fl.gradient(MODEL, w, batch, name="grad")
    fl.Graph(fl.update(w, fl.aggregate("mean", grad), fl.sgd(0.1)))


@bad(
    4,
    fl.GraphError,
    ValueError,
    "table 'w'",
    "two writes of a table in one step need an order",
    "'update_w'",
    "'reg'",
    "no path between them",
    "Let the second read what the first returned",
)
def two_writes_without_an_order() -> None:
    w = fl.table("w", MODEL.init(seed=0))
    grad = fl.gradient(MODEL, w, fl.load((X, Y), batch_size=4))
    mean = fl.aggregate("mean", grad)
    fl.Graph(fl.update(w, mean, fl.sgd(0.1)), fl.update(w, mean, fl.add(0.1), name="reg"))


@bad(
    4,
    fl.GraphError,
    ValueError,
    "edge w -> grad",
    "a read may not promise more",
    "edge mean -> update_w",
    "a sync read of a stale(4) write",
    "Loosen the read",
)
def promises_that_cannot_be_served() -> None:
    w = fl.table("w", MODEL.init(seed=0))
    grad = fl.gradient(MODEL, w.sync(), fl.load((X, Y), batch_size=4), name="grad")
    fl.Graph(fl.update(w, fl.aggregate("mean", grad).stale(4), fl.sgd(0.1)))


@bad(
    4,
    fl.GraphError,
    ValueError,
    "edge w -> grad",
    "needs a promise from step 500 on",
    "got sync(until=500)",
    "Add the later one",
)
def unfinished_schedule() -> None:
    w = fl.table("w", MODEL.init(seed=0))
    grad = fl.gradient(MODEL, w.sync(until=500), fl.load((X, Y), batch_size=4), name="grad")
    fl.Graph(fl.update(w, fl.aggregate("mean", grad), fl.sgd(0.1)))


def staleness(value: Any) -> Callable[[], None]:
    def wrong_staleness() -> None:
        fl.table("w", np.zeros(2)).stale(value)

    return wrong_staleness


for wrong in (-1, 1.5, "3", True):
    bad(5, fl.GraphError, ValueError, "an integer >= 0", f"got {wrong!r}", "stale(0) is sync()")(
        staleness(wrong)
    )


@bad(
    7,
    fl.GraphError,
    ValueError,
    "update",
    "the first argument must be a table",
    "got load 'load'",
    "Name the table that it writes",
)
def update_of_no_table() -> None:
    _, batch, grad = parts()
    fl.update(batch, grad, fl.sgd(0.1))


@bad(
    7,
    fl.GraphError,
    ValueError,
    "assign",
    "the first argument must be a table",
    "got a ndarray",
    "Name the table that it writes",
)
def assign_to_an_array() -> None:
    _, _, grad = parts()
    fl.assign(np.zeros(3), grad)  # type: ignore[arg-type]


@bad(
    7,
    fl.GraphError,
    ValueError,
    "update of 'w'",
    "the third argument must be a rule",
    "got sgd",
    "For example fl.sgd(lr=0.1)",
)
def rule_that_was_not_called() -> None:
    w, _, grad = parts()
    fl.update(w, grad, fl.sgd)  # type: ignore[arg-type]


@bad(
    7,
    fl.GraphError,
    ValueError,
    "update of 'w'",
    "the target of a write promises nothing",
    "got stale(2)",
    "Mark the value",
)
def promise_on_the_target() -> None:
    w, _, grad = parts()
    fl.update(w.stale(2), grad, fl.sgd(0.1))


@bad(
    7,
    fl.GraphError,
    ValueError,
    "gradient 'gradient'",
    "must be a table",
    "got load 'load'",
    "fl.gradient(model, fl.table",
)
def gradient_of_swapped_arguments() -> None:
    w, batch, _ = parts()
    fl.gradient(MODEL, batch, w)


@bad(
    8,
    fl.GraphError,
    ValueError,
    "table 'w'",
    "an order",
    "'first'",
    "'second'",
    "Let the second read",
)
def two_writers_of_one_table() -> None:
    w, x = fl.table("w", np.zeros(3, "float32")), fl.load(X, batch_size=4)
    total = fl.aggregate("sum", fl.map(lambda x: x.sum(0), x))
    fl.Graph(fl.assign(w, total, name="first"), fl.assign(w, total, name="second"))


@bad(
    9,
    fl.GraphError,
    ValueError,
    "graph 'g'",
    "a sink must write a table, evaluate or end",
    "got map 'metrics'",
    "Pass what fl.update",
)
def sink_that_does_nothing() -> None:
    w, _, grad = parts()
    metrics = fl.map(lambda g: g, grad, name="metrics")
    fl.Graph(fl.update(w, fl.aggregate("mean", grad), fl.sgd(0.1)), metrics, name="g")


@bad(
    9,
    fl.GraphError,
    ValueError,
    "graph 'g'",
    "a sink is read by nobody",
    "with every(3)",
    "Mark the value",
)
def period_on_a_sink() -> None:
    w, _, grad = parts()
    fl.Graph(fl.update(w, fl.aggregate("mean", grad), fl.sgd(0.1)).every(3), name="g")


@bad(
    10,
    fl.GraphError,
    ValueError,
    "graph 'g'",
    "no load operator; nothing would run",
    "Declare one with fl.load",
)
def graph_without_a_load() -> None:
    w = fl.table("w", np.zeros(3))
    fl.Graph(fl.assign(w, fl.map(lambda w: w + 1, w)), name="g")


@bad(10, fl.GraphError, ValueError, "graph 'g'", "at least one write", "got none", "fl.update")
def empty_graph() -> None:
    fl.Graph(name="g")


@bad(
    11,
    fl.OperatorError,
    RuntimeError,
    "operator 'grad'",
    "replica 0, step 0",
    "of 'w'",
    "shape (784,) for leaf 'W' instead of (3, 2)",
    "Cast or reshape",
)
def gradient_of_the_wrong_shape() -> None:
    @fl.value_and_grad
    def wrong(w: Any, batch: Any) -> Any:
        return 0.0, {"W": np.zeros(784, "float32"), "b": np.zeros(2, "float32")}

    w, batch = fl.table("w", MODEL.init(seed=0)), fl.load((X, Y), batch_size=4)
    grad = fl.gradient(wrong, w, batch, name="grad")
    fl.Graph(fl.update(w, fl.aggregate("mean", grad), fl.sgd(0.1))).run(steps=1, replicas=2)


@bad(
    11,
    fl.OperatorError,
    RuntimeError,
    "operator 'assign_v'",
    "table 'v'",
    "shape (3,) instead of (2,)",
    "Cast or reshape",
)
def assign_of_the_wrong_shape() -> None:
    v, x = fl.table("v", np.zeros(2, "float32")), fl.load(X, batch_size=4)
    total = fl.aggregate("sum", fl.map(lambda x: x.sum(0), x))
    fl.Graph(fl.assign(v, total)).run(steps=1, replicas=2)


@bad(
    12,
    fl.OperatorError,
    RuntimeError,
    "operator 'grad'",
    "of 'w'",
    "dtype float64",
    "instead of float32",
    "Cast",
)
def gradient_of_the_wrong_dtype() -> None:
    @fl.value_and_grad
    def wide(w: Any, batch: Any) -> Any:
        return 0.0, {name: np.zeros(leaf.shape) for name, leaf in w.items()}

    w, batch = fl.table("w", MODEL.init(seed=0)), fl.load((X, Y), batch_size=4)
    grad = fl.gradient(wide, w, batch, name="grad")
    fl.Graph(fl.update(w, fl.aggregate("mean", grad), fl.sgd(0.1))).run(steps=1, replicas=2)


@bad(12, fl.GraphError, ValueError, "table 'w'", "numeric arrays", "dtype object", "np.asarray")
def table_of_objects() -> None:
    fl.table("w", np.array([None, "a"]))


@bad(
    12,
    fl.OperatorError,
    RuntimeError,
    "operator 'mean'",
    "numeric arrays",
    "dtype <U1",
    "Return NumPy arrays",
)
def aggregate_of_text() -> None:
    v, x = fl.table("v", np.zeros(2, "float32")), fl.load(X, batch_size=4)
    mean = fl.aggregate("mean", fl.map(lambda x: np.array(["a"]), x))
    fl.Graph(fl.assign(v, mean)).run(steps=1, replicas=2)


@bad(
    13,
    fl.DivergedError,
    ArithmeticError,
    "operator 'grad'",
    "replica 1, step 1",
    "the loss must be finite",
    "got nan",
    "Lower the learning rate",
    'on_nonfinite="ignore"',
)
def loss_that_is_nan() -> None:
    def loss(w: Any, batch: Any, here: Any) -> Any:
        broken = np.nan if (here.replica, here.clock) == (1, 1) else 1.0
        return broken * np.mean(batch[0] @ w["W"])

    w, batch = fl.table("w", MODEL.init(seed=0)), fl.load((X, Y), batch_size=4)
    grad = fl.gradient(loss, w, batch, fl.here(), name="grad")
    graph = fl.Graph(fl.update(w, fl.aggregate("mean", grad), fl.sgd(0.1)))
    graph.run(steps=3, replicas=2, executor="serial")


@bad(
    13,
    fl.DivergedError,
    ArithmeticError,
    "operator 'mine'",
    "replica 1, step 0",
    "its value must be finite",
    "got 2 that are not, the first at W[1, 0] = inf",
    "clip",
)
def gradient_that_is_infinite() -> None:
    def broken(g: Any, here: Any) -> Any:
        big = np.array([[0], [1], [0]], "float32") * (np.inf if here.replica else 0)
        return {"W": g["W"] + np.nan_to_num(big, posinf=np.inf), "b": g["b"]}

    w, batch = fl.table("w", MODEL.init(seed=0)), fl.load((X, Y), batch_size=4)
    grad = fl.map(broken, fl.gradient(MODEL, w, batch), fl.here(), name="mine")
    graph = fl.Graph(fl.update(w, fl.aggregate("mean", grad), fl.sgd(0.1)))
    with np.errstate(invalid="ignore"):
        graph.run(steps=3, replicas=2, executor="serial")


@bad(
    14,
    fl.OperatorError,
    RuntimeError,
    "operator 'mine'",
    "must return a value",
    "got None",
    "Is a return missing?",
)
def map_that_returns_none() -> None:
    w, _, grad = parts()
    nothing = fl.map(lambda g: None, grad, name="mine")
    fl.Graph(fl.update(w, fl.aggregate("mean", nothing), fl.sgd(0.1))).run(steps=1, replicas=2)


@bad(
    14,
    fl.OperatorError,
    RuntimeError,
    "operator 'mine'",
    "a tuple of 2 values",
    "got 3",
    "as many values as outputs=",
)
def map_that_returns_too_much() -> None:
    w, _, grad = parts()
    one, _ = fl.map(lambda g: (g, g, g), grad, outputs=2, name="mine")
    fl.Graph(fl.update(w, fl.aggregate("mean", one), fl.sgd(0.1))).run(steps=1, replicas=2)


@bad(
    14,
    fl.GraphError,
    ValueError,
    "operator 'grad'",
    "must be a real scalar",
    "got NoneType",
    "Return it as it comes",
)
def loss_that_returns_none() -> None:
    w, batch = fl.table("w", MODEL.init(seed=0)), fl.load((X, Y), batch_size=4)
    grad = fl.gradient(lambda w, b: None, w, batch, name="grad")
    fl.Graph(fl.update(w, fl.aggregate("mean", grad), fl.sgd(0.1))).run(steps=1, replicas=2)


@bad(
    15,
    fl.GraphError,
    ValueError,
    "map 'mine'",
    "(w, batch) must take its 3 inputs",
    "too many positional arguments",
    "Add or remove inputs",
)
def function_with_too_few_arguments() -> None:
    def function(w: Any, batch: Any) -> Any:
        return w

    w, batch, grad = parts()
    fl.map(function, w, batch, grad, name="mine")


@bad(
    15,
    fl.GraphError,
    ValueError,
    "gradient 'grad'",
    "must take its 2 inputs",
    "missing a required argument: 'lr'",
    "Add or remove inputs",
)
def loss_with_too_many_arguments() -> None:
    w, batch, _ = parts()
    fl.gradient(lambda w, b, lr: 0.0, w, batch, name="grad")


def shipped(function: Callable[..., Any]) -> None:
    mapped(function).run(steps=1, replicas=2)


@bad(
    16,
    fl.PlanError,
    ValueError,
    "operator 'mine'",
    "must be able to travel to workers",
    "variable 'lock' (lock)",
    "Open or create it inside the function",
    declared=False,
)
def function_with_a_lock() -> None:
    lock = threading.Lock()
    shipped(lambda g: (g, lock)[0])


@bad(
    16,
    fl.PlanError,
    ValueError,
    "operator 'mine'",
    "variable 'log' (open file '/dev/null')",
    "inside",
    declared=False,
)
def function_with_a_file() -> None:
    with open(os.devnull, "w") as log:
        shipped(lambda g: (g, log)[0])


@bad(
    16,
    fl.PlanError,
    ValueError,
    "operator 'mine'",
    "variable 'wire' (socket)",
    "inside",
    declared=False,
)
def function_that_calls_one_with_a_socket() -> None:
    with socket.socket() as wire:

        def inner(g: Any) -> Any:
            return (g, wire)[0]

        shipped(lambda g: inner(g))


@bad(
    17,
    fl.GraphError,
    ValueError,
    "load 'load'",
    "readable again after a failure",
    "got a generator",
    "fl.data.iterable",
)
def generator_as_data() -> None:
    fl.load((row for row in X), batch_size=4)


@bad(
    17,
    fl.GraphError,
    ValueError,
    "load 'rows'",
    "readable again after a failure",
    "cannot be",
    "fl.data.iterable",
)
def iterator_as_data() -> None:
    fl.load(iter([X]), batch_size=4, name="rows")


@bad(
    17,
    fl.GraphError,
    ValueError,
    "load 'load'",
    "the data must be a source",
    "got a str",
    "Name the format",
)
def path_as_data() -> None:
    fl.load("train.csv", batch_size=4)


@bad(
    17,
    fl.DataError,
    ValueError,
    "load 'load'",
    "the same number of rows",
    "12 and 11",
    "Check how they were cut",
)
def columns_of_unequal_length() -> None:
    fl.load((X, Y[1:]), batch_size=4)


@bad(
    17,
    fl.GraphError,
    ValueError,
    "load 'load'",
    "batch_size must be an integer >= 1",
    "got 0",
    "None is the whole share",
)
def batch_size_zero() -> None:
    fl.load((X, Y), batch_size=0)


@bad(
    18,
    fl.OperatorError,
    RuntimeError,
    "operator 'mine'",
    "replica 0, step 0",
    "raised ZeroDivisionError: division by zero",
    "in divide",
)
def operator_that_raises() -> None:
    def divide(g: Any) -> Any:
        return 1 / 0

    w, _, grad = parts()
    broken = fl.map(divide, grad, name="mine")
    fl.Graph(fl.update(w, fl.aggregate("mean", broken), fl.sgd(0.1))).run(steps=1, replicas=2)


@bad(
    18,
    fl.OperatorError,
    RuntimeError,
    "operator 'grad'",
    "raised Unpicklable: at the loss",
    "in loss",
)
def loss_that_raises() -> None:
    class Unpicklable(Exception):
        def __reduce__(self) -> NoReturn:
            raise TypeError("not this one")

    def loss(w: Any, batch: Any) -> Any:
        raise Unpicklable("at the loss") from KeyError("a")

    w, batch = fl.table("w", MODEL.init(seed=0)), fl.load((X, Y), batch_size=4)
    grad = fl.gradient(loss, w, batch, name="grad")
    fl.Graph(fl.update(w, fl.aggregate("mean", grad), fl.sgd(0.1))).run(steps=1, replicas=2)


@bad(
    18,
    fl.OperatorError,
    RuntimeError,
    "operator 'mine'",
    "an operator must return",
    "sys.exit(3)",
    "Raise an exception",
    declared=False,
)
def operator_that_exits() -> None:
    def leave(g: Any) -> NoReturn:
        raise SystemExit(3)

    mapped(leave).run(steps=1, replicas=2)


COPY = "copy first, x = x.copy()"


@bad(19, fl.OperatorError, RuntimeError, "operator 'mine'", "read-only", "in change", COPY)
def operator_that_changes_its_batch() -> None:
    def change(batch: Any) -> Any:
        batch[0][:] = 0
        return batch

    w = fl.table("w", MODEL.init(seed=0))
    batch = fl.map(change, fl.load((X, Y), batch_size=4), name="mine")
    grad = fl.gradient(MODEL, w, batch)
    fl.Graph(fl.update(w, fl.aggregate("mean", grad), fl.sgd(0.1))).run(steps=1, replicas=2)


@bad(19, fl.OperatorError, RuntimeError, "operator 'mine'", "read-only", "in change", COPY)
def operator_that_changes_a_table() -> None:
    def change(w: Any, batch: Any) -> Any:
        w["W"] += 1
        return w

    w, batch = fl.table("w", MODEL.init(seed=0)), fl.load((X, Y), batch_size=4)
    changed = fl.map(change, w, batch, name="mine")
    fl.Graph(fl.assign(w, fl.aggregate("mean", changed))).run(steps=1, replicas=2)


@bad(19, fl.OperatorError, RuntimeError, "operator 'mine'", "read-only", "in change", COPY)
def operator_that_changes_what_another_made() -> None:
    def change(g: Any) -> Any:
        g["W"] *= 2
        return g

    w, _, grad = parts()
    doubled = fl.map(change, grad, name="mine")
    fl.Graph(fl.update(w, fl.aggregate("mean", doubled), fl.sgd(0.1))).run(steps=1, replicas=2)


@bad(
    25,
    fl.PlanError,
    ValueError,
    "replicas",
    "an integer >= 1",
    "got 0",
    "For example",
    declared=False,
)
def no_replica() -> None:
    ssgd().run(steps=1, replicas=0)


@bad(
    25,
    fl.PlanError,
    ValueError,
    "replicas",
    "an integer >= 1",
    "got 0",
    "For example",
    declared=False,
)
def no_replica_serially() -> None:
    ssgd().run(steps=1, replicas=0, executor="serial")


@bad(
    25,
    fl.PlanError,
    ValueError,
    "replicas",
    "an integer >= 1",
    "got -2",
    "One copy",
    declared=False,
)
def plan_for_fewer_than_none() -> None:
    ssgd().plan(-2)


@bad(
    25,
    fl.PlanError,
    ValueError,
    "graph 'g'",
    "needs steps= or epochs=",
    "got neither",
    "graph.run(epochs=10)",
    declared=False,
)
def run_without_an_end() -> None:
    ssgd().run(replicas=2)


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that looks for a cluster."""

    def touched(*args: object) -> NoReturn:
        pytest.fail("a cluster was looked for")

    for module in (cluster_run, run, attach):
        monkeypatch.setattr(module, "attached", touched)
    monkeypatch.setattr(attach, "embedded_cluster", touched)


@pytest.mark.usefixtures("unreachable")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_mistake_is_named(case: Case) -> None:
    with pytest.raises(case.error) as caught:
        case.mistake()
    text = str(caught.value)
    assert isinstance(caught.value, case.builtin)
    assert [part for part in case.says if part not in text] == [], text
    assert [pattern for pattern in FORBIDDEN if re.search(pattern, text)] == [], text
    assert "\n" not in text
    if case.declared:
        lines, first = inspect.getsourcelines(case.mistake)
        named = [int(n) for n in re.findall(rf"{HERE}:(\d+)", text)]
        assert any(first <= line < first + len(lines) for line in named), text


def test_every_row_of_the_table_is_here() -> None:
    elsewhere = {20, 21, 22, 23, 26}
    assert {case.row for case in CASES} | elsewhere == {*range(1, 6), *range(7, 24), 25, 26}


def test_the_fields_of_an_operator_error_say_where() -> None:
    def late(g: Any, here: Any) -> Any:
        return g if here.clock < 2 else 1 / 0

    w, _, grad = parts()
    broken = fl.map(late, grad, fl.here(), name="mine")
    graph = fl.Graph(fl.update(w, fl.aggregate("mean", broken), fl.sgd(0.1)))
    with pytest.raises(fl.OperatorError) as caught:
        graph.run(steps=5, replicas=2, executor="serial")
    error = caught.value
    assert (error.operator, error.replica, error.step, error.kind) == ("mine", 0, 2, "raised")
    assert isinstance(error.__cause__, ZeroDivisionError)
    assert error.run.steps == 2  # type: ignore[attr-defined]


def test_all_mistakes_of_a_graph_come_together() -> None:
    w = fl.table("w", MODEL.init(seed=0))
    grad = fl.gradient(MODEL, w.sync(until=9), fl.load((X, Y), batch_size=4).quorum(2))
    mean = fl.aggregate("mean", grad)
    with pytest.raises(ManyErrors, match="3 mistakes") as caught:
        fl.Graph(fl.update(w, mean, fl.sgd(0.1)), fl.update(w, mean, fl.add(), name="again"))
    text = str(caught.value)
    assert len(caught.value.errors) == 3
    assert isinstance(caught.value, fl.GraphError)
    assert all(part in text for part in ("need an order", "a quorum belongs", "from step 9 on"))
    assert all(HERE in str(error) for error in caught.value.errors)


def test_all_functions_that_cannot_travel_come_together(unreachable: None) -> None:
    lock = threading.Lock()
    w, _, grad = parts()
    one = fl.map(lambda g: (g, lock)[0], grad, name="one")
    two = fl.map(lambda g: (g, lock)[0], one, name="two")
    graph = fl.Graph(fl.update(w, fl.aggregate("mean", two), fl.sgd(0.1)))
    with pytest.raises(ManyErrors) as caught:
        graph.run(steps=1, replicas=2)
    assert [error.fields["operator"] for error in caught.value.errors] == ["one", "two"]


# Rows 20 to 23: files. The place is a file and a line of it.


def test_missing_file(tmp_path: Any) -> None:
    (tmp_path / "a9a.t").write_text("+1 1:1\n")
    with pytest.raises(fl.DataError, match=r"no such file \(looked in .*\)") as caught:
        fl.load(fl.data.libsvm(tmp_path / "a9a"), batch_size=4)
    assert isinstance(caught.value, ValueError)
    assert "Close names there: a9a.t." in str(caught.value)


@pytest.mark.parametrize("read", [fl.data.libsvm, lambda p: fl.data.csv(p, label="y")])
def test_empty_file(tmp_path: Any, read: Callable[[Any], Any]) -> None:
    (tmp_path / "empty").write_text("")
    with pytest.raises(fl.DataError, match=r"empty: the file must have rows, got an empty file"):
        fl.load(read(tmp_path / "empty"), batch_size=4)


def test_unreadable_file(tmp_path: Any) -> None:
    (tmp_path / "x.npz").write_text("this is no archive")
    source = fl.data.npz(tmp_path / "x.npz", label="y")
    with pytest.raises(fl.DataError, match=r"x\.npz: the file must be a \.npz archive"):
        ssgd(source=source).run(steps=1, replicas=1, executor="serial")


def test_bad_row_in_a_libsvm_file(tmp_path: Any) -> None:
    (tmp_path / "a9a").write_text("+1 1:1\n-1 2:1\n+1 3:1 12:\n")
    source = fl.data.libsvm(tmp_path / "a9a", n_features=3)
    with pytest.raises(fl.DataError, match=r"a9a:3: expected 'index:value', got '12:'"):
        ssgd(source=source).run(steps=1, replicas=1, executor="serial")


def test_latin_1_in_a_csv_file(tmp_path: Any) -> None:
    (tmp_path / "air.csv").write_bytes(b"a,b,c,y\n1,2,3,0\n4,\xe4,6,1\n")
    with pytest.raises(fl.DataError, match=r"air\.csv:3 byte 3") as caught:
        fl.data.csv(tmp_path / "air.csv", label="y")
    assert "got 0xE4. Pass encoding='latin-1'" in str(caught.value)


def test_feature_beyond_the_width(tmp_path: Any) -> None:
    (tmp_path / "a9a").write_text("+1 1:1\n-1 123:1\n")
    source = fl.data.libsvm(tmp_path / "a9a", n_features=122)
    model = fl.models.logistic(122)
    w = fl.table("w", model.init(seed=0))
    grad = fl.gradient(model, w, fl.load(source, batch_size=2, name="train"))
    graph = fl.Graph(fl.update(w, fl.aggregate("mean", grad), fl.sgd(0.1)))
    with pytest.raises(fl.DataError, match=r"a9a:2: feature indices must fit") as caught:
        graph.run(steps=1, replicas=1, executor="serial")
    assert "got feature 123" in str(caught.value)
    assert "pass n_features=123" in str(caught.value)
    assert "operator 'train'" in str(caught.value)


# Row 25, second half: a note, and no error.


@pytest.mark.parametrize(
    ("source", "counted"),
    [
        ((X[:3], Y[:3]), "8 replicas but 3 rows: 5 will be idle"),
        (fl.data.parts([(X[:6], Y[:6])]), "8 replicas but 1 partition: 7 will be idle"),
    ],
)
def test_more_replicas_than_there_is_data(
    source: Any, counted: str, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Any] = []
    graph = ssgd(source=source)
    with caplog.at_level(logging.WARNING, "flowml"):
        graph.run(steps=2, replicas=8, executor="serial", on_event=told.append)
    texts = [event.text for event in told if isinstance(event, Warned)]
    assert len(texts) == 1
    assert counted in texts[0]
    assert f"({HERE}:" in texts[0]
    assert caplog.messages == texts


def test_enough_data_is_not_worth_a_note(caplog: pytest.LogCaptureFixture) -> None:
    ssgd().run(steps=1, replicas=3, executor="serial")
    assert caplog.messages == []


# Row 26: a cluster that is not there.


@pytest.mark.parametrize(
    ("address", "required", "fix"),
    [
        ("tcp://127.0.0.1:1", "a scheduler must answer there", "Is the address right"),
        ("nowhere.json", "the scheduler file must exist", "Is the cluster running?"),
    ],
)
def test_cluster_that_is_not_there(
    address: str, required: str, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attach, "CONNECT_SECONDS", 0.2)
    with pytest.raises(fl.WorkerLostError, match=required) as caught:
        ssgd().run(steps=1, replicas=2, cluster=address)
    text = str(caught.value)
    assert isinstance(caught.value, ConnectionError)
    assert caught.value.kind == "scheduler"
    assert address in text
    assert fix in text
    assert [pattern for pattern in FORBIDDEN if re.search(pattern, text)] == []
