"""What ``.at(ids)`` may stand on; each refusal says so at the declaration, with its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flowml as fl
from flowml.compiler.stages import compile_graph
from flowml.errors import GraphError, ManyErrors
from tests.compiler.declared import batch, table


def ids_of(handle: Any = None) -> Any:
    return fl.map(lambda x: x[:, 0].astype(int) % 3, handle or batch(), name="ids")


def sparse(**options: Any) -> Any:
    return fl.sparse_table("s", 3, **options)


def negated(rows: Any) -> Any:
    return fl.map(lambda r: -r, rows, name="rows")


def pushed(rule: Any = None, scope: str = "global") -> fl.Graph:
    w, ids = table(scope=scope), ids_of()
    return fl.Graph(fl.update(w.at(ids), negated(w.at(ids)), rule or fl.sgd(0.1)))


def summed(how: Any = "mean", **options: Any) -> fl.Graph:
    s, ids = sparse(), ids_of()
    mean = fl.aggregate(how, negated(s.at(ids)).at(ids), name="mean", **options)
    return fl.Graph(fl.update(s, mean, fl.sgd(0.1)))


def evaluated() -> fl.Graph:
    w, ids = table(), ids_of()
    fresh = fl.update(w, fl.aggregate("mean", fl.map(lambda x: x.mean(0), batch())), fl.add())
    return fl.Graph(fresh, fl.evaluate(lambda w, x: 1.0, w.at(ids), np.ones((4, 3))))


def of_a_value() -> fl.Graph:
    w, ids = table(), ids_of()
    made = fl.map(lambda x: x, batch(), name="made")
    some = fl.map(lambda r: r.mean(0), made.at(ids), name="some")
    return fl.Graph(fl.update(w, some, fl.add()))


def of_another_scope() -> fl.Graph:
    w = table()
    mean = fl.aggregate("mean", fl.map(lambda x: x.mean(0), batch()), name="mean")
    ids = fl.map(lambda m: np.arange(2), mean, name="ids")
    some = fl.map(lambda r, x: r.mean(0), w.at(ids), batch(), name="some")
    return fl.Graph(fl.update(w, some, fl.add()))


def whole_sparse() -> fl.Graph:
    s, ids = sparse(), ids_of()
    some = fl.map(lambda s, i: s, s, ids, name="some")
    return fl.Graph(fl.update(s.at(ids), some, fl.add()))


def both_ways() -> fl.Graph:
    w, ids = table(), ids_of()
    first = fl.update(w.at(ids), negated(w.at(ids)), fl.add(), name="first")
    whole = fl.map(lambda f: f, first, name="whole")
    return fl.Graph(fl.assign(w, fl.aggregate("mean", whole), name="second"))


def with_a_period() -> fl.Graph:
    w, ids = table(), ids_of()
    return fl.Graph(fl.update(w.at(ids), negated(w.every(3).at(ids)), fl.add()))


def kept() -> fl.Graph:
    w, ids = table(), ids_of()
    return fl.Graph(fl.update(w.at(ids), negated(w.at(ids)).every(2), fl.add()))


def into_a_group() -> fl.Graph:
    copy, ids = table("copy", "host"), ids_of()
    return fl.Graph(fl.update(copy.at(ids), fl.map(lambda i: np.ones(2), ids), fl.add()))


def read_after_written() -> fl.Graph:
    local, ids = table("local", "replica"), ids_of()
    fresh = fl.update(local.at(ids), negated(local.at(ids)), fl.add())
    return fl.Graph(fresh, fl.update(table("w"), fl.map(lambda f: f, fresh, name="seen"), fl.add()))


def sum_for_two() -> fl.Graph:
    s, ids = sparse(), ids_of()
    mean = fl.aggregate("mean", negated(s.at(ids)).at(ids), name="mean")
    return fl.Graph(fl.update(s, mean, fl.add()), fl.until(lambda m: False, mean))


REFUSED = [
    (evaluated, "edge w -> ", "an evaluation reads a whole table"),
    (of_a_value, "edge made -> some", "rows are named where a table is read or written"),
    (of_another_scope, "edge w -> some", "the ids must be made by each replica"),
    (whole_sparse, "edge s -> some", "rows of sparse table 's' are read by key"),
    (both_ways, "table 'w'", "a table is written by rows, or whole"),
    (with_a_period, "edge w -> rows", "rows come with the ids of their own step"),
    (kept, "update 'update_w'", "rows come with the ids of their own step"),
    (into_a_group, "update 'update_copy'", "rows of a table of scope host are written by the host"),
    (read_after_written, "edge update_local -> seen", "what a write of rows returns"),
    (lambda: pushed(fl.clip_norm(1.0, fl.sgd(0.1))), "update 'update_w'",
     "rows are changed by rules that change each item by itself"),
    (lambda: summed("median"), "aggregate 'mean'", 'rows are combined by "sum" or "mean"'),
    (lambda: summed(within="host"), "aggregate 'mean'", "rows are combined over all replicas"),
    (sum_for_two, "aggregate 'mean'", "a sum of rows is written to one table"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "where", "says"), REFUSED)
def test_rows_where_there_are_none_are_refused(
    make: Callable[[], fl.Graph], where: str, says: str
) -> None:
    with pytest.raises((GraphError, ManyErrors)) as caught:
        make()
    errors = getattr(caught.value, "errors", [caught.value])
    found = [str(e) for e in errors if str(e).startswith(where) and says in str(e)]
    assert len(found) == 1, [str(e) for e in errors]
    assert ".py:" in found[0]


@pytest.mark.parametrize(
    "make", [pushed, lambda: pushed(fl.adam(0.1)), lambda: pushed(scope="replica"), summed]
)
def test_rows_of_tables_are_planned(make: Callable[[], fl.Graph]) -> None:
    assert compile_graph(make().logical, 2).replicas == 2
