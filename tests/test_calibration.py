"""graph.measure: the parts of a step, timed on the workers of a cluster while all are busy."""

import threading
import time

import numpy as np
import pytest

import flowml as fl
from flowml.calibration import calibrate
from flowml.errors import OperatorError
from flowml.runtime.attach import attached
from flowml.runtime.figures import Figures
from tests.conformance.catalogue import examples, from_file, softmax

STOPWATCH_SECONDS = 0.1
CLEAN_SECONDS = 10.0


def ssgd(**options):
    return from_file("ssgd", softmax(), examples(), **{"batch_size": 4, **options})


def timed(graph, client, replicas=2, cores=2, **options):
    """Return the measurements of a short calibration."""
    with attached(client, replicas) as found:
        there = found.workers()
        workers = [there[rank * len(there) // replicas] for rank in range(replicas)]
        return calibrate(
            graph.logical, client, workers, cores, seconds=STOPWATCH_SECONDS, **options
        )


def kept(client):
    """Return what is left on the workers of calibrations that are over."""

    def inside(dask_worker):
        plugin = dask_worker.plugins["flowml"]
        return [len(plugin.settings.runs), len(plugin._listeners), len(plugin._parts)]

    return list(client.run(inside).values())


def test_replicas_are_timed_side_by_side(client):
    found = timed(ssgd(), client)
    assert set(found.seconds) == {"load", "gradient", "mean", "update_w"}
    assert all(seconds > 0 for seconds in found.seconds.values())
    one, other = found.together
    assert one.cuts == other.cuts == tuple(range(len(one.cuts)))  # they met after each step
    assert len(one.meetings) == len(one.rows) == len(other.rows)
    assert one.examples == 4
    assert found.factor == 2  # a batch of all replicas, by one alone
    assert set(found.whole) == set(found.seconds)
    assert found.layouts["gradient", 0].nbytes == found.layouts["w", -1].nbytes
    assert found.replicas == 2


def test_the_host_is_asked_what_it_charges(client):
    found, usual = timed(ssgd(), client).figures, Figures()
    assert found.cores == 2
    for name in ("barrier_seconds", "lock_seconds", "shared_bytes_per_second"):
        assert getattr(found, name) > 0
        assert getattr(found, name) != getattr(usual, name)
    assert found.wake_seconds >= 0
    assert found.message_seconds == usual.message_seconds


def test_replicas_that_meet_seldom_are_timed_in_their_own_rhythm(client):
    graph = from_file("local_sgd", softmax(), examples(), batch_size=4, period=3)
    one, _ = timed(graph, client).together
    assert one.cuts == tuple(range(0, len(one.rows) + 1, 3))


def test_a_loose_graph_has_three_parts_and_meets_only_now_and_then(client):
    graph = from_file("ssp", softmax(), examples(), batch_size=4)
    found = timed(graph, client)
    assert set(found.seconds) == {"read", "compute", "deliver"}
    assert all(len(one.cuts) < len(one.rows) for one in found.together)


def test_payloads_come_from_the_codec(client):
    graph = from_file("top_k_ssgd", softmax(), examples(), batch_size=4, fraction=0.5)
    found = timed(graph, client).payloads
    assert found["gradient -> mean"] == (18 + 2) * 8  # of 36 and 3 numbers, each with its place


def test_several_replicas_of_a_worker_take_part_as_threads(client):
    found = timed(ssgd(), client, replicas=4)
    assert len(found.together) == 4
    assert len({len(one.rows) for one in found.together}) == 1
    assert found.factor == 4


def test_replicas_without_rows_only_keep_company(client):
    graph = from_file("ssgd", softmax(), tuple(part[:3] for part in examples()), batch_size=1)
    assert len(timed(graph, client, replicas=4).together) == 3


def test_a_load_of_the_whole_share_is_timed_alone_as_it_is(client):
    graph = from_file("batch_gradient", softmax(), examples())
    found = timed(graph, client)
    assert found.together[0].examples == 42  # of 83 rows
    assert found.factor == 2
    assert found.seconds_of("gradient", 2) >= found.whole["gradient"] > 0


def test_hosts_that_share_no_memory_are_timed_each_by_itself(client):
    found = timed(ssgd(), client, transport="rpc")
    assert len(found.together) == 2
    assert found.figures == Figures(cores=2)


def test_what_an_operator_raises_names_it_and_leaves_nothing_behind(client):
    def broken(params, batch):
        raise RuntimeError("spilt milk")

    w = fl.table("w", np.zeros(3))
    batch = fl.load((np.ones((16, 3)), np.ones(16)), batch_size=4)
    mean = fl.aggregate("mean", fl.gradient(broken, w, batch, name="broken"))
    graph = fl.Graph(fl.update(w, mean, fl.sgd(0.1)))
    with pytest.raises(OperatorError, match="spilt milk") as caught:
        timed(graph, client)
    assert caught.value.operator == "broken"
    assert timed(ssgd(), client).seconds  # the workers are free again
    pause, deadline = threading.Event(), time.monotonic() + CLEAN_SECONDS
    while any(map(any, kept(client))):  # workers are told by a message
        assert time.monotonic() < deadline
        pause.wait(0.05)


def test_a_graph_measures_on_the_current_client_and_explains_with_it(client):
    graph = ssgd()
    measured = graph.measure(2)
    assert len(measured.together) == 2
    explanation = graph.explain(2, measured=measured)
    assert explanation.timed == 2
    assert "timed: one replica" not in str(explanation)
    assert explanation.prediction.seconds > 0
    assert [point.replicas for point in explanation.curve] == [1, 2, 4, 8]


def test_what_was_measured_can_be_asked_of_another_machine(client):
    graph = ssgd()
    measured = graph.measure(2)
    near, far = (graph.explain(4, measured=measured.with_figures(cores=c)) for c in (2, 64))
    assert near.prediction.slowdown == 2
    assert far.prediction.slowdown == 1
    assert far.prediction.replica_seconds < near.prediction.replica_seconds
