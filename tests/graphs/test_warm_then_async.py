"""warm_then_async equals a plain loop: means of all at first, then one gradient after another."""

import pytest

import flowml as fl
from graphs import ssgd, warm_then_async
from tests.graphs.orders import ORDERS, REPLICAS, Work, X, Y, at_random, moved
from tests.graphs.reference import CLASSES, FEATURES, assert_close, zeros

MODEL = fl.models.softmax(FEATURES, CLASSES, dtype="float64")
ALL = pytest.mark.parametrize("order", ORDERS)


def loop(events, warm):
    work, w, copies = Work(events), zeros(), {}
    held = []  # (step, rows, gradient)
    done = [0] * REPLICAS
    fired = 0
    for kind, replica, clock in work:
        if kind == "read":
            copies[replica] = w
        if kind != "deliver":
            continue
        done[replica] += 1
        grads = work.gradient(copies[replica], replica, clock)
        held.append((clock, len(work.rows(replica, clock)), grads))
        while held and (fired >= warm or min(done) > fired):
            now = [h for h in held if fired >= warm or h[0] == fired]
            total = sum(count for _, count, _ in now)
            if total:
                parts = [(count / total, grads) for _, count, grads in now if count]
                mean = {name: sum(share * grads[name] for share, grads in parts) for name in w}
                w = moved(w, mean, 0.3)
            held, fired = [h for h in held if not any(h is n for n in now)], fired + 1
    return w


@ALL
@pytest.mark.parametrize("warm", [1, 4, 9])
def test_equals_a_plain_loop(order, warm):
    ran = ORDERS[order](warm_then_async.build(MODEL, (X, Y), lr=0.3, batch_size=10, warm=warm))
    assert_close(ran.tables["w"], loop(ran.events, warm))


@pytest.mark.parametrize("seed", range(3))
def test_nobody_reads_for_a_later_step_before_all_have_done_the_first_ones(seed):
    ran = at_random(warm_then_async.build(MODEL, (X, Y), batch_size=10, warm=6), seed)
    done = [0] * REPLICAS
    for kind, replica, clock, _ in ran.events:
        if kind == "read":
            assert min(done) >= min(clock, 6)
        done[replica] += kind == "deliver"
    leads = [max(0, clock - 6) for kind, _, clock, _ in ran.events if kind == "read"]
    assert max(leads) > 0


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_before_the_switch_it_is_ssgd_to_the_byte(replicas):
    warm = warm_then_async.build(MODEL, (X, Y), lr=0.3, batch_size=10, warm=8)
    plain = ssgd.build(MODEL, (X, Y), lr=0.3, batch_size=10)
    found, truth = (
        g.run(steps=8, replicas=replicas, executor="serial").tables["w"] for g in (warm, plain)
    )
    assert all(found[name].tobytes() == truth[name].tobytes() for name in truth)
