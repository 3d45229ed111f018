"""From handles to a graph: what is reached, what it is called, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import flowml as fl
from flowml.actions import Assign, Update
from flowml.collect import closest, collect
from flowml.errors import ManyErrors
from flowml.graph import Port

X = np.ones((8, 3), "float32")


def total(w: Any, x: Any) -> Any:
    return x.sum(0)


def test_operators_stand_in_the_order_of_declaration() -> None:
    w = fl.table("w", np.zeros(3, "float32"))
    x = fl.load(X, batch_size=2)
    unused = fl.map(total, w, x, name="unused")
    s = fl.map(total, w, x)
    m = fl.aggregate("mean", s)
    graph = collect([fl.update(w, m, fl.sgd(0.1)), fl.assign(w, s)], "g")
    assert [o.name for o in graph.operators] == ["load", "total", "mean", "update_w", "assign_w"]
    assert [t.name for t in graph.tables] == ["w"]
    assert unused.of.name not in {o.name for o in graph.operators}
    assert graph.operator("total").inputs == (
        Port("w", 0, w.edge, table=True),
        Port("load", 0, x.edge, table=False),
    )
    assert isinstance(graph.operator("update_w").action, Update)
    assert isinstance(graph.operator("assign_w").action, Assign)
    assert graph.operator("load").writes is None
    assert [o.name for o in graph.writers("w")] == ["update_w", "assign_w"]


def test_unnamed_operators_get_numbers_and_leave_given_names_alone() -> None:
    w, x = fl.table("w", np.zeros(3)), fl.load(X, batch_size=2)
    first, second = fl.map(total, w, x), fl.map(total, w, x)
    third = fl.map(lambda a, b, c: a, first, second, fl.map(total, w, x, name="total_2"))
    graph = collect([fl.assign(w, third)], "g")
    assert [o.name for o in graph.operators] == [
        "load",
        "total",
        "total_3",
        "total_2",
        "map",
        "assign_w",
    ]


def test_names_must_differ_from_each_other_and_from_tables() -> None:
    w, x = fl.table("w", np.zeros(3)), fl.load(X, batch_size=2, name="w")
    twice = fl.map(total, fl.map(total, w, x, name="a"), x, name="a")
    with pytest.raises(ManyErrors) as caught:
        collect([fl.assign(w, twice)], "g")
    first, second = caught.value.errors
    assert str(first).startswith("load 'w' (test_collect.py:")
    assert "is already taken by table 'w' (test_collect.py:" in str(first)
    assert str(second).startswith("map 'a' (test_collect.py:")


def test_all_sinks_that_do_nothing_are_named() -> None:
    w, x = fl.table("w", np.zeros(3)), fl.load(X, batch_size=2)
    with pytest.raises(ManyErrors, match="4 mistakes") as caught:
        collect([w, x, 3, fl.assign(w, x).stale(1)], "g")  # type: ignore[list-item]
    got = [error.got.split(" (")[0] for error in caught.value.errors]
    assert got == ["table 'w'", "load 'load'", "a int", "assign 'assign_w'"]


def test_row_ids_are_reached_and_named() -> None:
    table = fl.table("v", np.zeros((4, 2)))
    ids, other = fl.map(lambda x: (x, x), fl.load(X, batch_size=2), outputs=2, name="ids")
    rows = fl.map(lambda v: v, table.at(other), name="rows")
    graph = collect([fl.assign(table, rows)], "g")
    assert [o.name for o in graph.operators] == ["load", "ids", "rows", "assign_v"]
    assert graph.operator("rows").inputs[0].edge.ids == ("ids", 1)
    assert graph.operator("rows").inputs[0].edge.describe() == "at(ids)"
    assert ids.edge.ids is None


def test_a_table_that_is_only_written_is_reached() -> None:
    v, x = fl.table("v", np.zeros(3)), fl.load(X, batch_size=2)
    graph = collect([fl.assign(v, fl.aggregate("sum", fl.map(lambda x: x.sum(0), x)))], "g")
    assert [t.name for t in graph.tables] == ["v"]
    assert graph.table("v").site.file == __file__


def test_the_graph_knows_where_it_was_made() -> None:
    w, x = fl.table("w", np.zeros(3)), fl.load(X, batch_size=2)
    graph = fl.Graph(fl.assign(w, fl.aggregate("sum", x)), name="mine").logical
    assert graph.label.startswith("graph 'mine' (test_collect.py:")


@pytest.mark.parametrize(
    ("word", "found"),
    [("gradiant", "Did you mean 'gradient'? "), ("zzz", ""), ("updat", "Did you mean 'update'? ")],
)
def test_closest(word: str, found: str) -> None:
    assert closest(word, ["gradient", "update"]) == found
