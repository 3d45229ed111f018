"""Phases and fused groups, written by hand and compared; and what holds for any graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import flowml as fl
from flowml.actions import Aggregate
from flowml.compiler.fuse import Fused, fuse
from flowml.compiler.place import place
from tests.compiler.declared import (
    batch,
    both,
    grad,
    graphs,
    hierarchical,
    kmeans,
    local_sgd,
    pushed,
    replica_table,
    ssgd,
    table,
)


def fused(graph: fl.Graph, replicas: int = 4, groups: Any = 2) -> Fused:
    return fuse(place(graph.logical, replicas, groups))


def sliced(graph: fl.Graph) -> set[str]:
    return {name for name, phase in fused(graph).phases if phase.sliced}


def crossing(graph: fl.Graph) -> set[str]:
    """Return the edges that move between ranks."""
    found = fused(graph)
    return {
        f"{port.source} -> {name}"
        for name, phase in found.phases
        for port, crosses in zip(graph.logical.operator(name).inputs, phase.crosses, strict=True)
        if crosses
    }


EXPECTED = [
    (ssgd, (("load", "grad"), ("mean", "update_w")), {"mean", "update_w"}, {"grad -> mean"}),
    (
        local_sgd,
        (("load", "grad", "update_local", "drift"), ("mean", "update_anchor"), ("assign_local",)),
        {"mean", "update_anchor"},
        {"drift -> mean", "update_anchor -> assign_local"},
    ),
    (
        hierarchical,
        (("load", "grad"), ("inside",), ("across", "update_w")),
        {"inside", "across", "update_w"},
        {"grad -> inside", "inside -> across"},
    ),
    (
        kmeans,
        (("load", "totals"), ("sum",), ("means", "assign_centres", "moved", "until")),
        {"sum"},
        {"totals -> sum", "sum -> means"},
    ),
    (pushed, (("load", "grad"), ("update_w",)), {"update_w"}, {"grad -> update_w"}),
    (
        replica_table,
        (("load", "grad", "update_local", "again", "assign_local"),),
        set(),
        set(),
    ),
]


@pytest.mark.parametrize(("make", "loops", "by_slices", "crosses"), EXPECTED)
def test_phases_of_the_published_shapes(
    make: Callable[[], fl.Graph], loops: Any, by_slices: set[str], crosses: set[str]
) -> None:
    graph = make()
    assert fused(graph).loops() == loops
    assert sliced(graph) == by_slices
    assert crossing(graph) == crosses


def test_a_rule_that_sees_whole_leaves_waits_for_the_whole_sum() -> None:
    w = table()
    mean = fl.aggregate("mean", fl.map(grad, w, batch(), name="grad"), name="mean")
    graph = fl.Graph(fl.update(w, mean, fl.clip_norm(1.0, fl.sgd(0.1))))
    assert fused(graph).loops() == (("load", "grad"), ("mean",), ("update_w",))
    assert sliced(graph) == {"mean"}


def test_a_kept_mean_is_not_applied_by_slices() -> None:
    graph = ssgd(push=lambda m: m.every(2, keep="sum"))
    assert fused(graph).loops() == (("load", "grad"), ("mean",), ("update_w",))
    assert sliced(graph) == {"mean"}


def test_a_second_write_by_slices_follows_the_first_in_one_phase() -> None:
    w, v = table("w"), table("v")
    mean = fl.aggregate("mean", fl.map(grad, w, batch(), name="grad"), name="mean")
    first = fl.update(w, mean, fl.sgd(0.1), name="first")
    graph = fl.Graph(first, fl.update(v, mean, fl.sgd(0.1), name="other"))
    assert fused(graph).loops() == (("load", "grad"), ("mean", "first", "other"))


def test_writes_by_slices_and_as_a_whole_do_not_share_a_phase() -> None:
    w = table()
    mean = fl.aggregate("mean", fl.map(grad, w, batch(), name="grad"), name="mean")
    first = fl.update(w, mean, fl.sgd(0.1), name="first")
    second = fl.assign(w, fl.map(np.tanh, first, name="tanh"), name="second")
    found = dict(fused(fl.Graph(first, second)).phases)
    assert (found["first"].sliced, found["second"].sliced) == (True, False)
    assert [found[n].number for n in ("first", "tanh", "second")] == [1, 2, 2]


def test_two_sums_that_do_not_need_each_other_share_a_phase() -> None:
    a, b = table("a"), table("b")
    x = batch()
    means = [fl.aggregate("mean", fl.map(grad, t, x), name=n) for t, n in ((a, "ma"), (b, "mb"))]
    graph = fl.Graph(fl.update(a, means[0], fl.sgd(0.1)), fl.update(b, means[1], fl.sgd(0.1)))
    assert fused(graph).loops()[1] == ("ma", "mb", "update_a", "update_b")


def test_a_push_into_a_group_and_on_to_all() -> None:
    copy, w = table("copy", "host"), table("w")
    near = fl.update(copy, fl.map(grad, copy, batch(), name="grad"), fl.sgd(0.1), name="near")
    far = fl.assign(w, fl.aggregate("mean", near, name="mean"), name="far")
    graph = fl.Graph(near, far, fl.assign(copy, far, name="back"))
    assert fused(graph).loops() == (("load", "grad"), ("near",), ("mean", "far"), ("back",))
    assert crossing(graph) == {"grad -> near", "near -> mean", "far -> back"}


def test_a_read_of_a_table_never_waits_within_a_step() -> None:
    w = table()
    x = batch()
    first = fl.update(w, fl.aggregate("mean", fl.map(grad, w, x)), fl.sgd(0.1))
    graph = fl.Graph(first, fl.assign(table("v"), fl.map(np.tanh, w, name="old")))
    assert dict(fused(graph).phases)["old"].number == 0


@settings(max_examples=150)
@given(graphs())
def test_what_holds_for_any_graph(declare: Callable[[], fl.Graph]) -> None:
    graph = declare().logical
    found = fuse(place(graph, 4, 2))
    assert fuse(place(graph, 4, 2)) == found
    phases = dict(found.phases)
    assert list(phases) == [o.name for o in graph.operators]
    assert sorted(name for loop in found.loops() for name in loop) == sorted(phases)
    for operator in graph.operators:
        phase = phases[operator.name]
        assert phase.number >= 0
        assert phase.sliced or not isinstance(operator.action, Aggregate)
        for port, crosses in zip(operator.inputs, phase.crosses, strict=True):
            if port.table:
                assert not crosses
                continue
            source = graph.operator(port.source)
            assert phase.number >= phases[port.source].number + crosses
            assert crosses or source.scope == operator.scope
    for name in {t.name for t in graph.tables}:
        numbers = [phases[w.name].number for w in graph.writers(name)]
        assert numbers == sorted(numbers)


def test_maps_of_one_replica_stay_in_one_loop_however_many() -> None:
    w = table()
    value = fl.map(grad, w, batch())
    for _ in range(5):
        value = fl.map(both, value)
    graph = fl.Graph(fl.update(w, fl.aggregate("mean", value), fl.sgd(0.1)))
    assert [len(loop) for loop in fused(graph).loops()] == [7, 2]
