"""Stale and async edges on a cluster: a recorded run repeats to the byte, and promises hold."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import optree
import pytest
from distributed import Client

import flowml as fl
from flowml.execution import Run
from flowml.runtime.loose_plan import QUEUE_STEPS
from tests.conformance.catalogue import CLASSES, FEATURES, LOOSE, examples, loose, softmax

STEPS = 40
FAR_STEPS = 4_000
"""Some hundred windows as long as the first ones."""
PUSHES = (
    "asgd", "ssp", "easgd", "adaptive_delay", "delay_compensated", "sparse_logistic", "skip_gram",
)  # fmt: skip
"""Where each step's contribution is applied by itself: the writers are the replicas."""
Event = tuple[str, int, int, int, int]
"""(kind, replica, clock, version, staleness)."""


def leaves(tables: Any) -> list[bytes]:
    """Return the bytes of all tables, those of each replica too."""
    return [leaf.tobytes() for leaf in optree.tree_leaves(tables)]


READS = {"downpour": lambda clock: clock % 3 == 0, "easgd": lambda clock: clock % 3 == 2}
"""In which steps a graph reads, where it is not in all of them."""


def events(run: Run) -> list[Event]:
    """Return the ledger in its order."""
    names = ("kind", "replica", "clock", "version", "staleness")
    return list(zip(*(run.ledger[name].tolist() for name in names), strict=True))


def turns(run: Run) -> list[Event]:
    """Return the ledger in its order, once an event, which has a row for each of its edges."""
    numbers, first = np.unique(run.ledger["event"], return_index=True)
    assert numbers.tolist() == list(range(len(numbers)))
    rows = events(run)
    return [rows[at] for at in first]


def assert_whole(run: Run, name: str, replicas: int, steps: int) -> None:
    """Require the reads that are due, and a delivery a step, by number, and a leave a replica."""
    assert (np.diff(run.ledger["event"]) >= 0).all()
    reads = READS.get(name, lambda clock: True)
    for replica in range(replicas):
        mine = [(kind, clock) for kind, r, clock, *_ in turns(run) if r == replica]
        each = [("read", clock) for clock in range(steps) if reads(clock)]
        each += [("deliver", clock) for clock in range(steps)]
        order = sorted(each, key=lambda e: (e[1], e[0] == "deliver"))
        assert mine == [*order, ("leave", steps)]


def assert_never_back(run: Run, replicas: int) -> None:
    """Require the versions that one reader sees to be in order, and to come to something."""
    for replica in range(replicas):
        seen = [v for kind, r, _, v, _ in events(run) if kind == "read" and r == replica]
        assert seen == sorted(seen)
        assert seen[-1] > seen[0]


def leads(run: Run, replicas: int) -> list[float]:
    """Return after each event how far its replica is before the slowest live one."""
    clocks = [0.0] * replicas
    found = []
    for kind, replica, *_ in turns(run):
        clocks[replica] += kind == "deliver"
        found.append(clocks[replica] - min(clocks))
        if kind == "leave":
            clocks[replica] = math.inf
    return found


def assert_staleness_is_measured(run: Run, replicas: int) -> None:
    """Require what the ledger calls staleness to be the lead of the reader at its read."""
    for (kind, *_, late), lead in zip(turns(run), leads(run, replicas), strict=True):
        if kind == "read":
            assert late == lead


@pytest.mark.parametrize("replicas", [2, 4])
@pytest.mark.parametrize("name", LOOSE)
def test_a_run_repeats_to_the_byte_and_keeps_its_promises(
    name: str, replicas: int, client: Client
) -> None:
    run = loose(name).run(steps=STEPS, replicas=replicas, record=True)
    assert (run.status, run.steps) == ("done", STEPS)
    again = run.replay()
    assert leaves(again.tables) == leaves(run.tables)
    assert events(again) == events(run)
    assert_whole(run, name, replicas, STEPS)
    assert_never_back(run, replicas)
    _, promised, every = LOOSE[name]
    assert max(late for kind, *_, late in events(run) if kind == "read") <= promised
    if every == 1:
        assert max(leads(run, replicas)) <= promised + 1
    if name in PUSHES:
        assert_staleness_is_measured(run, replicas)


@pytest.mark.parametrize("combine", ["push", "mean"])
@pytest.mark.parametrize("staleness", [1, 4])
def test_stale_reads_are_bounded(combine: str, staleness: int, client: Client) -> None:
    run = loose("ssp", staleness=staleness, combine=combine).run(
        steps=STEPS, replicas=3, record=True
    )
    assert max(late for kind, *_, late in events(run) if kind == "read") <= staleness
    # A mean may be as far ahead of the slowest replica as a read is of the mean.
    bound = staleness if combine == "push" else 2 * staleness
    assert max(leads(run, 3)) <= bound + 1
    assert leaves(run.replay().tables) == leaves(run.tables)


def test_before_the_switch_all_reads_are_sync(client: Client) -> None:
    run = loose("warm_then_async", warm=12).run(steps=STEPS, replicas=4, record=True)
    done = [0] * 4
    for kind, replica, clock, *_, late in events(run):
        if kind == "read":
            assert min(done) >= min(clock, 12)
            assert late == 0 or clock > 12
        done[replica] += kind == "deliver"


@pytest.mark.parametrize("name", LOOSE)
def test_one_replica_has_the_bytes_of_the_serial_executor(name: str, client: Client) -> None:
    serial, resident = (
        loose(name).run(steps=STEPS, replicas=1, executor=executor, snapshots=(1, 2, 7)).outcome
        for executor in ("serial", "resident")
    )
    assert leaves(serial.tables) == leaves(resident.tables)
    assert sorted(resident.snapshots) == [1, 2, 7]
    for step in (1, 2, 7):
        assert leaves(serial.snapshots[step]) == leaves(resident.snapshots[step])


@pytest.mark.parametrize("executor", ["serial", "resident"])
def test_snapshots_are_whole(executor: str, client: Client) -> None:
    graph = loose("easgd")
    run = graph.run(steps=20, replicas=3, executor=executor, snapshots=(5, 20), record=True)
    taken = run.outcome.snapshots
    assert sorted(taken) == [5, 20]
    assert leaves([taken[20]["center"][0], taken[20]["local"]]) == leaves(
        [run.tables["center"], run.tables["local"]]
    )
    assert all(np.isfinite(leaf).all() for leaf in optree.tree_leaves(taken[5]))
    assert leaves(taken[5]["local"]) != leaves(taken[20]["local"])
    assert leaves(run.replay().tables) == leaves(run.tables)


@pytest.mark.parametrize("executor", ["serial", "resident"])
def test_evaluations_go_on(executor: str, client: Client) -> None:
    X, y = examples()
    model = softmax()
    w = fl.table("w", model.init(seed=0))
    grads = fl.gradient(model, w.async_(), fl.load((X, y), batch_size=8))
    measured = fl.evaluate(
        lambda w, rows: {"loss": model.loss(w, rows)}, w, (X, y), every=10, name="test"
    )
    graph = fl.Graph(fl.update(w, grads, fl.sgd(0.2)), measured)
    run = graph.run(steps=34, replicas=2, executor=executor, record=True)
    assert [m["step"] for m in run.metrics] == [10, 20, 30, 34]
    losses = [m["loss"] for m in run.metrics]
    assert losses[-1] < losses[0] < np.log(CLASSES) + 0.2
    assert losses[-1] == pytest.approx(model.loss(run.tables["w"], (X, y)))
    assert leaves(run.replay().tables) == leaves(run.tables)


def test_a_table_does_not_pass_through_the_scheduler_to_be_evaluated(client: Client) -> None:
    """Dask warns of a large task, and warnings are errors here."""
    w = fl.sparse_table("w", 300, dtype="float64")
    keys = fl.map(lambda x: np.arange(400), fl.load(examples()[0], batch_size=8), name="keys")
    ones = fl.map(np.ones_like, w.async_().at(keys))
    size = fl.evaluate(lambda w, x: float(w.rows.sum()), w, examples()[0], every=2)
    graph = fl.Graph(fl.update(w.at(keys), ones, fl.add()), size)
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "500 kB"}):
        run = graph.run(steps=4, replicas=2)
    assert [m["value"] for m in run.metrics][-1] == 2 * 4 * 400 * 300


@pytest.mark.parametrize("executor", ["serial", "resident"])
@pytest.mark.parametrize("name", ["asgd", "ssp", "easgd"])
def test_max_seconds_ends_a_run(name: str, executor: str, client: Client) -> None:
    run = loose(name).run(steps=10**7, replicas=2, executor=executor, max_seconds=0.3, record=True)
    assert run.status == "stopped"
    assert 0 < run.steps < 10**7
    assert all(np.isfinite(leaf).all() for leaf in optree.tree_leaves(run.tables))
    assert leaves(run.replay().tables) == leaves(run.tables)


def clocks_of(handle: Any) -> Any:
    """Return the clocks of the replicas, which the values of a handle wait for."""
    return fl.map(lambda value, place: float(place.clock), handle, fl.here(), name="clock")


@pytest.mark.parametrize("executor", ["serial", "resident"])
def test_an_end_of_the_graph_ends_all(executor: str, client: Client) -> None:
    w = fl.table("w", np.zeros(FEATURES, np.float32))
    batch = fl.load(examples()[0], batch_size=8)
    values = fl.map(lambda w, x: x.mean(0) - w, w.async_(), batch, name="values")
    late = fl.aggregate("mean", clocks_of(values), weight="equal", name="mean_clock")
    graph = fl.Graph(fl.update(w, values, fl.add(0.1)), fl.until(lambda c: c >= 7, late))
    run = graph.run(steps=10**6, replicas=2, executor=executor, record=True)
    assert run.status == "until"
    assert 8 <= run.steps <= 8 + QUEUE_STEPS
    assert leaves(run.replay().tables) == leaves(run.tables)


def test_who_waits_for_room_takes_nobodys_place_when_the_run_ends(client: Client) -> None:
    """Replica 1 has filled its queue: one more value would lie where the first one still is.

    Replica 2 ends the run while replica 0 is in a step, which it delivers.
    """
    w, ended = fl.table("w", np.zeros(1)), fl.table("ended", np.zeros(1))
    seconds = (0.012, 0.0, 0.009)

    def clock(w: Any, place: Any, batch: Any) -> Any:
        time.sleep(seconds[place.replica])
        return np.full(1, float(place.clock))

    batch = fl.load(np.zeros((64, 1)), batch_size=8)
    values = fl.map(clock, w.async_(), fl.here(), batch, name="values")
    counted = fl.map(lambda v, place: np.full(1, place.replica == 2, float), values, fl.here())
    mean = fl.aggregate("mean", values.sync(), name="mean")
    count = fl.update(ended, counted.async_(), fl.add())
    graph = fl.Graph(fl.update(w, mean.sync(), fl.add()), fl.until(lambda n: n[0] >= 60, count))
    run = graph.run(steps=10**6, replicas=3)
    assert (run.status, run.tables["ended"][0]) == ("until", 60)
    assert 60 - QUEUE_STEPS <= run.steps <= 60
    assert run.tables["w"][0] == sum(range(run.steps))  # each mean is of equal clocks


@pytest.mark.parametrize("executor", ["serial", "resident"])
def test_an_end_behind_a_push_sees_the_table_after_it(executor: str, client: Client) -> None:
    w = fl.table("w", np.zeros(FEATURES, np.float32))
    size = fl.map(lambda w, x: np.ones_like(w), w.async_(), fl.load(examples()[0], batch_size=8))
    pushed = fl.update(w, size, fl.add())
    graph = fl.Graph(pushed, fl.until(lambda w: w[0] >= 9, pushed))
    run = graph.run(steps=10**6, replicas=2, executor=executor, record=True)
    assert run.status == "until"
    assert 9 <= run.tables["w"][0] <= 9 + 2
    assert leaves(run.replay().tables) == leaves(run.tables)


def failing(read: Callable[[Any], Any]) -> fl.Graph:
    model = softmax()
    w = fl.table("w", model.init(seed=0))

    def trap(grads: Any, place: Any) -> Any:
        if (place.replica, place.clock) == (1, 5):
            raise ValueError("not this one")
        return grads

    batch = fl.load(examples(), batch_size=8)
    grads = fl.gradient(model, read(w), batch)
    return fl.Graph(fl.update(w, fl.map(trap, grads, fl.here(), name="trap"), fl.sgd(0.1)))


@pytest.mark.parametrize("executor", ["serial", "resident"])
@pytest.mark.parametrize("read", [lambda w: w.async_(), lambda w: w.stale(2)])
def test_an_operator_that_raises_ends_the_run_with_one_error(
    read: Callable[[Any], Any], executor: str, client: Client
) -> None:
    with pytest.raises(fl.OperatorError, match="not this one") as caught:
        failing(read).run(steps=10**6, replicas=2, executor=executor)
    error = caught.value
    assert (error.operator, error.replica, error.step) == ("trap", 1, 5)
    left: Run = error.run  # type: ignore[attr-defined]
    assert left.status == "failed"
    assert all(np.isfinite(leaf).all() for leaf in optree.tree_leaves(left.tables))


@pytest.mark.parametrize("name", LOOSE)
def test_tasks_refuses_with_the_reason(name: str, client: Client) -> None:
    with pytest.raises(fl.PlanError) as caught:
        loose(name).run(steps=3, replicas=2, executor="tasks")
    assert "stale, async or compressed edges" in str(caught.value)


def test_what_was_not_recorded_is_not_replayed(client: Client) -> None:
    run = loose("asgd").run(steps=3, replicas=2)
    with pytest.raises(fl.PlanError, match="has no record of reads and deliveries"):
        run.replay()
    assert "rows" in repr(loose("asgd").run(steps=3, replicas=2, record=True).ledger)


def beside(read: Callable[[Any], Any], kind: str) -> fl.Graph:
    """Return a loop of w, marked by ``read``, and one of v that is sync."""
    X, y = examples(dtype="float64")
    model = softmax("float64")
    w, v = fl.table("w", model.init(seed=0)), fl.table("v", model.init(seed=1))
    batch = fl.load((X, y), batch_size=8)
    pushed = fl.update(w, fl.gradient(model, read(w), batch), fl.sgd(0.1))
    grads = fl.gradient(model, v.sync(), batch, name="grads").sync()
    weight = fl.map(lambda rows: 1.0 + float(np.abs(rows[0]).sum()), batch, name="weight").sync()
    if kind == "pushes":
        return fl.Graph(pushed, fl.update(v, grads.every(3), fl.sgd(0.1, momentum=0.9)))
    values, weights = {
        "weights": (grads, weight),
        "kept weights": (grads.every(3), weight.every(3, keep="sum")),
        "held weights": (grads, weight.every(4, keep="mean")),
    }[kind]
    mean = fl.aggregate("mean", values, weight=weights, name="mean")
    return fl.Graph(pushed, fl.update(v, mean.sync(), fl.adam(0.01)))


@pytest.mark.parametrize("kind", ["pushes", "weights", "kept weights", "held weights"])
@pytest.mark.parametrize("replicas", [1, 3])
def test_a_sync_loop_beside_an_async_one_stays_as_it_is(
    kind: str, replicas: int, client: Client
) -> None:
    truth = beside(lambda w: w, kind).run(steps=STEPS, replicas=replicas, executor="serial")
    for executor in ("serial", "resident"):
        found = beside(lambda w: w.async_(), kind).run(
            steps=STEPS, replicas=replicas, executor=executor
        )
        assert leaves(found.tables["v"]) == leaves(truth.tables["v"])


def test_the_windows_of_a_slow_replica_do_not_hold_up_the_others(
    client: Client, tmp_path: Path
) -> None:
    """One replica stays in its first step until another has made as many as many windows have."""
    os.mkfifo(tmp_path / "far")

    def meet(rows: Any, place: Any) -> Any:
        if place.clock == (0 if place.replica else FAR_STEPS):  # each waits until both have come
            (tmp_path / "far").open("wb" if place.replica else "rb").close()
        return np.ones(FEATURES, np.float32)

    w = fl.table("w", np.zeros(FEATURES, np.float32))
    read = fl.map(lambda w, x: x, w.async_(), fl.load(examples()[0], batch_size=8))
    pushed = fl.update(w, fl.map(meet, read, fl.here()), fl.add())
    run = fl.Graph(pushed).run(steps=FAR_STEPS + 1, replicas=2, step_seconds=60)
    assert run.tables["w"][0] == 2 * (FAR_STEPS + 1)
