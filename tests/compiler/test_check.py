"""Scopes of all kinds of operators, and the graphs that cannot mean anything."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowml as fl
from flowml.compiler.check import check
from flowml.errors import FlowmlError, ManyErrors
from tests.compiler.declared import (
    X,
    batch,
    both,
    grad,
    graphs,
    hierarchical,
    kmeans,
    local_sgd,
    pushed,
    replica_table,
    scribbles,
    ssgd,
    table,
)

GRAPHS: list[Callable[[], fl.Graph]] = [
    ssgd,
    local_sgd,
    hierarchical,
    kmeans,
    pushed,
    replica_table,
]


def scopes(graph: fl.Graph) -> dict[str, str]:
    return {o.name: o.scope for o in graph.logical.operators}


def test_scopes_of_synchronous_sgd() -> None:
    assert scopes(ssgd()) == {
        "load": "replica",
        "grad": "replica",
        "mean": "global",
        "update_w": "global",
    }


def test_scopes_of_local_sgd() -> None:
    assert scopes(local_sgd()) == {
        "load": "replica",
        "grad": "replica",
        "update_local": "replica",
        "drift": "replica",
        "mean": "global",
        "update_anchor": "global",
        "assign_local": "replica",
    }


def test_scopes_of_hierarchical_sgd() -> None:
    assert scopes(hierarchical()) == {
        "load": "replica",
        "grad": "replica",
        "inside": "host",
        "across": "global",
        "update_w": "global",
    }


def test_scopes_of_kmeans() -> None:
    assert scopes(kmeans()) == {
        "load": "replica",
        "totals": "replica",
        "sum": "global",
        "means": "global",
        "assign_centres": "global",
        "moved": "global",
        "until": "global",
    }


def test_the_scope_of_each_kind() -> None:
    w, copy, local = table("w"), table("copy", "host"), table("local", "replica")
    x = batch()
    graph = fl.Graph(
        fl.update(copy, fl.map(grad, copy, x, name="near"), fl.sgd(0.1), name="push"),
        fl.assign(local, fl.map(both, w, copy, name="wide"), name="spread"),
        fl.assign(w, fl.map(lambda w: w, w, name="alone"), name="keep"),
        fl.assign(
            table("seen"),
            fl.aggregate("sum", fl.map(lambda h: np.ones(3), fl.here(), name="one")),
            name="count",
        ),
        fl.until(lambda w: False, w, name="end"),
        fl.evaluate(lambda p, b: 0.0, w, X, name="test"),
    )
    assert scopes(graph) == {
        "load": "replica",
        "near": "replica",
        "push": "host",
        "wide": "host",
        "spread": "replica",
        "alone": "global",
        "keep": "global",
        "here": "replica",
        "one": "replica",
        "sum": "global",
        "count": "global",
        "end": "global",
        "test": "global",
    }


@pytest.mark.parametrize("make", GRAPHS, ids=lambda f: f.__name__)
def test_check_is_idempotent_and_changes_only_scopes(make: Callable[[], fl.Graph]) -> None:
    graph = make().logical
    assert check(graph) == graph
    assert check(check(graph)).token == graph.token


def several_groupings() -> fl.Graph:
    a, b = table("a", "rack"), table("b", "row")
    return fl.Graph(
        fl.assign(a, fl.map(both, a, b, name="mixed")),
        fl.update(b, fl.map(grad, b, batch()), fl.add()),
    )


def assign_without_an_aggregate() -> fl.Graph:
    w = table()
    return fl.Graph(fl.assign(w, fl.map(grad, w, batch())))


def aggregate_of_one_value() -> fl.Graph:
    w = table()
    mean = fl.aggregate("mean", fl.aggregate("mean", fl.map(grad, w, batch())), name="again")
    return fl.Graph(fl.assign(w, mean))


def aggregate_within_what_is_coarser() -> fl.Graph:
    w = table()
    mean = fl.aggregate(
        "mean", fl.aggregate("mean", fl.map(grad, w, batch())), within="host", name="inside"
    )
    return fl.Graph(fl.assign(w, mean))


def end_by_a_replica() -> fl.Graph:
    w = table()
    g = fl.map(grad, w, batch())
    return fl.Graph(fl.update(w, g, fl.add()), fl.until(lambda g: True, g))


def evaluation_of_a_replica_table() -> fl.Graph:
    local = table("local", "replica")
    moved = fl.update(local, fl.map(grad, local, batch()), fl.sgd(0.1))
    return fl.Graph(moved, fl.evaluate(lambda p, b: 0.0, moved, X))


def evaluation_of_a_value() -> fl.Graph:
    w = table()
    mean = fl.aggregate("mean", fl.map(grad, w, batch()))
    return fl.Graph(fl.assign(w, mean), fl.evaluate(lambda p, b: 0.0, mean, X, name="test"))


def evaluation_with_a_period() -> fl.Graph:
    w = table()
    mean = fl.aggregate("mean", fl.map(grad, w, batch()))
    return fl.Graph(fl.assign(w, mean), fl.evaluate(lambda p, b: 0.0, w.every(3), X, name="test"))


def mean_out_of_a_table() -> fl.Graph:
    return ssgd(read=lambda w: w.every(2, keep="mean"))


def quorum_into_a_map() -> fl.Graph:
    return ssgd(read=lambda w: w.quorum(2))


def whole_share_and_drop_last() -> fl.Graph:
    w = table()
    x = fl.load(X, batch_size=None, drop_last=True)
    return fl.Graph(fl.update(w, fl.map(grad, w, x), fl.add()))


REFUSED = [
    (several_groupings, "inputs must come from one grouping", "rack and row", "operator 'mixed'"),
    (assign_without_an_aggregate, "only one value an instance", "one a replica", "Aggregate first"),
    (aggregate_of_one_value, "needs values of a finer scope", "got global", "operator 'again'"),
    (aggregate_within_what_is_coarser, "to scope host", "got global", "use the value itself"),
    (end_by_a_replica, "until needs a value of scope global", "got replica", "Aggregate it first"),
    (evaluation_of_a_replica_table, "evaluate needs a value of scope", "got replica", "global"),
    (evaluation_of_a_value, "evaluate needs a table", "got 'mean'", "edge mean -> test"),
    (evaluation_with_a_period, "an evaluation has its own every=", "got every(3)", "edge w ->"),
    (mean_out_of_a_table, "only keep='last' has a meaning", "got 'mean'", "edge w -> grad"),
    (quorum_into_a_map, "a quorum belongs on an edge into an aggregate", "got map", "edge w -> gr"),
    (whole_share_and_drop_last, "drop_last has no meaning", "batch_size=None", "Drop one"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "required", "got", "more"), REFUSED, ids=lambda v: getattr(v, "__name__", "")
)
def test_what_cannot_mean_anything(
    make: Callable[[], fl.Graph], required: str, got: str, more: str
) -> None:
    with pytest.raises(fl.GraphError) as caught:
        make()
    text = str(caught.value)
    assert [part for part in (required, got, more) if part not in text] == [], text
    assert re.search(r"\((test_check|declared)\.py:\d+\)", text)


def test_two_writes_are_ordered_by_a_path_however_long() -> None:
    w = table()
    first = fl.update(w, fl.aggregate("mean", fl.map(grad, w, batch())), fl.sgd(0.1))
    far = fl.map(both, fl.map(both, first))
    other = table("other")
    graph = fl.Graph(first, fl.assign(other, far), fl.assign(w, fl.map(both, far)))
    assert [o.name for o in graph.logical.writers("w")] == ["update_w", "assign_w"]


def test_a_path_through_a_table_is_no_order() -> None:
    """A read of the table shows the step before: it says nothing about this step."""
    w = table()
    first = fl.update(w, fl.aggregate("mean", fl.map(grad, w, batch())), fl.sgd(0.1))
    with pytest.raises(fl.GraphError, match="need an order"):
        fl.Graph(first, fl.assign(w, fl.map(both, w)))


def test_three_writes_need_two_paths() -> None:
    w = table()
    mean = fl.aggregate("mean", fl.map(grad, w, batch()))
    writes = [fl.update(w, mean, fl.add(), name=name) for name in "abc"]
    with pytest.raises(ManyErrors) as caught:
        fl.Graph(*writes)
    assert len(caught.value.errors) == 2
    assert "'a'" in str(caught.value.errors[0])
    assert "'c'" in str(caught.value.errors[1])


def test_a_group_and_a_grouping_of_another_name() -> None:
    w, copy = table(), table("copy", "rack")
    g = fl.map(grad, w, batch())
    with pytest.raises(fl.GraphError, match="may name one grouping") as caught:
        fl.Graph(
            fl.update(copy, g, fl.add()),
            fl.assign(w, fl.aggregate("mean", fl.aggregate("mean", g, within="row"))),
        )
    assert "'rack' (test_check.py:" in str(caught.value)
    assert "'row' (test_check.py:" in str(caught.value)


@settings(max_examples=150)
@given(st.one_of(scribbles(), graphs()))
def test_any_graph_is_accepted_or_refused_with_a_reason(declare: Callable[[], fl.Graph]) -> None:
    refused: FlowmlError | None = None
    try:
        graph = declare().logical
    except FlowmlError as error:
        refused = error
    if refused is not None:
        assert refused.where
        assert refused.required
        assert "declared.py:" in str(refused)
        return
    assert all(o.scope for o in graph.operators)
    assert check(graph) == graph
    names = [o.name for o in graph.operators]
    for port, operator in graph.edges():
        assert port.table or names.index(port.source) < names.index(operator.name)


@settings(max_examples=50)
@given(graphs())
def test_the_strategy_for_legal_graphs_makes_legal_graphs(declare: Callable[[], fl.Graph]) -> None:
    assert declare().logical.token == declare().logical.token


def test_rows_by_the_ids_of_a_replica_are_of_that_replica() -> None:
    v = fl.table("v", np.zeros((4, 3)))
    ids = fl.map(lambda x: np.arange(2), batch(), name="ids")
    rows = fl.map(lambda v: v, v.at(ids), name="rows")
    graph = fl.Graph(fl.update(v, fl.aggregate("mean", rows), fl.add()))
    assert scopes(graph)["rows"] == "replica"
