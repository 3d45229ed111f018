"""backup_workers equals a plain loop over the first gradients of each step."""

import numpy as np
import pytest

import flowml as fl
from graphs import backup_workers, ssgd
from tests.graphs.orders import ORDERS, REPLICAS, Work, X, Y, at_random, moved
from tests.graphs.reference import CLASSES, FEATURES, assert_close, zeros

MODEL = fl.models.softmax(FEATURES, CLASSES, dtype="float64")
ALL = pytest.mark.parametrize("order", ORDERS)


def graph(backups, late="drop", **options):
    fixed = {"lr": 0.3, "batch_size": 10, "replicas": REPLICAS}
    return backup_workers.build(MODEL, (X, Y), backups=backups, late=late, **fixed | options)


class Server:
    """Parameters, and the gradients of one step that have come."""

    def __init__(self, wait_for, carries):
        self.w, self.step = zeros(), 0
        self.wait_for, self.carries = wait_for, carries
        self.there, self.carried = {}, []
        self.clocks = dict.fromkeys(range(REPLICAS), 0)
        self.took, self.late = [], 0
        """How many gradients each step took, and how many were too late for theirs."""

    def arrive(self, replica, clock, rows, grads):
        self.clocks[replica] = clock + 1
        if clock == self.step:
            self.there[replica] = rows, grads
        else:
            self.late += 1
            self.carried += [(rows, grads)] * self.carries
        self.go_on()

    def leave(self, replica):
        self.clocks[replica] = np.inf
        self.go_on()

    def go_on(self):
        """Apply the mean once enough have come, or all that still may."""
        may_come = sum(clock <= self.step for clock in self.clocks.values())
        taken = [*self.there.values(), *self.carried]
        if not taken or len(self.there) < min(self.wait_for, len(self.there) + may_come):
            return
        total = sum(rows for rows, _ in taken)
        for rows, grads in taken:
            if rows:
                self.w = moved(self.w, grads, 0.3 * rows / total)
        self.took.append(len(self.there))
        self.step, self.there, self.carried = self.step + 1, {}, []


def loop(events, backups, late="drop"):
    work, copies = Work(events), {}
    server = Server(REPLICAS - backups, late == "carry")
    for kind, replica, clock in work:
        if kind == "read":
            assert clock == server.step
            copies[replica] = server.w
        elif kind == "skip":
            assert clock < server.step
            server.clocks[replica] = clock + 1
        elif kind == "leave":
            server.leave(replica)
        else:
            grads = work.gradient(copies[replica], replica, clock)
            server.arrive(replica, clock, len(work.rows(replica, clock)), grads)
    return server


@ALL
@pytest.mark.parametrize("late", ["drop", "carry"])
@pytest.mark.parametrize("backups", [0, 1, 2])
def test_equals_a_plain_loop(order, late, backups):
    ran = ORDERS[order](graph(backups, late))
    assert_close(ran.tables["w"], loop(ran.events, backups, late).w)


@pytest.mark.parametrize("backups", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_each_step_takes_as_many_as_it_waits_for(backups, seed):
    ran = at_random(graph(backups), seed)
    server = loop(ran.events, backups)
    assert server.took == [REPLICAS - backups] * server.step


@pytest.mark.parametrize("backups", [1, 2])
def test_some_gradients_are_too_late(backups):
    """So that the loop above has something to drop, and something to carry."""
    orders = [at_random(graph(backups), seed).events for seed in range(4)]
    assert sum(loop(events, backups).late for events in orders) > 0


@pytest.mark.parametrize("late", ["drop", "carry"])
def test_without_backups_it_is_ssgd_to_the_byte(late):
    one = graph(0, late, momentum=0.5).run(steps=9, replicas=REPLICAS, executor="serial")
    plain = ssgd.build(MODEL, (X, Y), lr=0.3, momentum=0.5, batch_size=10)
    truth = plain.run(steps=9, replicas=REPLICAS, executor="serial").tables["w"]
    assert all(one.tables["w"][name].tobytes() == truth[name].tobytes() for name in truth)


@pytest.mark.parametrize(("replicas", "backups"), [(3, 3), (3, -1), (1, 2)])
def test_a_step_needs_a_gradient(replicas, backups):
    with pytest.raises(fl.GraphError, match=f"less than replicas, got {backups} of {replicas}"):
        graph(backups, replicas=replicas)
