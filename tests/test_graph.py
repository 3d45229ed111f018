"""The logical graph as a value: lookups, edges, and its structural name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cloudpickle
import numpy as np
import pytest

import flowml as fl
from flowml.graph import LogicalGraph, coarser

X = np.arange(24.0).reshape(8, 3)
Y = np.array([0, 1] * 4)


def total(w: Any, x: Any) -> Any:
    return w + x.sum(0)


def made(
    names: tuple[str, str, str] = ("w", "g", "m"),
    *,
    source: Any = X,
    batch_size: int = 2,
    function: Any = total,
    how: Any = "mean",
    rule: Any = None,
    start: Any = None,
    read: Callable[[Any], Any] = lambda w: w,
    push: Callable[[Any], Any] = lambda m: m,
    graph: str = "one",
    **load: Any,
) -> LogicalGraph:
    table, gradient, mean = names
    w = fl.table(table, np.zeros(3) if start is None else start)
    x = fl.load(source, batch_size=batch_size, **load)
    m = fl.aggregate(how, fl.map(function, read(w), x, name=gradient), name=mean)
    return fl.Graph(fl.update(w, push(m), rule or fl.sgd(0.1)), name=graph).logical


def test_equal_graphs_of_other_names_have_one_token() -> None:
    assert made().token == made().token
    assert made().token == made(("weights", "grad", "average"), graph="two").token
    assert made().token == made(source=X.copy(), start=np.zeros(3)).token
    assert made().token == made(rule=fl.sgd(0.1)).token


DIFFERENT: list[dict[str, Any]] = [
    {"source": X + 1},
    {"source": (X, Y), "function": lambda w, b: w},
    {"batch_size": 3},
    {"shuffle": False},
    {"drop_last": True},
    {"seed": 1},
    {"function": lambda w, x: w},
    {"how": "sum"},
    {"how": fl.trimmed_mean(1)},
    {"rule": fl.sgd(0.2)},
    {"rule": fl.sgd(0.1, momentum=0.5)},
    {"rule": fl.add(0.1)},
    {"start": np.ones(3)},
    {"start": np.zeros(3, "float32")},
    {"start": {"a": np.zeros(3)}, "function": lambda w, x: w},
    {"read": lambda w: w.stale(2)},
    {"read": lambda w: w.every(2)},
    {"push": lambda m: m.every(2)},
    {"push": lambda m: m.every(2, keep="last")},
    {"read": lambda w: w.compress(fl.codecs.float16())},
]


def test_whatever_changes_the_arithmetic_changes_the_token() -> None:
    tokens = [made().token, *(made(**options).token for options in DIFFERENT)]
    assert len(set(tokens)) == len(tokens)


def two_tables(first: str, second: str) -> LogicalGraph:
    a, b = fl.table(first, np.zeros(3)), fl.table(second, np.ones(3))
    x = fl.load(X, batch_size=2)
    ga, gb = fl.map(total, a, x), fl.map(total, b, x)
    return fl.Graph(fl.update(a, ga, fl.add()), fl.update(b, gb, fl.add())).logical


def test_the_alphabet_does_not_matter_to_the_token() -> None:
    assert two_tables("a", "b").token == two_tables("z", "y").token


def test_tables_that_change_places_change_the_token() -> None:
    a, b = fl.table("a", np.zeros(3)), fl.table("b", np.ones(3))
    x = fl.load(X, batch_size=2)
    g = fl.map(lambda a, b, x: a - b, a, b, x)
    swapped = fl.map(lambda a, b, x: a - b, b, a, x)
    assert (
        fl.Graph(fl.update(a, g, fl.add())).logical.token
        != fl.Graph(fl.update(a, swapped, fl.add())).logical.token
    )


def rows(which: int) -> LogicalGraph:
    v, x = fl.table("v", np.zeros((4, 2))), fl.load(X, batch_size=2)
    ids = fl.map(lambda x: (x, x), x, outputs=2, name="ids")
    read = fl.map(lambda v: v, v.at(ids[which]), name="read")
    return fl.Graph(fl.update(v, fl.aggregate("mean", read), fl.add())).logical


def test_rows_by_other_ids_have_another_token() -> None:
    tokens = {rows(0).token, rows(1).token}
    assert len(tokens) == 2


def test_rows_by_ids_of_another_operator_have_another_token() -> None:
    v, x = fl.table("v", np.zeros((4, 2))), fl.load(X, batch_size=2)
    one, two = (fl.map(np.asarray, x, name=name) for name in "ab")
    tokens = set()
    for ids in (one, two):
        read = fl.map(lambda v, a, b: v, v.at(ids), one, two)
        tokens.add(fl.Graph(fl.assign(v, fl.aggregate("mean", read))).logical.token)
    assert len(tokens) == 2


TOKEN = """
import numpy as np, flowml as fl
w = fl.table("w", np.zeros(3))
g = fl.map(np.add, w, fl.load(np.arange(24.0).reshape(8, 3), batch_size=2))
print(fl.Graph(fl.update(w, fl.aggregate("mean", g), fl.adam(0.1))).logical.token)
"""


def test_the_token_is_the_same_in_every_process() -> None:
    found = {
        subprocess.run(
            [sys.executable, "-c", TOKEN],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_lookups() -> None:
    graph = made()
    assert [o.name for o in graph.loads()] == ["load"]
    assert [o.name for o in graph.writers("w")] == ["update_w"]
    assert graph.operator("m").kind == "aggregate"
    assert graph.table("w").scope == "global"
    assert not graph.table("w").sparse
    assert [(p.source, o.name) for p, o in graph.edges()] == [
        ("w", "g"),
        ("load", "g"),
        ("g", "m"),
        ("m", "update_w"),
    ]
    assert graph.operator("g").label.startswith("operator 'g' (test_graph.py:")


def test_networkx_closes_the_loop_through_the_table() -> None:
    net = made(read=lambda w: w.stale(2)).to_networkx()
    assert set(net) == {"w", "load", "g", "m", "update_w"}
    assert net.nodes["w"]["kind"] == "table"
    assert net.nodes["g"] == {"kind": "map", "scope": "replica", "site": net.nodes["g"]["site"]}
    assert net.get_edge_data("w", "g")[0] == {"label": "stale(2)", "promise": "stale"}
    assert net.get_edge_data("update_w", "w")[0]["write"]


def test_a_graph_is_a_value() -> None:
    graph = made()
    same = replace(graph, name=graph.name)
    assert same == graph
    assert replace(graph, name="other") != graph
    again = cloudpickle.loads(cloudpickle.dumps(graph))
    assert again.token == graph.token
    assert again.operator("g").site == graph.operator("g").site


@pytest.mark.parametrize(
    ("scope", "than", "found"),
    [
        ("global", "replica", True), ("global", "host", True), ("host", "replica", True),
        ("rack", "replica", True), ("replica", "replica", False), ("host", "host", False),
        ("replica", "host", False), ("host", "global", False), ("global", "global", False),
    ],
)  # fmt: skip
def test_which_scope_is_coarser(scope: str, than: str, found: bool) -> None:
    assert coarser(scope, than) is found
