"""The physical plan: instances, members, trees, and which operators fire in which step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowml as fl
from flowml.compiler.stages import compile_graph
from flowml.plan import Firing, Plan, PlanOperator, loss_operator

X = np.arange(24.0).reshape(8, 3)


def total(*values: Any) -> Any:
    return np.zeros(3) + sum(np.sum(v) for v in values)


def compiled(*sinks: Any, replicas: int = 4, groups: Any = 2) -> Plan:
    return compile_graph(fl.Graph(*sinks).logical, replicas, groups)


def groups_plan() -> Plan:
    copy, w = fl.table("copy", np.zeros(3), scope="host"), fl.table("w", np.zeros(3))
    local = fl.table("local", np.zeros(3), scope="replica")
    g = fl.map(total, copy, fl.load(X, batch_size=2), name="g")
    near = fl.update(copy, g, fl.add(), name="near")
    mean = fl.aggregate("mean", near, name="mean")
    inside = fl.aggregate("mean", g, within="host", name="inside")
    return compiled(near, fl.assign(w, mean), fl.assign(local, inside))


def test_instances_and_their_ranks() -> None:
    plan = groups_plan()
    assert [plan.instances(s) for s in ("replica", "host", "global")] == [4, 2, 1]
    assert [plan.instance_of("host", rank) for rank in range(4)] == [0, 0, 1, 1]
    assert [plan.instance_of(s, 3) for s in ("replica", "host", "global")] == [3, 1, 0]
    assert plan.ranks_of("host", 1) == (2, 3)
    assert plan.ranks_of("replica", 1) == (1,)
    assert plan.ranks_of("global", 0) == (0, 1, 2, 3)
    assert plan.group_of == (0, 0, 1, 1)


def test_who_contributes_to_what() -> None:
    plan = groups_plan()
    near, mean, inside = (plan.operator(n) for n in ("near", "mean", "inside"))
    assert plan.members(near, 0) == (0, 1)
    assert plan.members(near, 1) == (2, 3)
    assert plan.members(mean, 0) == (0, 1)
    assert plan.members(inside, 1) == (2, 3)
    assert plan.tree(mean, 0) == (0, 1)
    assert plan.tree(inside, 1) == (2, 3)
    assert [o.name for o in plan.steps if plan.combines(o)] == ["near", "mean", "inside"]
    assert plan.edge_name(mean, 0) == "near -> mean"


def test_trees_split_at_a_power_of_two() -> None:
    w = fl.table("w", np.zeros(3))
    mean = fl.aggregate("mean", fl.map(total, w, fl.load(X, batch_size=1)))
    plan = compiled(fl.assign(w, mean), replicas=7, groups=1)
    assert plan.tree(plan.operator("mean"), 0) == (((0, 1), (2, 3)), ((4, 5), 6))


def test_the_loss_is_that_of_the_first_gradient() -> None:
    model = fl.models.linear(3)
    w = fl.table("w", model.init(seed=0))
    batch = fl.load((X, X[:, 0]), batch_size=2)
    one, two = (fl.gradient(model, w, batch, name=n) for n in ("one", "two"))
    both = fl.map(lambda a, b: a, one, two)
    assert loss_operator(compiled(fl.update(w, both, fl.add()))) == "one"
    assert loss_operator(groups_plan()) is None


def test_evaluations_stand_beside_the_steps() -> None:
    w = fl.table("w", np.zeros(3))
    mean = fl.aggregate("mean", fl.map(total, w, fl.load(X, batch_size=1)))
    plan = compiled(fl.assign(w, mean), fl.evaluate(lambda p, b: 0.0, w, X, name="test"))
    assert [o.name for o in plan.evaluations] == ["test"]
    assert "test" not in [o.name for o in plan.steps]
    assert plan.operator("test").label.startswith("operator 'test' (test_plan.py:")


def periodic() -> Plan:
    """Return a plan whose firings were worked out by hand below."""
    w, v = fl.table("w", np.zeros(3)), fl.table("v", np.zeros(3))
    x, here = fl.load(X, batch_size=2), fl.here()
    g = fl.map(total, w.every(2), x, name="g")
    s = fl.map(total, g.every(3), name="s")
    t = fl.map(lambda s, h: s, s.every(2), here, name="t")
    p = fl.map(total, w.every(2), v.every(3), name="p")
    q = fl.map(total, g.every(2), x.every(3), name="q")
    r = fl.map(lambda h, w: total(w), here, w.every(4), name="r")
    means = [fl.aggregate("mean", value) for value in (t, q, r)]
    return compiled(fl.update(w, means[0], fl.add()), fl.assign(v, fl.map(total, *means, p)))


# step:      0  1  2  3  4  5  6  7  8  9 10 11
FIRES = {
    "load":  "1  1  1  1  1  1  1  1  1  1  1  1",
    "g":     "1  1  1  1  1  1  1  1  1  1  1  1",  # with its operator; the table is held
    "s":     "0  0  1  0  0  1  0  0  1  0  0  1",
    "t":     "0  0  0  1  0  1  0  0  0  1  0  1",  # at 7 nothing has come since 5
    "p":     "1  0  1  1  1  0  1  0  1  1  1  0",  # tables only: with the fastest, both known
    "q":     "0  0  1  1  0  1  0  1  1  1  0  1",  # not at 1: one input has never come
    "r":     "1  0  0  0  1  0  0  0  1  0  0  0",  # a place drives nothing
    "update_w": "0  0  0  1  0  1  0  0  0  1  0  1",
    "assign_v": "0  0  0  1  1  1  1  1  1  1  1  1",  # with the fastest of t, q, r and p
}  # fmt: skip


@pytest.mark.parametrize("name", FIRES)
def test_firings_by_hand(name: str) -> None:
    plan = periodic()
    firing = Firing(plan)
    found = [int(firing.fires(plan.operator(name), step)) for step in range(12)]
    assert found == [int(c) for c in FIRES[name].split()]
    assert all((name in firing.pattern(s)) == f for s, f in enumerate(found))


def port(plan: Plan, name: str, number: int) -> tuple[Any, PlanOperator]:
    return plan.operator(name).inputs[number], plan.operator(name)


@pytest.mark.parametrize(
    ("name", "number", "holds", "keeps"),
    [
        ("g", 0, True, False),  # the table comes every 2 steps, the batch in each
        ("g", 1, False, False),
        ("s", 0, False, True),
        ("t", 0, False, True),
        ("t", 1, False, False),
        ("p", 0, True, False),
        ("p", 1, True, False),
        ("q", 0, True, True),
        ("q", 1, True, True),
        ("r", 1, False, False),
        ("update_w", 0, False, False),
    ],
)
def test_what_edges_hold_and_keep(name: str, number: int, holds: bool, keeps: bool) -> None:
    plan = periodic()
    firing = Firing(plan)
    edge, reader = port(plan, name, number)
    assert firing.holds(edge, reader) is holds
    assert firing.keeps(edge) is keeps


def slow(period: int) -> Plan:
    """Return a plan with an edge out of a write that delivers once in ``period`` steps."""
    local, w = fl.table("local", np.zeros(3), scope="replica"), fl.table("w", np.zeros(3))
    x = fl.load(X, batch_size=2)
    moved = fl.update(local, fl.map(total, x, name="g"), fl.add())
    joined = fl.map(total, x, moved.every(period), name="joined")
    return compiled(moved, fl.assign(w, fl.aggregate("mean", joined)))


@pytest.mark.parametrize("period", [2, 500, 513, 1000, 3000])
def test_a_slow_edge_is_held_however_long_its_period(period: int) -> None:
    plan = slow(period)
    edge, joined = port(plan, "joined", 1)
    firing = Firing(plan)
    assert not firing.fires(joined, period - 2)
    assert firing.fires(joined, period - 1)
    assert firing.fires(joined, period)
    assert firing.holds(edge, joined)
    assert not firing.keeps(edge)


def test_the_newest_of_values_with_examples_is_kept_for_their_count() -> None:
    w = fl.table("w", np.zeros(3))
    g = fl.map(total, w, fl.load(X, batch_size=2), name="g")
    plan = compiled(fl.update(w, fl.aggregate("mean", g.every(2, keep="last"), name="m"), fl.add()))
    assert Firing(plan).keeps(port(plan, "m", 0)[0])


def test_ranks_meet_only_where_something_crosses() -> None:
    firing = Firing(slow(3))
    assert [sorted(firing.meeting(step)) for step in range(4)] == [[], [], [0, 1], [0, 1]]
    local = fl.table("local", np.zeros(3), scope="replica")
    alone = compiled(fl.update(local, fl.map(total, local, fl.load(X, batch_size=2)), fl.add()))
    assert not any(Firing(alone).meeting(step) for step in range(5))


def test_every_step_makes_every_edge_deliver() -> None:
    plan = periodic().every_step()
    assert all(p.every == 1 for o in plan.operators for p in o.inputs)
    assert Firing(plan).pattern(0) == {o.name for o in plan.steps}
    assert periodic().form == periodic().form


@settings(max_examples=60)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(0, 200))
def test_a_chain_fires_after_all_its_periods(periods: list[int], step: int) -> None:
    """A chain of maps behind edges with periods, against counting deliveries one by one."""
    w, value = fl.table("w", np.zeros(3)), fl.map(total, fl.load(X, batch_size=2), name="v0")
    for number, period in enumerate(periods, 1):
        value = fl.map(total, value.every(period), name=f"v{number}")
    plan = compiled(fl.assign(w, fl.aggregate("mean", value)))
    firing = Firing(plan)
    fired = [True] * (step + 1)
    for number, period in enumerate(periods, 1):
        waiting, before = False, fired
        fired = []
        for now in range(step + 1):
            waiting = waiting or before[now]
            delivers = waiting and (now + 1) % period == 0
            waiting = waiting and not delivers
            fired.append(delivers)
        assert firing.fires(plan.operator(f"v{number}"), step) == fired[step]
