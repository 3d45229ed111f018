"""The tasks executor: windows, ends, evaluations, errors, and what it leaves behind."""

import logging
import os
import threading
import time

import dask.array as da
import numpy as np
import optree
import pytest
from dask.utils import key_split
from distributed import Client, Event, LocalCluster, Nanny, get_client

import flowml as fl
from flowml.compiler.emit import emit
from flowml.compiler.stages import compile_graph
from flowml.errors import (
    DataError,
    DivergedError,
    GraphError,
    OperatorError,
    StalledError,
    WorkerLostError,
)
from flowml.runtime import tasks as executor
from flowml.runtime.outcome import Order
from flowml.runtime.serial import run_serial
from flowml.runtime.tasks import run_tasks

RNG = np.random.default_rng(11)
X = RNG.standard_normal((61, 5)).astype("float32")
Y = RNG.integers(0, 3, 61)
PREFIXES = {
    f"flowml:{kind}"
    for kind in (
        "load",
        "here",
        "map",
        "gradient",
        "aggregate",
        "update",
        "assign",
        "until",
        "evaluate",
        "table",
    )
}


@pytest.fixture(scope="module")
def local():
    """Two workers of two threads in this process, so that tests can look at the scheduler."""
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=2,
            processes=False,
            dashboard_address=":0",
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def ssgd(source=None, batch_size=8, rule=None, until=None, every=None):
    model = fl.models.softmax(5, 3)
    w = fl.table("w", model.init(seed=0))
    batch = fl.load((X, Y) if source is None else source, batch_size=batch_size)
    mean = fl.aggregate("mean", fl.gradient(model, w, batch))
    sinks = [fl.update(w, mean, rule or fl.adam(0.05))]
    if until is not None:
        sinks.append(fl.until(until, sinks[0]))
    if every is not None:
        sinks.append(fl.evaluate(model.loss, w, (X, Y), every=every))
    return fl.Graph(*sinks)


def with_function(function, **options):
    """Return a graph in which each replica calls ``function(batch, here)`` once a step."""
    batch = fl.load((X, Y), batch_size=8)
    value = fl.map(function, batch, fl.here(), name="suspect", **options)
    total = fl.table("total", np.zeros(()))
    return fl.Graph(fl.update(total, fl.aggregate("sum", value), fl.add()))


def plan_of(graph, replicas=3, **options):
    return compile_graph(graph.logical, replicas, **options)


def run(plan, client, order, **options):
    return run_tasks(plan, order, client, emit, **options)


def assert_same(got, wanted):
    assert got.error is None
    assert wanted.error is None
    assert (got.status, got.steps, got.unsent) == (wanted.status, wanted.steps, wanted.unsent)
    assert got.metrics == wanted.metrics
    assert got.dropped_rows == wanted.dropped_rows
    for column in ("step", "replica", "loss"):
        np.testing.assert_array_equal(got.history[column], wanted.history[column])
    for tables, others in (
        (got.tables, wanted.tables),
        *((got.snapshots[step], wanted.snapshots[step]) for step in wanted.snapshots),
    ):
        leaves = zip(optree.tree_leaves(tables), optree.tree_leaves(others), strict=True)
        assert all(a.tobytes() == b.tobytes() for a, b in leaves)


def assert_like_serial(plan, client, order):
    assert_same(run(plan, client, order), run_serial(plan, order))


def tasks_left(client):
    """Return the keys that the scheduler still knows once the client's messages have arrived."""
    scheduler = client.cluster.scheduler
    pause = threading.Event()
    for _ in range(200):
        if not any("flowml" in str(key) for key in scheduler.tasks):
            return []
        pause.wait(0.05)
    return list(scheduler.tasks)


# --- what it computes ---------------------------------------------------------------------------


def test_tables_snapshots_and_evaluations_are_those_of_serial(local):
    order = Order(11, None, seed=3, snapshots=frozenset({4, 9, 11}))
    assert_like_serial(plan_of(ssgd(every=5)), local, order)


def test_epochs_end_for_all_replicas_together(local):
    assert_like_serial(plan_of(ssgd(every="1 epoch"), replicas=4), local, Order(None, 2))


@pytest.mark.parametrize("at", [0.05, 0.11, 10.0])
def test_an_end_stops_after_exactly_its_step(local, at):
    start = fl.models.softmax(5, 3).init(seed=0)["W"]
    plan = plan_of(ssgd(until=lambda w: np.abs(w["W"] - start).max() > at, every=2))
    assert_like_serial(plan, local, Order(9, None))


def test_windows_are_cut_where_someone_looks(local):
    events = []
    order = Order(40, None, on_event=events.append, snapshots=frozenset({7}))
    outcome = run(plan_of(ssgd(every=10), replicas=1), local, order)
    assert outcome.error is None
    ends = [e.step + 1 for e in events if type(e).__name__ == "WindowDone"]
    assert {7, 10, 20, 30, 40} <= set(ends)
    assert ends == sorted(set(ends))
    assert ends[0] == 1  # the first window only finds out how long a step takes
    assert max(b - a for a, b in zip([0, *ends], ends, strict=False)) > 1
    kinds = {type(e).__name__ for e in events}
    assert {"RunStarted", "Loaded", "WindowDone", "Evaluated"} <= kinds


def test_the_carried_state_can_be_set_down_in_the_middle(local, monkeypatch):
    """Dask forgets how it was made, and the bytes are the same."""
    monkeypatch.setattr(executor, "REMEMBERED_TASKS", 30)
    monkeypatch.setattr(executor, "WINDOW_STEPS", 2)
    model = fl.models.softmax(5, 3)
    anchor = fl.table("anchor", model.init(seed=0))
    own = fl.table("own", model.init(seed=0), scope="replica")
    moved = fl.update(own, fl.gradient(model, own, fl.load((X, Y), batch_size=8)), fl.adam(0.01))
    kept = fl.aggregate("mean", moved.every(3), weight="equal")
    summed = fl.aggregate("sum", fl.gradient(model, anchor, fl.load((X, Y), batch_size=4)))
    known = []

    def remember(event):
        known.append(len(local.cluster.scheduler.tasks))

    outer = fl.assign(anchor, kept)
    graph = fl.Graph(
        moved,
        outer,
        fl.assign(own, outer),
        fl.update(
            fl.table("s", model.init(seed=1)),
            summed.every(5, keep="mean"),
            fl.sgd(0.1, momentum=0.5),
        ),
    )
    plan = plan_of(graph, replicas=2)
    outcome = run(plan, local, Order(24, None, on_event=remember))
    assert_same(outcome, run_serial(plan, Order(24, None)))
    assert max(known[12:]) < 2 * max(known[:6])


def test_partitions_are_read_by_tasks_and_counted_where_nobody_knows(local, tmp_path):
    for number, rows in enumerate((9, 30, 1, 21)):
        lines = [
            ",".join(map(str, [*row, label])) for row, label in zip(X[:rows], Y[:rows], strict=True)
        ]
        (tmp_path / f"{number}.csv").write_text("\n".join(["a,b,c,d,e,y", *lines]) + "\n")
    source = fl.data.csv(str(tmp_path / "*.csv"), label="y")
    plan = plan_of(ssgd(source=source, batch_size=4), replicas=2)
    assert_like_serial(plan, local, Order(14, None))
    whole = plan_of(ssgd(source=source, batch_size=None), replicas=2)
    assert_like_serial(whole, local, Order(3, None))


def test_dask_collections_and_parts_in_memory(local):
    blocks = (da.from_array(X, chunks=(20, 5)), da.from_array(Y, chunks=20))
    assert_like_serial(plan_of(ssgd(source=blocks), replicas=3), local, Order(5, None))
    parts = fl.data.parts([(X[:9], Y[:9]), (X[9:], Y[9:])])
    model = fl.models.softmax(5, 3)
    w = fl.table("w", model.init(seed=0))
    mean = fl.aggregate("mean", fl.gradient(model, w, fl.load(parts, batch_size=3)))
    graph = fl.Graph(
        fl.update(w, mean, fl.sgd(0.1)),
        fl.evaluate(model.loss, w, parts, every=2),
        fl.evaluate(model.loss, w, blocks, every=3, name="blocks"),
    )
    assert_like_serial(plan_of(graph, replicas=2), local, Order(6, None))


def test_functions_of_the_driver_reach_workers_in_other_processes(client):
    factor = 0.25
    plan = plan_of(with_function(lambda b, here: float(factor * b[0].sum() + here.replica)))
    assert_like_serial(plan, client, Order(4, None))


# --- ends and errors ----------------------------------------------------------------------------


def test_a_request_to_stop_ends_between_windows(local):
    asked = iter([False, False, True])
    outcome = run(
        plan_of(ssgd(every=100)), local, Order(500, None), should_stop=lambda: next(asked)
    )
    assert outcome.status == "stopped"
    assert 3 <= outcome.steps < 500
    assert outcome.metrics[-1]["step"] == outcome.steps
    truth = run_serial(outcome.plan, Order(outcome.steps, None))
    assert outcome.tables["w"][0]["W"].tobytes() == truth.tables["w"][0]["W"].tobytes()


def test_max_seconds_ends_the_run(local):
    outcome = run(plan_of(ssgd()), local, Order(10_000, None, max_seconds=0.0))
    assert (outcome.status, outcome.steps) == ("stopped", 1)


def test_an_error_of_an_operator_comes_back_as_it_is(local):
    def fails(batch, here):
        if here.replica == 2 and here.clock == 5:
            raise RuntimeError("no such thing")
        return 1.0

    outcome = run(plan_of(with_function(fails)), local, Order(9, None))
    error = outcome.error
    assert type(error) is OperatorError
    assert (error.operator, error.replica, error.step) == ("suspect", 2, 5)
    assert error.worker in local.nthreads()
    assert "RuntimeError: no such thing" in str(error)
    assert "flowml:" not in str(error)
    assert outcome.status == "failed"
    assert 0 < outcome.steps <= 5
    assert outcome.tables["total"][0] == 3 * outcome.steps
    assert len(outcome.history["step"]) == 3 * outcome.steps


def test_after_an_end_a_later_step_may_fail(local):
    def fails(batch, here):
        if here.clock == 3:
            raise RuntimeError("never reached by the serial executor")
        return 1.0

    batch = fl.load((X, Y), batch_size=8)
    total = fl.table("total", np.zeros(()))
    moved = fl.update(total, fl.aggregate("sum", fl.map(fails, batch, fl.here())), fl.add())
    graph = fl.Graph(moved, fl.until(lambda v: v >= 6, moved))
    assert_like_serial(plan_of(graph), local, Order(9, None))


@pytest.mark.parametrize("replica", [0, 3, 4])
def test_a_table_that_is_not_finite_keeps_its_last_value(local, replica):
    def grows(batch, here):
        return np.inf if (here.clock, here.replica) == (2, replica) else 1.0

    plan = plan_of(with_function(grows), replicas=5)
    outcome = run(plan, local, Order(4, None))
    error, truth = outcome.error, run_serial(plan, Order(4, None)).error
    assert isinstance(error, DivergedError)
    assert str(error) == str(truth)
    assert (error.operator, error.replica, error.step) == ("suspect", replica, 2)
    assert outcome.tables["total"][0] == 5 * outcome.steps


def test_errors_before_the_first_step(local):
    wrong = plan_of(ssgd(batch_size=40))
    strict = fl.load((X, Y), batch_size=40, drop_last=True)
    model = fl.models.softmax(5, 3)
    w = fl.table("w", model.init(seed=0))
    graph = fl.Graph(fl.update(w, fl.aggregate("mean", fl.gradient(model, w, strict)), fl.sgd(1)))
    assert run(wrong, local, Order(1, None)).error is None
    assert isinstance(run(plan_of(graph), local, Order(1, None)).error, DataError)

    def init(here):
        raise ValueError("cannot start")

    t = fl.table("t", init, scope="replica")
    moved = fl.assign(t, fl.map(lambda b: b[0].sum(0), fl.load((X, Y), batch_size=4)))
    outcome = run(plan_of(fl.Graph(moved)), local, Order(1, None))
    assert isinstance(outcome.error, GraphError)
    assert "cannot start" in str(outcome.error)
    assert outcome.steps == 0


def test_an_operator_that_takes_too_long_is_named(local):
    blocker = "flowml-test-too-long"
    event = Event(blocker, client=local)

    def waits(batch, here):
        if here.replica == 1:
            Event(blocker, client=get_client()).wait(30)
        return 1.0

    try:
        outcome = run(plan_of(with_function(waits)), local, Order(3, None, step_seconds=0.2))
    finally:
        event.set()
    assert isinstance(outcome.error, StalledError)
    assert "suspect" in str(outcome.error)
    assert outcome.error.waiting_for == "suspect"
    assert "operator 'suspect' in replica 1, step 0, on worker " in str(outcome.error)
    assert (
        "edge suspect -> sum waits for replica 1 at clock 0, whose last message is that its "
        "task began"
    ) in str(outcome.error)
    assert outcome.tables["total"][0] == 0


def test_a_cluster_that_is_busy_with_other_tasks_is_named_after_the_deadline(local):
    blocker = "flowml-test-busy"
    event = Event(blocker, client=local)

    def block():
        Event(blocker, client=get_client()).wait(30)

    others = [local.submit(block, pure=False, workers=[w]) for w in local.nthreads() for _ in "ab"]
    try:
        outcome = run(plan_of(ssgd()), local, Order(3, None, deadline_seconds=0.3))
    finally:
        event.set()
        local.gather(others)
    assert isinstance(outcome.error, StalledError)
    assert "is busy with another client's task" in str(outcome.error)
    assert outcome.error.since_seconds >= 0.3
    assert "at clock 0, and the last message was " in str(outcome.error)
    assert tasks_left(local) == []


def test_nothing_is_left_on_the_cluster(local):
    run(plan_of(ssgd(every=3, until=lambda w: False)), local, Order(7, None))
    assert tasks_left(local) == []
    groups = local.cluster.scheduler.task_groups
    assert not any(name.startswith("flowml") for name in groups)


def test_dask_shows_operators_under_a_fixed_vocabulary(local):
    seen = set()

    def look(event):
        seen.update(local.cluster.scheduler.task_groups)

    order = Order(6, None, on_event=look)
    run(plan_of(ssgd(every=3, until=lambda w: False)), local, order)
    ours = {group for group in seen if group.startswith("flowml")}
    assert {key_split((group, 0, 0)) for group in ours} <= PREFIXES
    assert {g.rpartition(".")[0] for g in ours} >= {
        "flowml:load-load",
        "flowml:gradient-gradient",
        "flowml:aggregate-mean",
        "flowml:update-update_w",
        "flowml:table-w",
    }
    prefixes = {p for p in local.cluster.scheduler.task_prefixes if "flowml" in p}
    assert prefixes <= PREFIXES


def test_each_rank_stays_on_its_worker(client):
    here = fl.map(lambda b, place: float(os.getpid()), fl.load((X, Y), batch_size=8), fl.here())
    table = fl.table("where", np.zeros(()), scope="replica")
    workers = sorted(client.nthreads())
    outcome = run(
        plan_of(fl.Graph(fl.assign(table, here))),
        client,
        Order(2, None),
        workers=[workers[1], workers[0], workers[1]],
    )
    pids = client.run(os.getpid)
    assert [float(v) for v in outcome.tables["where"]] == [
        pids[workers[1]],
        pids[workers[0]],
        pids[workers[1]],
    ]


@pytest.mark.slow
def test_a_lost_worker_is_named_and_the_last_tables_are_kept():
    def dies(batch, here):
        if here.replica == 1 and here.clock == 6:
            os._exit(1)
        return 1.0

    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            worker_class=Nanny,
            dashboard_address=":0",
            silence_logs=logging.CRITICAL,
            host="127.0.0.1",
        ) as cluster,
        Client(cluster) as lone,
    ):
        workers = sorted(lone.nthreads())
        began = time.monotonic()
        outcome = run(plan_of(with_function(dies), replicas=2), lone, Order(20, None))
    error = outcome.error
    assert isinstance(error, WorkerLostError)
    assert error.worker == workers[1]
    assert error.operator
    assert "flowml:" not in str(error)
    assert outcome.tables["total"][0] == 2 * outcome.steps
    assert time.monotonic() - began < 60
