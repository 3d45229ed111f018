"""hybrid equals a plain loop of groups, each with one model, and is ssgd or asgd at the ends."""

from types import SimpleNamespace

import dask
import pytest
from distributed import Client

import flowml as fl
from flowml import reductions
from flowml.runtime import group_answers, own_pulls
from flowml.runtime.cursor import Cursor
from graphs import hybrid, ssgd
from tests.graphs.orders import STEPS, Work, X, Y, at_random, in_turns, moved, ran
from tests.graphs.reference import CLASSES, FEATURES, assert_close, mean_gradient, zeros

MODEL = fl.models.softmax(FEATURES, CLASSES, dtype="float64")
GROUPS = {"2 of 3": [[0, 2], [1]], "3 of 3": [[0], [1], [2]], "1 of 3": [[0, 1, 2]]}
TWO_PAIRS = [[0, 1], [2, 3]]


def graph(momentum=0.0):
    return hybrid.build(MODEL, (X, Y), lr=0.3, momentum=momentum, batch_size=10)


def loop(events, groups, replicas=3):
    """Let the first replica of each group push the group's mean and read what came of it."""
    work, w = Work(events, replicas), zeros()
    velocity, copies = zeros(), {ranks[0]: w for ranks in groups}
    ranks_of = {ranks[0]: ranks for ranks in groups}
    for kind, first, clock in work:
        if kind == "read":
            copies[first] = w
        elif kind == "deliver":
            rows = [work.rows(rank, clock) for rank in sorted(ranks_of[first])]
            if any(map(len, rows)):
                grads = mean_gradient(copies[first], X, Y, rows)
                velocity = {name: 0.5 * velocity[name] + grads[name] for name in w}
                w = moved(w, velocity, 0.3)
    return w, [copies[ranks[0]] for ranks in groups]


def assert_loop(tables, events, groups, replicas=3):
    w, copies = loop(events, groups, replicas)
    assert_close(tables["w"], w)
    for found, expected in zip(tables["copy"], copies, strict=True):
        assert_close(found, expected)


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
def test_equals_a_plain_loop_in_turns(groups):
    found = in_turns(graph(momentum=0.5), groups=groups)
    assert_loop(found.tables, found.events, groups)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
def test_equals_a_plain_loop_in_any_order(groups, seed):
    found = at_random(graph(momentum=0.5), seed, groups=groups)
    assert_loop(found.tables, found.events, groups)


def test_groups_go_at_their_own_pace():
    found = [at_random(graph(), seed, groups=GROUPS["2 of 3"]).events for seed in range(4)]
    assert max(late for events in found for _, _, _, late in events) >= 2


@pytest.mark.parametrize("transport", ["auto", "rpc"])
def test_real_replicas_equal_a_plain_loop(transport, client: Client):
    """Each gradient of a group is of the group's one model, though its replicas are two threads."""
    with dask.config.set({"flowml.transport": transport}):
        run = graph(momentum=0.5).run(steps=STEPS, replicas=4, groups=TWO_PAIRS, record=True)
    found = ran(run)
    assert_loop(found.tables, found.events, TWO_PAIRS, 4)
    assert {replica for _, replica, _, _ in found.events} == {0, 2}  # one receives for both


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_one_group_is_ssgd(momentum):
    one = graph(momentum=momentum)
    found = one.run(steps=9, replicas=3, groups=1, executor="serial").tables["w"]
    plain = ssgd.build(MODEL, (X, Y), lr=0.3, momentum=momentum, batch_size=10)
    assert_close(found, plain.run(steps=9, replicas=3, executor="serial").tables["w"])


def simulated(spread):
    """Run in virtual time, where the replicas of a group come at different times."""
    compute = fl.simulate.Compute(1e-3, spread=spread)
    run = graph(momentum=0.5).simulate(
        steps=STEPS, replicas=4, groups=TWO_PAIRS, record=True, compute=compute
    )
    return ran(run)


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0, 2.0])
def test_simulated_replicas_equal_a_plain_loop(spread):
    found = simulated(spread)
    assert_loop(found.tables, found.events, TWO_PAIRS, 4)


PLANTED = {
    "each replica receives for itself": (
        (own_pulls, "first_of_group", lambda plan, number: True),
        (
            group_answers,
            "reductions",
            SimpleNamespace(sum_=reductions.mean),
        ),  # not one table, added twice
    ),
    "nobody waits for the group": ((Cursor, "_missing_peers", lambda cursor: None),),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_of_the_hand_round_is_caught(fault, monkeypatch):
    for place, name, wrong in PLANTED[fault]:
        monkeypatch.setattr(place, name, wrong)
    found = simulated(1.0)
    with pytest.raises(AssertionError):
        assert_loop(found.tables, found.events, TWO_PAIRS, 4)
