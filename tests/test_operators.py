"""The words of a graph: what each declares, and where it says that it was declared."""

from __future__ import annotations

import functools
import inspect
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flowml as fl
from flowml import types
from flowml.actions import SparseRows
from flowml.edges import Edge, Promise
from flowml.handles import Declared, DeclaredTable, Handle
from flowml.types import calling_site, is_flowml, is_users

X = np.arange(24, dtype="float32").reshape(8, 3)
MODEL = fl.models.linear(3)


def declared(handle: Any) -> Declared:
    assert isinstance(handle.of, Declared)
    return handle.of


def line() -> int:
    """Return the line of the caller."""
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno


def test_each_word_remembers_its_own_line() -> None:
    w, first = fl.table("w", np.zeros(3, "float32")), line()
    x, second = fl.load(X, batch_size=2), line()
    g, third = fl.map(np.add, x, w), line()
    u, fourth = fl.update(w, fl.aggregate("mean", g), fl.sgd(0.1)), line()
    assert [h.of.site.line for h in (w, x, g, u)] == [first, second, third, fourth]
    assert {h.of.site.file for h in (w, x, g, u)} == {__file__}
    assert str(w.of.site) == f"test_operators.py:{first}"


def test_words_called_by_a_file_of_graphs_name_that_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import flowml as fl\nimport numpy as np\n\nx = fl.load(np.ones(3), batch_size=1)"
    )
    site = runpy.run_path(str(file))["x"].of.site
    assert (site.file, site.line) == (str(file), 4)


@pytest.mark.parametrize(
    ("file", "own", "users"),
    [
        (types.__file__, True, False),
        (str(types.PACKAGE / "data" / "csv_files.py"), True, False),
        (str(types.PACKAGE / "_graphs" / "ssgd.py"), False, True),
        (str(types.PACKAGE.parent / "graphs" / "ssgd.py"), False, True),
        (str(types.PACKAGE / ".." / "flowml" / "types.py"), True, False),
        (np.__file__, False, False),
        (inspect.__file__, False, False),
        ("<frozen importlib._bootstrap>", False, False),
        ("<stdin>", False, True),
        (__file__, False, True),
    ],
)
def test_whose_file_it_is(file: str, own: bool, users: bool) -> None:
    assert (is_flowml(file), is_users(file)) == (own, users)


def test_code_that_flowml_generates_is_not_the_users() -> None:
    """The __init__ of a frozen dataclass is compiled from a string: it has no file."""
    with pytest.raises(fl.GraphError) as caught:
        Promise("stale", -1)
    assert f"test_operators.py:{line() - 1}" in str(caught.value)


def test_code_from_a_string_is_the_users() -> None:
    found: dict[str, Any] = {"calling_site": calling_site, "__name__": "__main__"}
    exec(compile("\n\nsite = calling_site()", "<string>", "exec"), found)
    assert str(found["site"]) == "<string>:3"


def test_a_package_reached_by_a_link_is_still_flowml(tmp_path: Path) -> None:
    (tmp_path / "flowml").symlink_to(types.PACKAGE)
    code = "import flowml as fl; print(fl.here().of.site, fl.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        timeout=60,
    )
    site, file = done.stdout.split()
    assert file.startswith(str(tmp_path))
    assert site == "<string>:1"


def test_a_load_says_what_it_loads() -> None:
    size: Any = np.int64(2)
    x = fl.load((X, X[:, 0]), batch_size=size, shuffle=False, drop_last=True, seed=3)
    action: Any = declared(x).action
    assert (action.batch_size, action.shuffle, action.drop_last, action.seed) == (2, False, True, 3)
    assert type(action.batch_size) is int
    assert action.source.dealt


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 2.5}, "batch_size must be an integer >= 1, got 2.5"),
        ({"batch_size": True}, "batch_size must be an integer >= 1, got True"),
        ({"batch_size": 2, "seed": -1}, "seed must be an integer >= 0, got -1"),
        ({"batch_size": 2, "scope": "global"}, "scope must be 'replica', got 'global'"),
    ],
)
def test_a_load_refuses(options: dict[str, Any], says: str) -> None:
    with pytest.raises(fl.GraphError, match=r"load 'rows' \(test_operators") as caught:
        fl.load(X, name="rows", **options)
    assert says in str(caught.value)


def test_a_table_copies_and_freezes_its_start() -> None:
    start: dict[str, Any] = {"W": np.asfortranarray(np.ones((2, 3), ">f8")), "b": 0.5}
    w = fl.table("w", start)
    assert isinstance(w.of, DeclaredTable)
    start["W"][:] = 7
    found = w.of.init["W"]
    assert found.dtype == np.dtype("=f8")
    assert found.flags.c_contiguous
    assert not found.flags.writeable
    assert np.all(found == 1)
    assert w.of.init["b"].shape == ()


def test_a_table_may_start_from_a_function() -> None:
    def start(here: Any) -> Any:
        return np.full(2, here.replica)

    w = fl.table("w", start, scope="replica", on=0)
    assert isinstance(w.of, DeclaredTable)
    assert (w.of.init, w.of.scope, w.of.on) == (start, "replica", 0)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: fl.table("", 0.0), "a table needs a name, got ''"),
        (lambda: fl.table(3, 0.0), "a table needs a name, got 3"),  # type: ignore[arg-type]
        (lambda: fl.table("w", "text"), "init must be an array or a pytree of numeric arrays"),
        (lambda: fl.table("w", 0.0, scope=""), "scope must be a name, got ''"),
        (lambda: fl.table("w", 0.0, scope="Replicas"), "Did you mean 'replica'?"),
        (lambda: fl.table("w", 0.0, on=-1), "on must be an integer >= 0, got -1"),
        (lambda: fl.sparse_table("w", 0), "dim must be an integer >= 1, got 0"),
        (lambda: fl.here(seed=1.5), "seed must be an integer >= 0"),  # type: ignore[arg-type]
        (lambda: fl.map("f", fl.here()), "must be a function, got a str"),  # type: ignore[arg-type]
        (lambda: fl.map(lambda h: h, fl.here(), outputs=0), "outputs must be an integer >= 1"),
        (lambda: fl.gradient(MODEL, ()), "at least one table is needed, got an empty tuple"),
        (lambda: fl.gradient(MODEL, fl.here(), fl.here()), "must be a table, or what a write"),
        (lambda: fl.aggregate("mean", fl.here(), within="gobal"), "Did you mean 'global'?"),
        (lambda: fl.aggregate("mean", fl.here(), weight="heavy"),  # type: ignore[arg-type]
         'weight must be "examples", "equal" or a handle, got \'heavy\''),
        (lambda: fl.until(lambda: True, fl.here()), "must take its 1 input,"),
        (lambda: fl.evaluate(lambda p, b: 0.0, fl.here(), X, every="2 days"), "every must be"),
        (lambda: fl.evaluate(lambda p, b: 0.0, fl.here(), X, every=0), "every must be steps >= 1"),
        (lambda: fl.evaluate(lambda p: 0.0, fl.here(), X), "must take its 2 inputs"),
        (lambda: list(fl.here()), "cannot be unpacked. Say how many values there are"),
    ],
)  # fmt: skip
def test_a_word_refuses(make: Any, says: str) -> None:
    with pytest.raises(fl.GraphError) as caught:
        make()
    assert says in str(caught.value)
    assert "test_operators.py:" in str(caught.value)


def test_what_a_sparse_table_declares() -> None:
    w = fl.sparse_table("w", 8, dtype="float16")
    assert isinstance(w.of, DeclaredTable)
    assert w.of.init == SparseRows(8, None, "float16")


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (np.add, "add"),
        (lambda a, b: a, "map"),
        (functools.partial(np.add), "map"),
        (declared, "declared"),
    ],
)
def test_a_map_is_called_like_its_function(function: Any, name: str) -> None:
    inputs = [fl.here()] * (1 if function is declared else 2)
    assert declared(fl.map(function, *inputs)).suggested == name


def test_a_map_with_several_outputs_gives_as_many_handles() -> None:
    one, two, three = fl.map(lambda h: (1, 2, 3), fl.here(), outputs=3)
    assert [h.output for h in (one, two, three)] == [0, 1, 2]
    assert one.of is two.of is three.of


def test_a_gradient_gives_a_handle_a_table_and_one_for_aux() -> None:
    a, b = fl.table("a", np.ones(3)), fl.table("b", np.ones(3))
    batch = fl.load(X, batch_size=2)
    one = fl.gradient(lambda p, x: np.sum(p * x), a, batch)
    assert isinstance(one, Handle)
    ga, gb = fl.gradient(lambda p, x: np.sum(p[0] * x), (a, b), batch)
    assert declared(ga).action.packed  # type: ignore[union-attr]
    assert (ga.output, gb.output) == (0, 1)
    gradient, beside = fl.gradient(lambda p, x: (np.sum(p * x), x), a, batch, aux=True)
    assert (gradient.output, beside.output, declared(beside).outputs) == (0, 1, 2)


def test_a_weight_that_is_a_handle_is_an_input() -> None:
    value, weight = fl.map(lambda h: (1, 2), fl.here(), outputs=2)
    made: Any = declared(fl.aggregate("sum", value, weight=weight))
    assert [h.output for h in made.inputs] == [0, 1]
    assert made.action.weight == "handle"
    assert made.action.reduction.weighted
    median: Any = declared(fl.aggregate("median", value, weight=weight))
    assert not median.action.reduction.weighted


@pytest.mark.parametrize(
    ("every", "found"),
    [(5, (5, "steps")), (np.int32(5), (5, "steps")), ("100 steps", (100, "steps")),
     ("1 epoch", (1, "epochs")), (" 3 epochs", (3, "epochs"))],
)  # fmt: skip
def test_how_often_an_evaluation_is_made(every: Any, found: tuple[int, str]) -> None:
    action: Any = declared(fl.evaluate(lambda p, b: 0.0, fl.table("w", 0.0), X, every=every)).action
    assert (action.every, action.unit) == found
    assert type(action.every) is int


def test_edges_chain_and_leave_the_handle_as_it_was() -> None:
    w = fl.table("w", np.zeros(3))
    rows = fl.load(X, batch_size=2)
    found = w.stale(4).every(2, keep="last").compress(fl.codecs.int8()).when(0.1).at(rows)
    assert w.edge == Edge()
    assert found.of is w.of
    assert found.edge.ids is rows
    assert found.edge.describe().startswith("stale(4), every(2, last), when(0.1), ")
    assert rows.sync(until=5).async_().edge.promise_at(4) == Promise("sync")
    assert rows.quorum(3, late="drop").edge.describe() == "quorum(3, drop)"


def test_a_handle_shows_what_it_is_of() -> None:
    w = fl.table("w", np.zeros(3))
    assert repr(w) == f"<table 'w' (test_operators.py:{line() - 1})>"
    assert repr(fl.here()) == f"<here 'here' (test_operators.py:{line()})>"


def test_a_table_of_replicas_is_read_by_each_before_it_is_combined() -> None:
    local, w = fl.table("local", np.zeros(3), scope="replica"), fl.table("w", np.zeros(3))
    mean = declared(fl.aggregate("mean", local.every(3).quorum(2)))
    read = declared(mean.inputs[0])
    assert (read.kind, read.suggested, read.site) == ("map", "read_local", mean.site)
    assert (mean.inputs[0].edge, read.inputs[0].edge) == (Edge().quorum(2), Edge().every(3))
    assert declared(declared(fl.update(w, local, fl.add())).inputs[0]).suggested == "read_local"
    assert declared(fl.update(local, local, fl.add())).inputs[0] is local
    assert declared(fl.update(local, w, fl.add())).inputs[0] is w
    assert declared(fl.assign(local, w)).inputs[0] is w


def test_the_target_of_a_write_may_name_rows() -> None:
    w, rows = fl.table("w", np.zeros(3)), fl.load(X, batch_size=2)
    made = declared(fl.update(w.at(rows), rows, fl.add()))
    assert made.inputs[1] is rows
    assert made.writes is w.of
