"""Where quorums, thresholds and codecs have a meaning; each refusal says so at the declaration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import flowml as fl
from flowml.compiler.stages import compile_graph
from flowml.errors import GraphError, ManyErrors
from tests.compiler.declared import batch, grad, ssgd, table

INT8, FLOAT16 = fl.codecs.int8(), fl.codecs.float16()


def inside(mark: Callable[[Any], Any]) -> fl.Graph:
    w = table()
    near = fl.aggregate("mean", mark(fl.map(grad, w, batch(), name="grad")), within="host")
    return fl.Graph(fl.update(w, fl.aggregate("mean", near), fl.sgd(0.1)))


def two_quorums() -> fl.Graph:
    w, v = table(), table("v")
    one, two = (
        fl.aggregate("mean", fl.map(grad, t, batch(), name=f"grad_{n}").quorum(1), name=n)
        for t, n in ((w, "one"), (v, "two"))
    )
    return fl.Graph(fl.update(w, one, fl.sgd(0.1)), fl.update(v, two, fl.sgd(0.1)))


def own_table() -> fl.Graph:
    local = table("local", "replica")
    read = fl.map(grad, local.compress(FLOAT16), batch(), name="grad")
    return fl.Graph(fl.update(local, read, fl.sgd(0.1)))


def unread() -> fl.Graph:
    w = table()
    pushed = fl.map(lambda x: x.mean(0), batch(), name="pushed")
    return fl.Graph(fl.update(w, pushed.when(0.5), fl.add()))


def rows_of(mark: Callable[[Any], Any]) -> fl.Graph:
    w = table()
    ids = fl.map(lambda x: x[:, 0].astype(int) % 3, batch(), name="ids")
    rows = fl.map(lambda r: -r, w.at(ids), name="rows")
    return fl.Graph(fl.update(w.at(ids), mark(rows), fl.add()))


REFUSED = [
    (lambda: ssgd(lambda w: w.stale(2), lambda g: g.quorum(2)), "edge w -> grad",
     "what a quorum writes is read sync"),
    (lambda: ssgd(gather=lambda g: g.stale(2).quorum(2)), "edge grad -> mean",
     "a quorum is a promise"),
    (lambda: inside(lambda g: g.quorum(1)), "edge grad -> mean", "a quorum is of replicas"),
    (two_quorums, "graph 'graph'", "a graph has one quorum"),
    (lambda: ssgd(push=lambda m: m.when(0.1)), "edge mean -> update_w", ".when belongs where"),
    (lambda: inside(lambda g: g.when(0.1)), "edge grad -> mean", ".when belongs where"),
    (unread, "edge pushed -> update_w", "the replica must read the table whole"),
    (lambda: ssgd(push=lambda m: m.compress(INT8)), "edge mean -> update_w",
     ".compress belongs where"),
    (lambda: inside(lambda g: g.compress(INT8)), "edge grad -> mean", ".compress belongs where"),
    (lambda: ssgd(lambda w: w.compress(INT8)), "edge w -> grad", "only codecs without feedback"),
    (own_table, "edge local -> grad", ".compress belongs where something travels"),
    (lambda: rows_of(lambda r: r.compress(INT8)), "edge rows -> update_w",
     "only codecs without feedback: rows come and go"),
    (lambda: rows_of(lambda r: r.when(0.5)), "update 'update_w'", "rows come with the ids"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "where", "says"), REFUSED)
def test_what_means_nothing_is_refused_at_the_declaration(
    make: Callable[[], fl.Graph], where: str, says: str
) -> None:
    with pytest.raises((GraphError, ManyErrors)) as caught:
        make()
    errors = getattr(caught.value, "errors", [caught.value])
    found = [str(e) for e in errors if str(e).startswith(where) and says in str(e)]
    assert len(found) == 1, [str(e) for e in errors]
    assert ".py:" in found[0]


ALLOWED = [
    lambda: ssgd(gather=lambda g: g.quorum(2)),
    lambda: ssgd(gather=lambda g: g.every(3).quorum(2, late="drop")),
    lambda: ssgd(lambda w: w.async_(), lambda g: g.when(0.1)),
    lambda: ssgd(lambda w: w.stale(2).compress(FLOAT16), lambda g: g.compress(INT8)),
    lambda: rows_of(lambda r: r.compress(FLOAT16)),
]


@pytest.mark.parametrize("make", ALLOWED)
def test_what_has_a_meaning_is_planned(make: Callable[[], fl.Graph]) -> None:
    assert compile_graph(make().logical, 3).replicas == 3
