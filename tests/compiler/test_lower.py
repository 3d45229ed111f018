"""The physical plan: periods, trees, refusals; plans print, pickle and say what they are."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from hypothesis import given, settings

import flowml as fl
from flowml.compiler.check import check
from flowml.compiler.explain import explain
from flowml.compiler.fuse import fuse
from flowml.compiler.lower import lower
from flowml.compiler.place import place
from flowml.compiler.stages import STAGES, compile_graph
from flowml.edges import Quorum
from flowml.errors import ManyErrors, PlanError
from flowml.plan import Plan
from flowml.runtime.shipping import ship_plan
from tests.compiler.declared import (
    batch,
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

GRAPHS: list[Callable[[], fl.Graph]] = [
    ssgd,
    local_sgd,
    hierarchical,
    kmeans,
    pushed,
    replica_table,
]


def plan(graph: fl.Graph, replicas: int = 4, groups: Any = 2) -> Plan:
    return compile_graph(graph.logical, replicas, groups)


def kept(graph: fl.Graph, name: str, number: int = 0) -> tuple[int, str]:
    port = plan(graph).operator(name).inputs[number]
    return port.every, port.keep


KEEPS = [
    (lambda: ssgd(gather=lambda g: g.every(3)), "mean", "mean"),
    (lambda: ssgd(gather=lambda g: g.every(3), how="sum"), "mean", "sum"),
    (lambda: ssgd(gather=lambda g: g.every(3), how="median"), "mean", "last"),
    (lambda: ssgd(gather=lambda g: g.every(3, keep="last")), "mean", "last"),
    (lambda: ssgd(push=lambda m: m.every(3)), "update_w", "sum"),
    (lambda: ssgd(push=lambda m: m.every(3, keep="mean")), "update_w", "mean"),
    (lambda: ssgd(read=lambda w: w.every(3)), "grad", "last"),
    (lambda: ssgd(read=lambda w: w.every(3, keep="last")), "grad", "last"),
]


@pytest.mark.parametrize(("make", "reader", "keep"), KEEPS)
def test_what_the_steps_between_become(
    make: Callable[[], fl.Graph], reader: str, keep: str
) -> None:
    assert kept(make(), reader) == (3, keep)


def test_a_write_and_a_map_keep_the_last() -> None:
    assert kept(local_sgd(5), "drift", 1) == (5, "last")
    w, g = table(), None
    g = fl.map(grad, w, batch(), name="grad")
    graph = fl.Graph(fl.assign(w, fl.aggregate("mean", fl.map(np.tanh, g.every(4), name="t"))))
    assert kept(graph, "t") == (4, "last")
    graph = fl.Graph(fl.assign(w, fl.aggregate("mean", g, name="m").every(4)))
    assert kept(graph, "assign_w") == (4, "last")


def test_an_edge_without_a_period_delivers_in_every_step() -> None:
    assert kept(ssgd(), "mean") == (1, "last")


def test_a_port_says_what_else_its_edge_does() -> None:
    made = plan(ssgd(gather=lambda g: g.quorum(2, late="drop")), groups=None)
    assert made.operator("mean").inputs[0].members == Quorum(2, "drop")
    made = plan(ssgd(gather=lambda g: g.when(0.1)), groups=None)
    port = made.operator("mean").inputs[0]
    assert (port.threshold, port.keep) == (0.1, "mean")
    codec = fl.codecs.float16()
    made = plan(ssgd(read=lambda w: w.async_().compress(codec)), groups=None)
    assert made.operator("grad").inputs[0].codec == codec


def test_a_port_names_its_rows() -> None:
    w = table()
    ids = fl.map(lambda x: np.arange(2), batch(), name="ids")
    rows = fl.map(lambda r: -r, w.at(ids), name="rows")
    made = plan(fl.Graph(fl.update(w.at(ids), rows, fl.add())), groups=None)
    assert made.operator("rows").inputs[0].ids == ("ids", 0)
    assert made.operator("ids").phase < made.operator("rows").phase
    assert [p.source for p in made.operator("update_w").inputs] == ["rows", "ids"]


@pytest.mark.parametrize(
    ("mark", "promises"),
    [
        (lambda w: w.stale(4), ((0, 4.0),)),
        (lambda w: w.async_(), ((0, math.inf),)),
        (lambda w: w.sync(until=9).async_(), ((0, 0.0), (9, math.inf))),
        (lambda w: w.stale(0), ((0, 0.0),)),
    ],
)
def test_a_port_says_its_promises(mark: Callable[[Any], Any], promises: Any) -> None:
    made = plan(ssgd(read=mark), groups=None)
    loop = [("grad", 0), ("mean", 0), ("update_w", 0)]
    assert {made.operator(name).inputs[n].promises for name, n in loop} == {promises}
    assert made.operator("grad").inputs[1].promises == ((0, 0.0),)  # out of the load


def test_a_schedule_of_sync_alone_runs() -> None:
    assert plan(ssgd(read=lambda w: w.sync(until=9).sync())).replicas == 4


def test_pinned_tables_are_refused() -> None:
    pinned = table("p", on=1)
    mean = fl.aggregate("mean", fl.map(grad, pinned, batch(), name="grad"))
    with pytest.raises(PlanError, match="on= is declared and drawn, but does not run"):
        plan(fl.Graph(fl.assign(pinned, mean)))


def test_all_refusals_come_in_one_error() -> None:
    graph = ssgd(lambda w: w.stale(2), lambda g: g.every(3), lambda m: m.every(2))
    with pytest.raises(ManyErrors, match="2 mistakes") as caught:
        plan(graph)
    text = str(caught.value)
    assert ".every is for sync edges" in text
    assert ".every stands between" in text
    assert all(isinstance(e, PlanError) for e in caught.value.errors)


def test_a_plan_knows_its_graph() -> None:
    graph = hierarchical()
    made = plan(graph)
    assert made.graph == "hierarchical"
    assert made.form == graph.logical.form
    assert made.groups == ((0, 1), (2, 3))
    assert made.phases == 3
    assert made.table("w").writes == ("update_w",)
    assert [o.name for o in made.steps] == [o.name for o in graph.logical.operators]
    assert compile_graph(graph.logical, 2, blas_threads=3).blas_threads == 3


@pytest.mark.parametrize("make", GRAPHS, ids=lambda f: f.__name__)
def test_passes_are_pure(make: Callable[[], fl.Graph]) -> None:
    graph = make().logical
    stages = [check(graph), place(check(graph), 4, 2)]
    found = fuse(place(check(graph), 4, 2))
    before = [repr(stage) for stage in (graph, *stages, found)]
    made = lower(found)
    assert [repr(stage) for stage in (graph, *stages, found)] == before
    assert stages == [check(graph), place(check(graph), 4, 2)]
    assert fuse(place(check(graph), 4, 2)) == found
    assert lower(found) == made == compile_graph(graph, 4, 2)


@pytest.mark.parametrize("make", GRAPHS, ids=lambda f: f.__name__)
def test_every_stage_prints(make: Callable[[], fl.Graph]) -> None:
    graph = make()
    checked = check(graph.logical)
    placed = place(checked, 4, 2)
    found = fuse(placed)
    made = lower(found)
    for stage in (checked, placed, found, made):
        text = repr(stage)
        assert all(o.name in text for o in checked.operators)
    said = dict(explain(graph.logical, 4, 2, probe=None).stages)
    assert tuple(said) == STAGES
    assert all(said.values())
    text = str(graph.plan(4, 2))
    assert all(o.name in text for o in made.operators)
    assert all(f"phase {n} " in text for n in range(made.phases))


@pytest.mark.parametrize("make", GRAPHS, ids=lambda f: f.__name__)
def test_plans_pickle(make: Callable[[], fl.Graph]) -> None:
    made = plan(make())
    again: Plan = cloudpickle.loads(cloudpickle.dumps(made))
    assert again.form == made.form
    assert [o.name for o in again.operators] == [o.name for o in made.operators]
    assert [o.inputs for o in again.operators] == [o.inputs for o in made.operators]
    assert again.operator(made.operators[-1].name).phase == made.operators[-1].phase


UNPICKLE = """
import sys, cloudpickle
plan = cloudpickle.load(open(sys.argv[1], "rb"))
print(plan.form, plan.phases, *(o.name for o in plan.operators))
print(*sorted(m for m in sys.modules if m.startswith(("tests", "flowml.compiler", "flowml.graph"))))
"""


def test_a_plan_unpickles_in_a_fresh_process_without_the_users_files(tmp_path: Path) -> None:
    made = plan(kmeans())
    (tmp_path / "plan").write_bytes(ship_plan(made, made))
    done = subprocess.run(
        [sys.executable, "-c", UNPICKLE, str(tmp_path / "plan")],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    first, modules = done.stdout.splitlines()
    assert first.split() == [made.form, "3", *(o.name for o in made.operators)]
    assert "tests" not in modules


@settings(max_examples=100)
@given(graphs())
def test_any_graph_is_lowered_or_refused(declare: Callable[[], fl.Graph]) -> None:
    graph = declare().logical
    made = compile_graph(graph, 3, 2)
    assert compile_graph(graph, 3, 2) == made
    for operator in made.steps:
        if made.combines(operator):
            members = [made.members(operator, i) for i in range(made.instances(operator.scope))]
            finer = made.instances(made.scope_of(operator.inputs[0]))
            assert sorted(m for some in members for m in some) == list(range(finer))
