"""Waits are named by the edge that they are for, in synchronous and in loose runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import flowml as fl
from flowml.compiler.stages import compile_graph
from flowml.compiler.traffic import known_layouts
from flowml.protocol.promise_rule import Missing
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


class Rule:
    """What a rule of promises says, as the test wants it."""

    def __init__(self, missing: Any = None, room: Any = None) -> None:
        self.clocks, self.fires = [7, 5], 5
        self._missing, self._room = missing, room

    def missing(self, rank: int) -> Any:
        return self._missing

    def room(self, rank: int) -> Any:
        return self._room

    def clock(self, rank: int) -> int:
        return self.clocks[rank]

    def least(self) -> int:
        return min(self.clocks)

    def fired(self, gate: int) -> int:
        return self.fires


@pytest.mark.parametrize(
    ("missing", "room", "name"),
    [
        (None, None, TRANSFER),
        (Missing("update_w -> w -> gradient", (1,), 4), None, "w -> gradient"),
        (None, Missing("-> update_w", (1,), 4), "gradient -> update_w"),
    ],
)
def test_a_loose_wait_is_for_an_edge_or_to_move_values(missing: Any, room: Any, name: str) -> None:
    waits = PromiseWaits(Rule(missing, room), split(loose_plan()), 0)
    assert waits(0) == name


def gang(plan: Any, rule: Any = None, ranks: tuple[int, ...] = (0, 1)) -> Any:
    board = Board(np.zeros(Board.nbytes(2, 1), np.uint8), 2, 1)
    loose = None if rule is None else split(plan)
    found = SimpleNamespace(board=board, ranks=ranks, spec=SimpleNamespace(plan=plan, loose=loose))
    if rule is not None:
        found._center = SimpleNamespace(rule=rule)
    return found


def test_the_meters_of_a_gang_name_its_waits() -> None:
    plan = sync_plan()
    found = gang(plan)
    name_waits(found)
    for meter in found.board.meters:
        meter.allow(9)
        meter.count(index_of(plan, "gradient"))
        meter.count(WAITING)
        assert meter.bucket == "gradient -> mean"
    assert (lags(found), clocks(found), sent(found)) == ([], [], [])


def test_lags_are_those_of_replicas_inside_their_step() -> None:
    plan, rule = loose_plan(), Rule()
    found = gang(plan, rule)
    found.board.enter(0, index_of(plan, "gradient"), 7)
    found.board.enter(1, WAITING, 5)
    assert lags(found) == [("w -> gradient", 0, 2, 3)]
    found.board.enter(1, index_of(plan, "gradient"), 4)  # it has just delivered step 4
    assert [lag.replica for lag in lags(found)] == [0]
    found.board.enter(1, index_of(plan, "gradient"), 5)
    assert lags(found)[-1] == ("w -> gradient", 1, 0, 3)
    assert clocks(found) == [7, 5]


def test_behind_a_sum_the_firings_count() -> None:
    plan, rule = mean_plan(), Rule()
    found = gang(plan, rule, ranks=(0,))
    found.board.enter(0, index_of(plan, "gradient"), 7)
    rule.fires = 6
    assert lags(found) == [("w -> gradient", 0, 1, 3), ("gradient -> mean", 0, 0, 3)]
    rule.clocks, rule.fires = [7, 9], 9
    assert lags(found)[1] == ("gradient -> mean", 0, 2, 3)


def test_what_codecs_have_sent_is_added_up_over_replicas() -> None:
    w = weights()
    grads = gradient(w).compress(fl.codecs.top_k(0.5))
    plan = compile_graph(
        fl.Graph(fl.update(w, fl.aggregate("mean", grads), fl.sgd(0.1))).logical, 2
    )
    found = gang(plan, Rule())
    layout = known_layouts(plan, {})
    found.spec.layouts = layout
    found._loops = tuple(
        SimpleNamespace(
            replica=SimpleNamespace(
                rank=SimpleNamespace(committed=10), codecs={0: SimpleNamespace(sent_bytes=count)}
            )
        )
        for count in (100, 50)
    )
    nbytes = layout["gradient", 0].nbytes
    assert sent(found) == [("gradient -> mean", 20 * nbytes, 150)]
