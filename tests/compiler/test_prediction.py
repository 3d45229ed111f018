"""The predicted step, from given figures, against sums that can be done by hand."""

import dask
import numpy as np
import pytest

import flowml as fl
from flowml.compiler.curve import predict_plan
from flowml.compiler.explain import explain
from flowml.compiler.measured import Measured
from flowml.compiler.own_pace import queueing
from flowml.compiler.spread import held_back, spread
from flowml.compiler.stages import compile_graph
from flowml.runtime.figures import Figures
from flowml.runtime.stopwatch import Timings

X = np.random.default_rng(0).random((64, 3), "float32")
Y = np.array([0, 1] * 32)
MODEL = fl.models.softmax(3, 2)
US = 1e-6


def sgd(read=lambda w: w, batch_size=4, combine=True, period=None):
    w = fl.table("w", MODEL.init())
    batch = fl.load((X, Y), batch_size=batch_size, name="batch")
    grads = fl.gradient(MODEL, read(w), batch)
    grads = grads if period is None else grads.every(period)
    made = fl.aggregate("mean", grads, name="mean") if combine else grads
    return fl.Graph(fl.update(w, made, fl.sgd(0.1)), name="sgd").logical


def given(gradient, cores=8, whole=None, factor=2.0, together=(), **figures):
    """Return measurements in which only gradients and the figures named cost anything."""
    nothing = {
        "barrier_seconds": 0.0,
        "wake_seconds": 0.0,
        "loop_seconds": 0.0,
        "shared_bytes_per_second": 1e15,
    }
    seconds = {"batch": 0.0, "gradient": gradient, "mean": 0.0, "update_w": 0.0}
    return Measured(
        seconds,
        {} if whole is None else {**seconds, "gradient": whole},
        factor,
        together,
        figures=Figures(**{**nothing, **figures}, cores=cores),
    )


def loose(compute, read=0.0, deliver=0.0, cores=64, together=(), **figures):
    nothing = {"wake_seconds": 0.0, "loop_seconds": 0.0, "lock_seconds": 0.0}
    return Measured(
        {"read": read, "compute": compute, "deliver": deliver},
        together=together,
        figures=Figures(**{**nothing, **figures}, cores=cores),
    )


def predicted(graph, replicas, measured, hosts=None):
    return explain(graph, replicas, probe=measured, hosts=hosts).prediction


@pytest.fixture
def owners():
    """Let no replica keep tables for itself: two barriers a step."""
    with dask.config.set({"flowml.own-copies": "0 B"}):
        yield


@pytest.mark.usefixtures("owners")
def test_a_step_is_the_work_and_two_barriers():
    found = predicted(sgd(), 2, given(100 * US, barrier_seconds=10 * US))
    assert found.replica_seconds == pytest.approx(100 * US)
    assert found.barrier_seconds == pytest.approx(20 * US)
    assert found.seconds == pytest.approx(120 * US)
    assert found.one_replica_seconds == pytest.approx(200 * US)
    assert found.speedup == pytest.approx(200 / 120)
    assert found.bound == "work"


@pytest.mark.parametrize(("gradient", "one_is_faster"), [(19 * US, True), (21 * US, False)])
@pytest.mark.usefixtures("owners")
def test_one_replica_is_faster_below_the_crossing(gradient, one_is_faster):
    """Two replicas save a gradient and pay two barriers: they cross where those are equal."""
    found = explain(sgd(), 2, probe=given(gradient, barrier_seconds=10 * US))
    assert found.prediction.one_is_faster == one_is_faster
    assert found.verdict.startswith("one replica is faster") == one_is_faster
    assert ("one replica is faster" in str(found)) == one_is_faster


def test_a_larger_batch_measured_as_one_counts_for_one_replica():
    found = predicted(sgd(), 2, given(1e-3, whole=1.2e-3))
    assert found.one_replica_seconds == pytest.approx(1.2e-3)
    assert predicted(sgd(), 4, given(1e-3, whole=1.2e-3)).one_replica_seconds == pytest.approx(
        1.6e-3
    )


def test_more_replicas_than_cores_are_slower():
    wide, narrow = (predicted(sgd(), 4, given(1e-3, cores=c)) for c in (4, 2))
    assert narrow.replica_seconds == 2 * wide.replica_seconds
    assert (wide.bound, narrow.bound) == ("work", "cores")
    assert narrow.slowdown == 2


def test_replicas_that_were_timed_on_shared_cores_are_not_slowed_twice():
    crowd = tuple(timed([1e-3]) for _ in range(4))
    found = predicted(sgd(), 4, given(2e-3, cores=2, together=crowd))
    assert found.replica_seconds == pytest.approx(2e-3)
    assert predicted(sgd(), 8, given(2e-3, cores=2, together=crowd)).replica_seconds == 4e-3


def test_a_load_of_the_whole_share_gives_more_replicas_less_work():
    def step(replicas):
        return predicted(sgd(batch_size=None), replicas, probe).replica_seconds

    probe = Measured({"gradient": 1e-3}, replicas=2, figures=Figures(cores=8, loop_seconds=0.0))
    assert (step(1), step(2), step(4)) == (2e-3, 1e-3, 0.5e-3)
    whole = predicted(sgd(batch_size=None), 4, probe).one_replica_seconds
    assert whole == pytest.approx(2e-3)


@pytest.mark.usefixtures("owners")
def test_a_period_thins_barriers_and_is_paid_for_by_adding_up():
    every, seldom = (
        predicted(sgd(period=p), 2, given(1e-3, barrier_seconds=100 * US)) for p in (None, 4)
    )
    assert seldom.barrier_seconds == pytest.approx(every.barrier_seconds / 4)
    assert 0 < seldom.replica_seconds - every.replica_seconds < 20 * US


@pytest.mark.usefixtures("owners")
def test_hosts_pay_for_messages():
    probe = given(1e-3, message_seconds=1e-3, network_bytes_per_second=32e3)
    near, far = predicted(sgd(), 2, probe), predicted(sgd(), 2, probe, hosts=["a", "b"])
    # Two parcels of 32 bytes and a header of 16, at 32 kB/s, and one round.
    assert far.barrier_seconds - near.barrier_seconds == pytest.approx(1e-3 + 3e-3)


def test_bytes_are_read_at_the_rate_of_shared_memory():
    found = predicted(sgd(), 4, given(1e-3, shared_bytes_per_second=32e3))
    assert found.transfer_seconds == pytest.approx(4 * 1e-3)  # each reads four gradients
    assert found.bound == "bytes"


# -- waiting for the slowest ---------------------------------------------------------------------


def timed(seconds, cuts=None, meetings=None, part="gradient"):
    rows = np.array(seconds, float).reshape(-1, 1)
    cuts = tuple(range(len(rows) + 1)) if cuts is None else cuts
    met = np.zeros(len(cuts) - 1) if meetings is None else np.array(meetings, float)
    return Timings((part,), rows, cuts, met)


def test_who_meets_after_each_step_waits_for_the_slower_one_each_time():
    pair = [timed([1, 3, 1, 3]), timed([3, 1, 3, 1])]
    assert spread(pair, {"gradient": 1.0}, 2, steps=1).slowest == pytest.approx(1.5)


def test_over_several_steps_differences_even_out():
    pair = [timed([1, 3, 1, 3], cuts=(0, 2, 4)), timed([3, 1, 3, 1], cuts=(0, 2, 4))]
    assert spread(pair, {"gradient": 1.0}, 2, steps=2).slowest == pytest.approx(1.0)


def test_rounds_that_were_shorter_are_joined():
    pair = [timed([1, 3, 1, 3]), timed([3, 1, 3, 1])]
    assert spread(pair, {"gradient": 1.0}, 2, steps=2).slowest == pytest.approx(1.0)
    assert spread(pair, {"gradient": 1.0}, 2, steps=100).slowest == pytest.approx(1.0)


def test_replicas_may_have_made_other_numbers_of_steps_in_a_round():
    pair = [timed([1, 1, 1, 1, 1], cuts=(0, 4, 5)), timed([2, 2], cuts=(0, 1, 2))]
    for steps in (1, 2, 3, 4, 8):
        assert spread(pair, {"gradient": 1.0}, 2, steps).slowest == pytest.approx(4 / 3)


def test_a_slow_core_is_waited_for_however_seldom_replicas_meet():
    pair = [timed([1] * 8), timed([3] * 8)]
    for steps in (1, 4, np.inf):
        assert spread(pair, {"gradient": 1.0}, 2, steps).slowest == pytest.approx(1.5)


def test_more_replicas_than_were_timed_have_a_slower_slowest():
    rng = np.random.default_rng(0)
    pair = [timed(rng.exponential(1, 2000)) for _ in range(2)]
    two, eight = (spread(pair, {"gradient": 1.0}, k, steps=1).slowest for k in (2, 8))
    assert two == pytest.approx(1.5, rel=0.1)  # of the larger of two exponential times
    assert eight == pytest.approx(sum(1 / n for n in range(1, 9)), rel=0.1)


def test_parts_that_do_not_fire_do_not_differ():
    pair = [timed([1, 3], part="other"), timed([3, 1], part="other")]
    assert spread(pair, {"gradient": 1.0}, 2, steps=1).slowest == 1.0


def test_a_meeting_is_what_is_left_of_the_rounds():
    pair = [timed([1, 3], meetings=[2.5, 0.5]), timed([3, 1], meetings=[0.5, 2.5])]
    assert spread(pair, {"gradient": 1.0}, 2, steps=1).meeting == pytest.approx(0.5)
    longer = [timed([1, 3], cuts=(0, 2), meetings=[1.0])] * 2
    assert spread(longer, {"gradient": 1.0}, 2, steps=1).meeting is None


def test_waiting_and_the_meeting_are_parts_of_the_step():
    pair = (
        timed([1e-3, 3e-3], meetings=[2.5e-3, 0.5e-3]),
        timed([3e-3, 1e-3], meetings=[0.5e-3, 2.5e-3]),
    )
    found = predicted(sgd(), 2, given(2e-3, together=pair, barrier_seconds=9.0))
    assert found.waiting_seconds == pytest.approx(1e-3)
    assert found.barrier_seconds == pytest.approx(0.5e-3)  # as it was timed
    assert found.seconds == pytest.approx(3.5e-3)


# -- being held back ------------------------------------------------------------------------------


def test_without_slack_it_is_waiting_for_the_slowest_of_each_step():
    pair = [timed([1, 3, 1, 3]), timed([3, 1, 3, 1])]
    assert held_back(pair, 2, slack=0) == pytest.approx(1.5, rel=1e-3)


def test_slack_evens_out_what_differs_from_step_to_step():
    """One step ahead is enough for steps that take turns, and the last one is waited for."""
    pair = [timed([1, 3] * 50), timed([3, 1] * 50)]
    assert held_back(pair, 2, slack=1) == pytest.approx(1.0, rel=1e-2)


def test_a_stop_is_waited_for_as_far_as_the_slack_does_not_reach():
    """Each stops once for 10 s, at other times: with 4 steps of slack the other one loses 6."""
    one, other = np.ones(40), np.ones(40)
    one[10] += 10
    other[30] += 10
    spent = 40 + 10 + 10
    for slack, saved in ((0, 0), (4, 4), (np.inf, 10)):
        ratio = held_back([timed(one), timed(other)], 2, slack)
        assert ratio == pytest.approx((spent - saved) / 50, rel=2e-3)


def test_a_slow_core_holds_all_back_whatever_the_slack():
    pair = [timed([1] * 200), timed([3] * 200)]
    for slack in (0, 4, np.inf):
        assert held_back(pair, 2, slack) == pytest.approx(1.5, rel=0.05)


def test_who_waits_long_looks_seldom():
    """A wait of 1 ms is seen at its next look: after 100 us, and sleeps of 50, 100, 200, ... us."""
    pair = [timed([2e-3, 1e-3] * 100), timed([1e-3, 2e-3] * 100)]
    slept = 100e-6 + (50 + 100 + 200 + 400 + 500) * 1e-6
    # Each step one is 1 ms late, and the other, who slept, begins 0.25 ms after it.
    assert held_back(pair, 2, slack=0) > 2e-3 / 1.5e-3
    assert held_back(pair, 2, slack=0) <= (1e-3 + slept) / 1.5e-3


# -- replicas at their own pace ------------------------------------------------------------------


def stale(s=4, **options):
    return sgd(lambda w: w.stale(s), **options)


def test_alone_a_loose_step_is_its_three_parts():
    found = predicted(stale(), 1, loose(100 * US, read=10 * US, deliver=20 * US))
    assert found.seconds == pytest.approx(130 * US)


def test_replicas_queue_for_the_lock():
    """Z = 300, S = 100 us: a second replica finds the lock taken a quarter of the time."""
    push = stale(combine=False)
    found = predicted(push, 2, loose(300 * US, read=40 * US, deliver=60 * US))
    assert found.update_seconds == pytest.approx(100 * US)
    assert found.lock_seconds == pytest.approx(25 * US)
    assert found.seconds == pytest.approx(425 * US)


def test_replicas_on_other_hosts_ask_for_the_tables():
    push = stale(combine=False)
    measured = loose(300 * US, message_seconds=1e-3, network_bytes_per_second=32e3)
    near = predicted(push, 4, measured)
    far = predicted(push, 4, measured, hosts=["a", "a", "b", "b"])
    # One round trip a step: a gradient there and a table back, 32 bytes each.
    assert near.barrier_seconds == 0
    assert far.barrier_seconds == pytest.approx(1e-3 + 2e-3)
    found = explain(push, 4, probe=measured, hosts=["a", "a", "b", "b"]).edges
    sent = {edge.edge: (edge.messages, edge.message_bytes) for edge in found if edge.crosses}
    assert sent == {"w -> gradient": (4, 2 * 32), "gradient -> update_w": (0, 2 * 32)}


def test_many_replicas_are_bound_by_the_lock():
    push = sgd(lambda w: w.async_(), combine=False)
    found = predicted(push, 64, loose(300 * US, deliver=100 * US))
    assert found.bound == "lock"
    assert found.seconds == pytest.approx(64 * 100 * US, rel=1e-3)


def test_what_a_sum_sets_off_is_shared_by_all_whom_it_sums():
    graph, measured = stale(), loose(1e-3, deliver=100 * US, shared_bytes_per_second=1e15)
    push = predicted(stale(combine=False), 4, measured)
    found = predicted(graph, 4, measured)
    assert push.update_seconds == pytest.approx(100 * US)
    assert found.update_seconds == pytest.approx((15 + 85 / 4) * US)  # putting it there is not


def test_under_sync_promises_all_come_for_the_lock_at_once():
    w = fl.table("w", MODEL.init())
    grads = fl.gradient(MODEL, w, fl.load((X, Y), batch_size=4)).compress(fl.codecs.float16())
    graph = fl.Graph(fl.update(w, grads, fl.sgd(0.1))).logical
    measured = loose(300 * US, read=40 * US, deliver=40 * US)
    found = predicted(graph, 2, measured)
    assert found.lock_seconds == pytest.approx(found.update_seconds)
    assert found.seconds == pytest.approx(300 * US + 2 * found.update_seconds)


@pytest.mark.parametrize("replicas", [1, 2, 7])
def test_queueing_keeps_between_its_bounds(replicas):
    """A turn is never shorter than without company, nor than the lock needs for all."""
    for think, serve in ((1.0, 0.0), (0.0, 1.0), (2.0, 1.0), (0.5, 3.0)):
        turn = queueing(think, serve, replicas)
        assert max(think + serve, replicas * serve) <= turn <= think + replicas * serve


def test_predicting_a_plan_needs_no_explanation():
    plan = compile_graph(sgd(), 2)
    measured = given(1e-3)
    assert predict_plan(plan, ((0, 1),), measured) == predicted(sgd(), 2, measured)
