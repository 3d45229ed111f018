"""What explain says, checked against plans that can be counted by hand."""

import dataclasses

import dask
import numpy as np
import pytest

import flowml as fl
from flowml.compiler.explain import explain
from flowml.compiler.gauge import measure
from flowml.compiler.measured import Measured
from flowml.errors import FlowmlError, PlanError

X = np.random.default_rng(0).random((64, 3), "float32")
Y = np.array([0, 1] * 32)
MODEL = fl.models.softmax(3, 2)
NBYTES = 4 * (3 * 2 + 2)
HEADER = 16


def sync_sgd(read=lambda w: w, momentum=0.9, within=None, codec=None):
    w = fl.table("w", MODEL.init())
    batch = fl.load((X, Y), batch_size=4, name="batch")
    grads = fl.gradient(MODEL, read(w), batch)
    grads = grads if codec is None else grads.compress(codec)
    mean = fl.aggregate("mean", grads, name="mean", within=within)
    if within:
        mean = fl.aggregate("mean", mean, name="all")
    return fl.Graph(fl.update(w, mean, fl.sgd(0.1, momentum=momentum)), name="ssgd").logical


def local_sgd(period):
    init = MODEL.init()
    anchor, local = fl.table("anchor", init), fl.table("local", init, scope="replica")
    batch = fl.load((X, Y), batch_size=4)
    moved = fl.update(local, fl.gradient(MODEL, local, batch), fl.sgd(0.1))
    drift = fl.map(
        lambda a, m: {k: a[k] - m[k] for k in a}, anchor, moved.every(period), name="drift"
    )
    outer = fl.update(anchor, fl.aggregate("mean", drift, weight="equal"), fl.sgd(1.0))
    return fl.Graph(moved, outer, fl.assign(local, outer), name="local").logical


def edge(found, name):
    return next(e for e in found.edges if e.edge == name)


def test_stages_stand_in_order_with_a_line_each():
    found = explain(sync_sgd(), 2, probe=None)
    assert [name for name, _ in found.stages] == ["check", "place", "fuse", "lower", "emit"]
    assert all(text and "\n" not in text for _, text in found.stages)


@pytest.fixture
def owners():
    """Let no replica keep tables for itself: two barriers a step."""
    with dask.config.set({"flowml.own-copies": "0 B"}):
        yield


def test_small_tables_need_one_barrier_and_loose_edges_none():
    assert explain(sync_sgd(), 2, probe=None).barriers == 1
    assert explain(sync_sgd(), 2, probe=None, hosts=["a", "b"]).barriers == 2
    loose = explain(sync_sgd(lambda w: w.stale(4)), 2, probe=None)
    assert loose.barriers == 0
    assert "own pace" in dict(loose.stages)["lower"]
    assert "sync edges only" in dict(loose.stages)["emit"]


@pytest.mark.usefixtures("owners")
def test_fused_groups_placements_and_barriers():
    found = explain(sync_sgd(), 2, probe=None)
    assert found.loops == (("batch", "gradient"), ("mean", "update_w"))
    assert dict(found.placements) == {
        "batch": "replica",
        "gradient": "replica",
        "mean": "reduce",
        "update_w": "table",
    }
    assert found.barriers == 2


def test_summation_trees_are_those_of_the_plan():
    assert explain(sync_sgd(), 3, probe=None).trees == (("mean", ((0, 1), 2)),)
    grouped = explain(sync_sgd(within="host"), 4, 2, probe=None)
    assert grouped.trees == (("mean[0]", (0, 1)), ("mean[1]", (2, 3)), ("all", (0, 1)))
    assert "((0,1),2)" in str(explain(sync_sgd(), 3, probe=None))


@pytest.mark.usefixtures("owners")
def test_a_contribution_is_written_once_and_read_by_slices():
    found = edge(explain(sync_sgd(), 3, probe=None), "gradient -> mean")
    assert found.crosses
    assert found.written_bytes == 3 * NBYTES
    assert found.read_bytes == 3 * NBYTES


def test_with_own_copies_everyone_reads_all_and_no_table_is_shared():
    found = explain(sync_sgd(), 3, probe=None)
    crossing = edge(found, "gradient -> mean")
    assert (crossing.written_bytes, crossing.read_bytes) == (3 * NBYTES, 9 * NBYTES)
    assert not edge(found, "w -> gradient").crosses


@pytest.mark.usefixtures("owners")
def test_a_shared_table_is_read_by_everyone():
    found = edge(explain(sync_sgd(), 3, probe=None), "w -> gradient")
    assert (found.crosses, found.written_bytes, found.read_bytes) == (True, 0, 3 * NBYTES)


def test_one_partial_sum_goes_each_way_between_two_hosts():
    found = explain(sync_sgd(), 4, probe=None, hosts=["a", "a", "b", "b"])
    assert found.hosts == ((0, 1), (2, 3))
    crossing = edge(found, "gradient -> mean")
    assert crossing.messages == 2
    assert crossing.message_bytes == 2 * (NBYTES + HEADER)
    assert edge(found, "w -> gradient").messages == 0


def test_what_stays_in_a_replica_costs_nothing():
    found = edge(explain(sync_sgd(), 3, probe=None), "batch -> gradient")
    assert (found.crosses, found.written_bytes, found.messages) == (False, 0, 0)


def test_a_period_thins_traffic_and_barriers():
    layouts = measure(local_sgd(4), 2).layouts
    every, seldom = (
        explain(local_sgd(period), 2, probe=Measured({}, layouts=layouts)) for period in (1, 4)
    )
    assert every.barriers == 4 * seldom.barriers
    dense, thin = (edge(found, "drift -> mean") for found in (every, seldom))
    assert dense.written_bytes == 2 * NBYTES
    assert thin.written_bytes == pytest.approx(dense.written_bytes / 4)


def test_sizes_of_maps_are_unknown_without_a_measurement():
    found = explain(local_sgd(4), 2, probe=None)
    assert edge(found, "drift -> mean").written_bytes is None
    assert found.memory.regions is None
    assert "?" in str(found)


@pytest.mark.usefixtures("owners")
def test_memory_counts_versions_rules_and_regions():
    found = explain(sync_sgd(), 2, probe=None).memory
    assert found.tables == 2 * NBYTES  # now, and after the one write of a step
    assert found.rules == NBYTES  # the momentum, once
    assert found.regions == 2 * (NBYTES + HEADER)
    assert found.codecs == 0


def test_memory_counts_own_copies_for_each_replica():
    found = explain(sync_sgd(), 2, probe=None).memory
    assert found.tables == 2 * 2 * NBYTES
    assert found.rules == 2 * NBYTES
    assert found.regions == 2 * 2 * (NBYTES + HEADER)  # two turns


def test_memory_counts_queues_copies_and_residuals_of_a_loose_graph():
    graph = sync_sgd(lambda w: w.stale(3), codec=fl.codecs.top_k(0.5))
    found = explain(graph, 2, probe=None).memory
    assert found.tables == 2 * NBYTES + 2 * NBYTES  # two versions, and a copy a replica
    slots = 2 * 3 + 2 + 1  # steps of a replica that a gate holds, and one that is late
    assert found.regions == 2 * slots * (NBYTES + 40)
    assert found.codecs == 2 * NBYTES
    assert "codecs 64 B" in str(explain(graph, 2, probe=None))


def test_promises_taken_by_unmarked_edges():
    found = explain(sync_sgd(lambda w: w.stale(4)), 2, probe=None)
    taken = dict(found.promises)
    assert taken["gradient -> mean"] == "stale(4)"
    assert taken["batch -> gradient"] == "sync"
    assert "w -> gradient" not in taken  # marked


def test_a_graph_that_does_not_run_yet_is_explained_as_far_as_it_goes():
    found = explain(sync_sgd(lambda w: w.stale(5, until=5).stale(4)), 2, probe=None)
    assert dict(found.stages)["lower"].startswith("refused: 3 mistakes, the first: edge w")
    assert (found.prediction, found.edges) == (None, ())
    assert "a later promise may not be tighter than an earlier one" in str(found)
    assert found.loops == (("batch", "gradient"), ("mean", "update_w"))


def test_one_replica_exchanges_nothing():
    found = explain(sync_sgd(), 1, probe=None)
    assert found.barriers == 0
    assert not any(e.crosses for e in found.edges)


def test_wrong_groups_are_refused_as_in_a_run():
    with pytest.raises(PlanError, match="between 1 and 2 groups"):
        explain(sync_sgd(), 2, 3, probe=None)


def test_the_measurement_takes_every_operator_and_changes_nothing():
    graph = sync_sgd()
    found = measure(graph, 2)
    assert set(found.seconds) == {"batch", "gradient", "mean", "update_w"}
    assert all(spent > 0 for spent in found.seconds.values())
    assert set(found.whole) == set(found.seconds)
    (timed,) = found.together
    assert timed.rows.shape == (timed.cuts[-1], 4)
    assert found.layouts["gradient", 0].nbytes == NBYTES
    assert not np.any(graph.table("w").init["W"])


def test_the_measurement_of_a_loose_graph_has_three_parts_and_its_payloads():
    graph = sync_sgd(lambda w: w.stale(3), codec=fl.codecs.top_k(0.5))
    found = measure(graph, 2)
    assert set(found.seconds) == {"read", "compute", "deliver"}
    assert found.payloads == {
        "w -> gradient": NBYTES,
        "gradient -> mean": 4 * (4 + 4),  # of 8 numbers 4, each with its place
    }


def test_the_graph_explains_itself():
    w = fl.table("w", MODEL.init())
    batch = fl.load((X, Y), batch_size=4)
    mean = fl.aggregate("mean", fl.gradient(MODEL, w, batch))
    found = fl.Graph(fl.update(w, mean, fl.sgd(0.1)), name="g").explain(replicas=3)
    assert found.prediction.seconds > 0
    assert dataclasses.asdict(found)["graph"] == "g"
    assert str(found).startswith("graph g with 3 replicas\n")


def test_a_mistake_in_the_first_step_comes_out_of_the_measurement():
    w = fl.table("w", MODEL.init())
    batch = fl.load((X, Y), batch_size=4)
    grads = fl.map(lambda w, b: None, w, batch)
    graph = fl.Graph(fl.update(w, fl.aggregate("mean", grads), fl.sgd(0.1)))
    with pytest.raises(FlowmlError, match="must return a value"):
        graph.explain()
