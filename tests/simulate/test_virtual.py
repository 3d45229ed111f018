"""Virtual time: the numbers are those of real runs, the times are those that were made up."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import optree
import pytest

import flowml as fl
from flowml.errors import PlanError
from flowml.simulate import Compute, Faults, Network, Timed

FEATURES, CLASSES, ROWS = 6, 3, 90
TABLE_BYTES = 4 * (FEATURES * CLASSES + CLASSES)
PROMISES: dict[str, Any] = {
    "sync": lambda w: w.sync(),
    "stale": lambda w: w.stale(3),
    "async": lambda w: w.async_(),
}


def examples() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(ROWS, FEATURES)).astype("float32"), rng.integers(0, CLASSES, ROWS)


def training(promise: str, *, push: bool = False, every: int | None = None) -> fl.Graph:
    model = fl.models.softmax(FEATURES, CLASSES)
    w = fl.table("w", model.init(seed=0))
    grads = fl.gradient(model, PROMISES[promise](w), fl.load(examples(), batch_size=5))
    value = grads if push else fl.aggregate("mean", grads)
    sinks = [fl.update(w, value, fl.sgd(0.1, momentum=0.5))]
    if every:
        sinks.append(fl.evaluate(model.loss, w, examples(), every=every))
    return fl.Graph(*sinks)


def same_bytes(a: Any, b: Any) -> bool:
    pairs = zip(optree.tree_leaves(a.tables), optree.tree_leaves(b.tables), strict=True)
    return all(x.tobytes() == y.tobytes() for x, y in pairs)


@pytest.mark.parametrize("push", [False, True])
def test_sync_is_serial_whatever_the_times(push: bool) -> None:
    graph = training("sync", push=push)
    truth = graph.run(steps=12, replicas=3, executor="serial")
    found = graph.simulate(replicas=3, steps=12, compute=Compute(0.01, spread=1.0), seed=0)
    assert same_bytes(truth, found)


@pytest.mark.parametrize("push", [False, True])
@pytest.mark.parametrize("promise", ["stale", "async"])
def test_the_same_seed_gives_the_same_run_and_it_replays(promise: str, push: bool) -> None:
    graph = training(promise, push=push)
    asked: dict[str, Any] = {
        "replicas": 4,
        "steps": 15,
        "compute": Compute(0.01, spread=0.5, slow={2: 4.0}),
        "network": Network(0.001, 1e6, spread=0.5),
        "record": True,
        "seed": 7,
    }
    one, two = graph.simulate(**asked), graph.simulate(**asked)
    assert same_bytes(one, two)
    assert one.seconds == two.seconds
    assert same_bytes(one, one.replay())
    other = graph.simulate(**asked | {"seed": 8})
    assert other.seconds != one.seconds


def test_a_synchronous_step_takes_the_slowest_replica_and_two_messages() -> None:
    network = Network(latency=0.002, bandwidth=1e5)
    run = training("sync").simulate(
        replicas=3, steps=10, compute=Compute(0.01, slow={1: 3.0}), network=network
    )
    step = 2 * (0.002 + TABLE_BYTES / 1e5) + 0.03
    assert run.seconds == pytest.approx(10 * step)
    rank = run.history["replica"]
    assert run.history["wait_seconds"][rank == 1] == pytest.approx(np.zeros(10))
    waits = run.history["wait_seconds"][rank == 0][1:]
    assert waits == pytest.approx(np.full(9, 0.02))


def test_one_who_had_to_wait_goes_on_when_it_has_woken_up() -> None:
    run = training("sync").simulate(
        replicas=2,
        steps=2,
        compute=Compute(0.01, slow={1: 3.0}),
        network=Network(0.0, math.inf, wake=0.1),
    )
    assert run.seconds == pytest.approx(0.03 + 0.1 + 0.01)


def test_under_async_nobody_waits_and_the_fast_ones_are_done_first() -> None:
    run = training("async", push=True).simulate(
        replicas=3, steps=10, compute=Compute(0.01, slow={1: 3.0}), network=Network(0.0)
    )
    assert run.history["wait_seconds"].max() == 0.0
    totals = [run.history["seconds"][run.history["replica"] == r].sum() for r in range(3)]
    assert totals == pytest.approx([0.1, 0.3, 0.1], rel=1e-3)


def test_stale_bounds_the_lead_in_the_ledger() -> None:
    run = training("stale", push=True).simulate(
        replicas=3, steps=20, compute=Compute(0.01, slow={1: 8.0}), record=True
    )
    ledger = run.ledger
    assert ledger["staleness"].max() == 3
    clocks = [0, 0, 0]
    for kind, replica, clock in zip(
        ledger["kind"], ledger["replica"], ledger["clock"], strict=True
    ):
        if kind == "read":
            live = [c for c in clocks if c < 20]
            assert clock <= min(live, default=clock) + 3
        elif kind == "deliver":
            clocks[replica] = int(clock) + 1


def test_one_who_is_lost_is_not_waited_for() -> None:
    graph = training("sync")
    run = graph.simulate(replicas=3, steps=10, compute=Compute(0.01), faults=Faults({1: 0.035}))
    assert run.status == "done"
    assert run.steps == 10
    counts = np.bincount(run.history["replica"], minlength=3)
    assert counts[1] < 5
    assert counts[0] == counts[2] == 10


def test_evaluations_and_limits_are_in_virtual_seconds() -> None:
    graph = training("async", every=5)
    run = graph.simulate(replicas=2, steps=10, compute=Compute(0.5), network=Network(0.0))
    assert [m["step"] for m in run.metrics] == [5, 10]
    assert [m["seconds"] for m in run.metrics] == pytest.approx([2.5, 5.0], rel=1e-3)
    cut = graph.simulate(replicas=2, steps=1000, compute=Compute(0.5), max_seconds=3.0)
    assert cut.status == "stopped"
    assert 5 <= cut.steps <= 7


def test_steps_take_as_long_as_those_that_were_timed() -> None:
    graph = training("async")
    free = Network(0.0, math.inf)
    steady = Timed([np.full(3, 0.25), np.full(5, 0.5)])
    run = graph.simulate(replicas=3, steps=4, compute=steady, network=free)
    for replica, seconds in enumerate((0.25, 0.5, 0.25)):  # a third one is like the first
        own = run.history["replica"] == replica
        assert run.history["seconds"][own] == pytest.approx(np.full(4, seconds))
    drawn = graph.simulate(
        replicas=1, steps=200, compute=Timed([np.array([1.0, 1.0, 1.0, 21.0])]), network=free
    )
    assert set(drawn.history["seconds"].round(9)) == {1.0, 21.0}
    assert 20 < np.count_nonzero(drawn.history["seconds"] > 2) < 80


def test_a_run_tells_the_simulator_its_steps_without_their_waits() -> None:
    made_up = Compute(0.01, slow={1: 8.0})
    waits = training("stale", push=True).simulate(
        replicas=3, steps=20, compute=made_up, network=Network(0.0, math.inf)
    )
    assert waits.history["wait_seconds"].max() > 0.01
    told = Timed.of(waits.history)
    means = [own.mean() for own in told.seconds]
    assert means == pytest.approx([0.01, 0.08, 0.01], rel=1e-6)
    again = training("stale", push=True).simulate(
        replicas=3, steps=20, compute=told, network=Network(0.0, math.inf)
    )
    assert again.seconds == pytest.approx(waits.seconds, rel=1e-6)


def test_a_row_of_a_long_run_tells_of_all_the_steps_that_it_stands_for() -> None:
    """The first steps are the slowest: alike with the others, they would be two thirds of them."""
    steps = np.concatenate([np.arange(1000), np.arange(1000, 6000, 10)])
    slow = np.where(steps < 1000, 4.0, 1.0)
    columns = {"step": steps, "replica": np.zeros(1500, int), "seconds": slow + 0.5}
    (told,) = Timed.of({**columns, "wait_seconds": np.full(1500, 0.5)}).seconds
    assert (len(told), told.mean()) == (6000, 1.5)


def test_the_executor_by_name_is_the_simulator_with_its_defaults() -> None:
    graph = training("stale")
    named = graph.run(steps=5, replicas=2, executor="simulated")
    assert same_bytes(named, graph.simulate(replicas=2, steps=5))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Compute(0.0), r"Compute\(seconds=\): must be > 0, got 0.0"),
        (lambda: Compute(slow_share=2), r"Compute\(slow_share=\): must be from 0 to 1"),
        (lambda: Compute(slow={0: -1.0}), r"Compute\(slow\[0\]=\): must be > 0"),
        (lambda: Timed([]), r"Timed: seconds: must have the steps of a replica"),
        (lambda: Timed([np.zeros(0)]), r"Timed\(seconds\[0\]=\): must be > 0, of one step or more"),
        (lambda: Timed([np.ones(2), np.array([1.0, 0.0])]), r"Timed\(seconds\[1\]=\): .*got 0.0"),
        (lambda: Network(bandwidth=0), r"Network\(bandwidth=\): must be > 0"),
        (lambda: Network(wake=-1.0), r"Network\(wake=\): must be >= 0"),
        (lambda: Faults({3: -1.0}), r"Faults\(leaves\[3\]=\): must be >= 0"),
    ],
)
def test_what_has_no_meaning_is_refused(make: Any, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        make()


@pytest.mark.parametrize("groups", ["host", [[0, 2], [1, 3]]])
def test_groups_keep_step_and_have_the_bytes_of_the_synchronous_executor(groups: Any) -> None:
    model = fl.models.softmax(FEATURES, CLASSES)
    w = fl.table("w", model.init(seed=0))
    near = fl.aggregate(
        "mean", fl.gradient(model, w, fl.load(examples(), batch_size=5)), within="host"
    )
    graph = fl.Graph(fl.update(w, fl.aggregate("mean", near), fl.sgd(0.1)))
    truth = graph.run(steps=9, replicas=4, groups=groups, executor="serial")
    found = graph.simulate(replicas=4, groups=groups, steps=9, compute=fl.simulate.Compute(0.1))
    assert found.tables["w"]["W"].tobytes() == truth.tables["w"]["W"].tobytes()
    assert found.seconds == pytest.approx(0.9, rel=0.1)
