"""Waits are named by the edge that they are for, in synchronous and in loose runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import flowml as fl
from flowml.compiler.layouts import known_layouts
from flowml.compiler.stages import compile_graph
from flowml.protocol.promise_rule import PromiseRule
from flowml.protocol.promise_specs import Missing
from flowml.runtime.board import Board
from flowml.runtime.loose_plan import split
from flowml.runtime.meter import TRANSFER, WAITING
from flowml.runtime.pace import BarrierWaits, PromiseWaits, clocks, lags, name_waits, sent

X, Y = np.zeros((64, 4), "float32"), np.zeros(64, int)


def weights() -> Any:
    return fl.table("w", fl.models.softmax(4, 2).init(seed=0))


def gradient(read: Any) -> Any:
    return fl.gradient(fl.models.softmax(4, 2), read, fl.load((X, Y), batch_size=8))


def sync_plan() -> Any:
    w = weights()
    graph = fl.Graph(fl.update(w, fl.aggregate("mean", gradient(w)), fl.sgd(0.1)))
    return compile_graph(graph.logical, 2)


def loose_plan(staleness: int = 3) -> Any:
    w = weights()
    graph = fl.Graph(fl.update(w, gradient(w.stale(staleness)), fl.sgd(0.1)))
    return compile_graph(graph.logical, 2)


def mean_plan() -> Any:
    w = weights()
    mean = fl.aggregate("mean", gradient(w.stale(3)))
    return compile_graph(fl.Graph(fl.update(w, mean, fl.sgd(0.1))).logical, 2)


def index_of(plan: Any, name: str) -> int:
    return [operator.name for operator in plan.steps].index(name)


# -- synchronous -------------------------------------------------------------------------------


def test_a_barrier_is_for_what_crosses_behind_the_phase() -> None:
    plan = sync_plan()
    waits = BarrierWaits(plan)
    assert waits(index_of(plan, "gradient")) == "gradient -> mean"
    assert waits(index_of(plan, "update_w")) == "update_w -> w"


def test_a_rank_without_work_in_a_phase_waits_for_the_next_one() -> None:
    plan = sync_plan()
    waits = BarrierWaits(plan)
    first = waits(index_of(plan, "gradient"))
    assert waits(first) == "update_w -> w"
    assert waits(index_of(plan, "gradient")) == first


# -- loose -------------------------------------------------------------------------------------


class Loop:
    """The step loop of a replica, which stands where the test wants it."""

    def __init__(self, loose: Any, rank: int, clock: int = 0, inputs: Any = ()) -> None:
        self.clock = clock
        pull = SimpleNamespace(is_due=lambda step: True)
        self.replica = SimpleNamespace(
            number=rank,
            pulls=(pull,) * len(loose.reads),
            members={0: rank},
            inputs=dict(enumerate(inputs)),
            rank=SimpleNamespace(committed=clock),
        )


def rule_of(loose: Any, *clocks: int) -> PromiseRule:
    """Return the rule of a loose plan after replicas have delivered so many steps each."""
    words = np.zeros(PromiseRule.size(loose.teams, loose.gates_specs, loose.tables), np.int64)
    rule = PromiseRule(words, loose.teams, loose.gates_specs, loose.tables, 100)
    rule.begin()
    for rank, clock in enumerate(clocks):
        for _ in range(clock):
            rule.deliver(0, rank)
            list(rule.firings())
    return rule


def gang(plan: Any, rule: Any = None, *loops: Loop) -> Any:
    board = Board(np.zeros(Board.nbytes(2, 1), np.uint8), 2, 1)
    loose = None if rule is None else split(plan)
    found = SimpleNamespace(board=board, ranks=(0, 1), spec=SimpleNamespace(plan=plan, loose=loose))
    if rule is not None:
        found._place, found._loops = SimpleNamespace(rule=rule), loops
    return found


def parts_of(plan: Any) -> Any:
    """Return a loose plan with the specs of its gates beside."""
    loose = split(plan)
    object.__setattr__(loose, "gates_specs", tuple(gate.spec for gate in loose.gates))
    return loose


@pytest.mark.parametrize(
    ("clocks", "name"), [((3, 0), TRANSFER), ((4, 0), "w -> gradient"), ((4, 1), TRANSFER)]
)
def test_a_loose_wait_is_for_an_edge_or_to_move_values(clocks: tuple[int, int], name: str) -> None:
    loose = parts_of(loose_plan())
    rule = rule_of(loose, *clocks)
    assert PromiseWaits(rule, loose, Loop(loose, 0, clocks[0]))(0) == name


def test_a_wait_for_room_is_for_the_edge_that_is_full() -> None:
    loose = parts_of(mean_plan())
    rule = SimpleNamespace(
        room=lambda team, member: Missing("-> mean", (1,), 4), missing=lambda reads, step: None
    )
    assert PromiseWaits(rule, loose, Loop(loose, 0, 1))(0) == "gradient -> mean"


def test_the_meters_of_a_gang_name_its_waits() -> None:
    plan = sync_plan()
    found = gang(plan)
    name_waits(found, found.board)
    for meter in found.board.meters:
        meter.allow(9)
        meter.count(index_of(plan, "gradient"))
        meter.count(WAITING)
        assert meter.bucket == "gradient -> mean"
    assert (lags(found, found.board), clocks(found), sent(found)) == ([], [], [])


def test_the_meters_of_a_loose_gang_do_too() -> None:
    plan = loose_plan()
    loose = parts_of(plan)
    found = gang(plan, rule_of(loose, 4, 0), Loop(loose, 0, 4), Loop(loose, 1, 0))
    name_waits(found, found.board)
    buckets = []
    for meter in found.board.meters:
        meter.allow(9)
        meter.count(WAITING)
        buckets.append(meter.bucket)
    assert buckets == ["w -> gradient", TRANSFER]


def test_lags_are_those_of_replicas_inside_their_step() -> None:
    plan = loose_plan()
    loose = parts_of(plan)
    found = gang(plan, rule_of(loose, 7, 5), Loop(loose, 0, 7), Loop(loose, 1, 5))
    found.board.enter(0, index_of(plan, "gradient"), 7)
    found.board.enter(1, WAITING, 5)
    assert lags(found, found.board) == [("w -> gradient", 0, 2, 3)]
    found.board.enter(1, index_of(plan, "gradient"), 4)  # it has just delivered step 4
    assert [lag.replica for lag in lags(found, found.board)] == [0]
    found.board.enter(1, index_of(plan, "gradient"), 5)
    assert lags(found, found.board)[-1] == ("w -> gradient", 1, 0, 3)
    assert clocks(found) == [7, 5]


def test_behind_a_sum_the_firings_count() -> None:
    plan = mean_plan()
    loose = parts_of(plan)
    rule = rule_of(loose, 3, 1)
    found = gang(plan, rule, Loop(loose, 0, 3), Loop(loose, 1, 1))
    for rank, step in ((0, 3), (1, 1)):
        found.board.enter(rank, index_of(plan, "gradient"), step)
    fired = rule.gates[0].fired
    assert fired > 1  # it has taken what came first
    ahead = {
        lag.replica: lag.steps for lag in lags(found, found.board) if lag.edge == "gradient -> mean"
    }
    assert ahead == {0: max(0, fired - 3), 1: fired - 1}


def test_what_codecs_have_sent_is_added_up_over_replicas() -> None:
    plan = loose_plan()
    loose = parts_of(plan)
    layout = known_layouts(plan, {})["gradient", 0]
    entries = [
        SimpleNamespace(
            gate=loose.gates[0], _layout=layout, _codec=SimpleNamespace(sent_bytes=count)
        )
        for count in (100, 50)
    ]
    loops = [Loop(loose, rank, 10, [entry]) for rank, entry in enumerate(entries)]
    found = gang(plan, rule_of(loose, 10, 10), *loops)
    assert sent(found) == [("gradient -> update_w", 20 * layout.nbytes, 150)]
    entries[1]._codec = None
    assert sent(found) == [("gradient -> update_w", 10 * layout.nbytes, 100)]


def test_where_the_tables_are_on_another_host_nothing_is_known_of_them() -> None:
    plan = loose_plan()
    loose = parts_of(plan)
    found = gang(plan, rule_of(loose, 4, 0), Loop(loose, 0, 4), Loop(loose, 1, 0))
    found._place = SimpleNamespace(rule=None)
    name_waits(found, found.board)
    for meter in found.board.meters:
        meter.allow(9)
        meter.count(WAITING)
        assert meter.bucket == TRANSFER
    assert (lags(found, found.board), clocks(found)) == ([], [])
