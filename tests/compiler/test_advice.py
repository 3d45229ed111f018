"""The words of an explanation's verdict and advice, from given figures."""

import dask
import pytest

import flowml as fl
from flowml.compiler.explain import explain
from tests.compiler.test_prediction import MODEL, US, X, Y, given, loose, sgd, stale

pytestmark = pytest.mark.usefixtures("owners")


@pytest.fixture
def owners():
    """Let no replica keep tables for itself: two barriers a step."""
    with dask.config.set({"flowml.own-copies": "0 B"}):
        yield


def advice(graph, replicas, measured, **options):
    return explain(graph, replicas, probe=measured, **options).advice


def test_below_the_crossing_one_replica_is_said_to_be_faster_with_both_numbers():
    text = explain(sgd(), 2, probe=given(5 * US, barrier_seconds=10 * US)).verdict
    assert text == (
        "one replica is faster: a step takes 25 us on 2 replicas (their work 5 us, overhead 20 us) "
        "against 10 us on one for the same examples"
    )


def test_above_it_the_speedup_is_said_and_where_communication_takes_over():
    text = explain(sgd(), 4, probe=given(1e-3, barrier_seconds=10 * US)).verdict
    assert text == (
        "4 replicas are 3.87 times as fast: 1.03 ms on 4 replicas (their work 1 ms, overhead "
        "33.3 us) against 4 ms on one for the same examples. With the same total batch, "
        "communication dominates from 120 replicas on"
    )


def test_replicas_that_share_cores_are_told():
    text = explain(sgd(), 4, probe=given(1e-3, cores=2)).verdict
    assert "The 4 replicas share 2 cores, so their work is taken as 2 times as long" in text
    assert "share" not in explain(sgd(), 4, probe=given(1e-3)).verdict


def test_a_period_is_advised_where_communication_is_most_of_a_step():
    """100 us of work and 2 x 150 us of barriers: every fourth step, (100 + 75 + adding up) us."""
    measured = given(100 * US, whole=200 * US, barrier_seconds=150 * US)
    head, _ = advice(sgd(), 2, measured)
    assert head == (
        "communication is 75% of a step: .every(4) on gradient -> mean would give 2.1x, or batches "
        "4 times as large would give 2.3x"
    )


def test_nothing_is_advised_that_would_not_help():
    head, _ = advice(sgd(), 2, given(10e-3, barrier_seconds=10 * US))
    assert head == "communication is 0% of a step: less of it would give at most 1.00x"


def test_a_load_of_the_whole_share_has_no_larger_batch():
    head, _ = advice(sgd(batch_size=None), 2, given(100 * US, barrier_seconds=150 * US))
    assert ".every(4)" in head
    assert "batches" not in head


def test_an_edge_that_has_a_period_is_left_alone():
    head, _ = advice(sgd(period=4), 2, given(100 * US, whole=200 * US, barrier_seconds=150 * US))
    assert ".every" not in head


def test_between_hosts_a_codec_would_help():
    measured = given(100 * US, message_seconds=0.0, network_bytes_per_second=32e3)
    head, _ = advice(sgd(), 2, measured, hosts=["a", "b"])
    assert ".compress(float16) would give 1.9x" in head
    near, _ = advice(sgd(), 2, measured)
    assert "compress" not in near


def test_a_push_can_be_made_seldom_and_a_loose_sum_cannot():
    measured = loose(100 * US, deliver=100 * US)
    head, _ = advice(stale(combine=False), 2, measured)
    assert ".every(4) on gradient -> update_w would give" in head
    head, _ = advice(stale(), 2, measured)
    assert ".every" not in head


def test_the_best_number_of_replicas_is_said_with_its_bound():
    _, tail = advice(sgd(), 2, given(1e-3, cores=4, barrier_seconds=10 * US))
    assert tail == (
        "4 replicas would be 3.87 times as fast as one; most of their step is their own work"
    )
    _, tail = advice(sgd(), 4, given(1e-3, cores=4, barrier_seconds=10 * US))
    assert tail == (
        "no other number of replicas than 4 is faster here: most of a step of 4 is their own work"
    )
    _, tail = advice(sgd(), 2, given(5 * US, barrier_seconds=1e-3))
    assert tail == (
        "no other number of replicas than one is faster here: most of a step of 2 is barriers"
    )


def test_the_lock_is_named_where_it_binds():
    graph = sgd(lambda w: w.async_(), combine=False)
    found = explain(graph, 32, probe=loose(300 * US, deliver=100 * US))
    points = {point.replicas: point for point in found.curve}
    assert sorted(points) == [1, 2, 4, 8, 16, 32, 64]
    assert (points[1].bound, points[64].bound) == ("work", "lock")
    assert points[1].speedup == pytest.approx(1.0)
    assert "queueing for the lock of what they share" in found.advice[-1]


def test_the_curve_is_printed_with_its_bounds():
    text = str(explain(sgd(), 2, probe=given(1e-3, cores=4, barrier_seconds=10 * US)))
    rows = [line.split() for line in text.splitlines()]
    assert ["4", "1.03", "ms", "3.87", "work"] in rows
    assert ["8", "2.12", "ms", "3.77", "cores"] in rows


def test_numbers_that_groups_do_not_fit_are_left_out_of_the_curve():
    w = fl.table("w", MODEL.init())
    inside = fl.aggregate(
        "mean", fl.gradient(MODEL, w, fl.load((X, Y), batch_size=4)), within="host"
    )
    graph = fl.Graph(fl.update(w, fl.aggregate("mean", inside), fl.sgd(0.1))).logical
    found = explain(graph, 4, 4, probe=given(1e-3))
    assert [point.replicas for point in found.curve] == [4, 8, 16]


def test_one_replica_gets_no_advice():
    assert advice(sgd(), 1, given(1e-3)) == ()


def test_it_is_said_when_replicas_were_not_timed_together():
    graph = fl.Graph(
        fl.update(
            w := fl.table("w", MODEL.init()),
            fl.aggregate("mean", fl.gradient(MODEL, w, fl.load((X, Y), batch_size=4))),
            fl.sgd(0.1),
        )
    )
    assert "timed: one replica, alone. Replicas that are busy together are slower" in str(
        graph.explain(2)
    )
    assert "timed:" not in str(graph.explain(1))
