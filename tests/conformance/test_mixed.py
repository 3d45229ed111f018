"""Mixed graphs on a cluster, on one host and between hosts: they replay, bytes and all."""

from __future__ import annotations

import dask
import numpy as np
import pytest
from distributed import Client

import flowml as fl
from tests.conformance.mixed_graphs import GROUPED, IN_STEP, MIXED
from tests.conformance.test_loose import events, leaves
from tests.graphs.orders import at_random

STEPS, MANY_STEPS = 30, 1500
GROUPS = {2: [[0], [1]], 4: [[0, 1], [2, 3]]}
"""Each on one worker."""


@pytest.mark.parametrize("transport", ["auto", "rpc"])
@pytest.mark.parametrize("replicas", [2, 4])
@pytest.mark.parametrize("name", MIXED)
def test_a_run_repeats_to_the_byte(
    name: str, replicas: int, transport: str, client: Client
) -> None:
    groups = GROUPS[replicas] if name in GROUPED else None
    with dask.config.set({"flowml.transport": transport}):
        run = MIXED[name]().run(steps=STEPS, replicas=replicas, groups=groups, record=True)
    assert run.status == "done"
    assert run.steps >= STEPS
    again = run.replay()
    assert leaves(again.tables) == leaves(run.tables)
    assert events(again) == events(run)
    np.testing.assert_array_equal(run.ledger["bytes"], again.ledger["bytes"])
    assert run.ledger["event"][-1] + 1 == len(np.unique(run.ledger["event"]))


def counting(late: str) -> fl.Graph:
    """Return a graph whose table counts the contributions that a quorum took."""
    total = fl.table("total", np.zeros(1))
    batch = fl.load(np.zeros((60, 2)), batch_size=4)
    ones = fl.map(lambda total, rows: np.ones(1), total, batch, name="ones")
    return fl.Graph(fl.update(total, fl.aggregate("sum", ones.quorum(2, late=late)), fl.add()))


@pytest.mark.parametrize("transport", ["auto", "rpc"])
@pytest.mark.parametrize("late", ["carry", "drop"])
def test_the_ledger_knows_what_a_quorum_took(late: str, transport: str, client: Client) -> None:
    with dask.config.set({"flowml.transport": transport}):
        run = counting(late).run(steps=200, replicas=4, record=True)
    edge = run.ledger.edge("ones -> sum")
    assert run.tables["total"][0] == edge.taken + edge.carried
    assert edge.deliveries == edge.taken + edge.carried + edge.dropped + edge.queued
    assert edge.deliveries + edge.skipped == 4 * 200
    assert edge.dropped == 0 or late == "drop"
    assert edge.queued <= 4


@pytest.mark.parametrize("transport", ["auto", "rpc"])
@pytest.mark.parametrize("name", IN_STEP)
def test_graphs_in_step_have_the_bytes_of_the_serial_executor(
    name: str, transport: str, client: Client
) -> None:
    with dask.config.set({"flowml.transport": transport}):
        found = MIXED[name]().run(steps=STEPS, replicas=4)
    truth = MIXED[name]().run(steps=STEPS, replicas=4, executor="serial")
    assert leaves(found.tables) == leaves(truth.tables)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", sorted(set(MIXED) - set(GROUPED)))
def test_any_order_replays(name: str, seed: int) -> None:
    """`at_random` compares with a replay of its own record."""
    ran = at_random(MIXED[name](), seed, steps=20)
    assert {kind for kind, *_ in ran.events} >= {"read", "deliver", "leave"}


@pytest.mark.parametrize("name", MIXED)
def test_one_replica_alone_is_the_serial_executor(name: str, client: Client) -> None:
    serial, resident = (
        MIXED[name]().run(steps=STEPS, replicas=1, executor=executor, snapshots=(1, 7))
        for executor in ("serial", "resident")
    )
    assert leaves(serial.tables) == leaves(resident.tables)
    for step in (1, 7):
        assert leaves(serial.outcome.snapshots[step]) == leaves(resident.outcome.snapshots[step])


def test_a_quorum_leaves_no_replica_of_another_host_out(client: Client) -> None:
    """A read from afar is answered for the step that has come: else it always comes too late."""
    with dask.config.set({"flowml.transport": "rpc"}):
        run = MIXED["quorum_carry"]().run(steps=MANY_STEPS, replicas=2, record=True)
    made = [(kind, replica) for kind, replica, *_ in events(run)]
    assert made.count(("skip", 1)) > 0
    assert made.count(("deliver", 1)) > 0
    for replica in (0, 1):
        clocks = [c for kind, r, c, *_ in events(run) if r == replica and kind != "read"]
        assert clocks == list(
            range(MANY_STEPS + 1)
        )  # each step once, made or moved over, and the leave
    again = run.replay()
    assert events(again) == events(run)
    assert leaves(again.tables) == leaves(run.tables)
