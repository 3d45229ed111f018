"""Predicted bytes are those that the programs of the ranks move, edge by edge."""

import dask
import numpy as np
import pytest

import flowml as fl
from flowml.cluster_run import probe_here
from flowml.compiler.gauge import measure
from flowml.compiler.layouts import known_layouts
from flowml.compiler.loose_traffic import LooseTraffic
from flowml.compiler.stages import compile_graph
from flowml.compiler.traffic import Traffic
from flowml.runtime.feeding import OneBatch, first_batch, loads
from flowml.runtime.moved import Moved
from flowml.runtime.outcome import Order
from flowml.runtime.program import Programs
from flowml.runtime.threads import thread_ranks
from tests.conformance.catalogue import (
    CATALOGUE,
    COMPRESSED,
    KEYED,
    LOOSE,
    examples,
    from_file,
    softmax,
)

ORDER = Order(1, None)


def traffic_of(graph, replicas):
    plan = compile_graph(graph.logical, replicas, 2 if replicas > 1 else 1)
    layouts = known_layouts(plan, probe_here(plan, ORDER))
    return Traffic.of(plan, layouts, (tuple(range(replicas)),), {})


def counted(traffic):
    """Return what all ranks move in the steps that are averaged, from their programs."""
    plan, found = traffic.placed, Moved()
    streams = {o.name: OneBatch(*first_batch(o, plan.replicas, 0)) for o in loads(plan)}
    ranks = thread_ranks(plan, traffic.layouts, ORDER, [streams] * plan.replicas)
    for rank in ranks:
        found.add(Programs(rank).moved(traffic.steps.start, traffic.steps.stop))
    return found


def inputs(traffic):
    return [(o.name, number) for o in traffic.plan.steps for number in range(len(o.inputs))]


@pytest.mark.parametrize("own_copies", ["128 KiB", "0 B"])
@pytest.mark.parametrize("replicas", [1, 2, 5])
@pytest.mark.parametrize("name", CATALOGUE)
def test_each_edge_carries_what_is_predicted(name, replicas, own_copies):
    with dask.config.set({"flowml.own-copies": own_copies}):
        traffic = traffic_of(CATALOGUE[name](), replicas)
        moved, steps = counted(traffic), len(traffic.steps)
    written, read = {}, {}
    for port in inputs(traffic):
        edge = traffic.edge(*port, "", traffic.hosts)
        written[edge.edge] = written.get(edge.edge, 0) + steps * edge.written_bytes
        read[edge.edge] = read.get(edge.edge, 0) + steps * edge.read_bytes
    assert {e: n for e, n in written.items() if n} == pytest.approx(dict(moved.written), rel=1e-9)
    assert {e: n for e, n in read.items() if n} == pytest.approx(dict(moved.read), rel=1e-9)


STEPS = 60
"""A multiple of all periods of LOOSE."""
FULL_BATCHES = 80
"""Rows of which 2 and 5 replicas have a batch in every step: without one, nothing is delivered."""

OF_ONE_SIZE = sorted({*LOOSE, *COMPRESSED} - set(KEYED))
"""Those whose values are as large in each step: how many rows a batch names depends on it."""


@pytest.mark.parametrize("replicas", [2, 5])
@pytest.mark.parametrize("name", OF_ONE_SIZE)
def test_a_loose_step_reads_and_delivers_what_is_predicted(name, replicas):
    X, y = examples()
    rows = X[:FULL_BATCHES], y[:FULL_BATCHES]
    options = LOOSE[name][0] if name in LOOSE else {}
    graph = from_file(name, softmax(), rows, batch_size=8, lr=0.1, **options)
    run = graph.run(steps=STEPS, replicas=replicas, executor="serial", record=True)
    plan = run.outcome.plan
    traffic = Traffic.of(
        plan,
        known_layouts(plan, probe_here(plan, ORDER)),
        (tuple(range(replicas)),),
        measure(graph.logical, replicas).payloads if name in COMPRESSED else {},
    )
    moving = LooseTraffic.of(traffic)
    edges = [moving.edge(*port, "", traffic.hosts) for port in inputs(traffic)]
    predicted = {
        "written": STEPS * sum(edge.written_bytes for edge in edges),
        "read": STEPS * sum(edge.read_bytes for edge in edges),
    }
    moved = run.moved
    assert predicted["written"] == pytest.approx(sum(moved.written.values()), rel=0.01)
    assert predicted["read"] == pytest.approx(sum(moved.read.values()), rel=0.01)
    assert moved.messages == 0


def test_one_replica_of_a_group_receives_for_all_of_it():
    X, y = examples()
    rows = X[:FULL_BATCHES], y[:FULL_BATCHES]
    graph = from_file("hybrid", softmax(), rows, batch_size=8, lr=0.1)
    run = graph.run(steps=STEPS, replicas=5, groups=2, executor="serial", record=True)
    plan = run.outcome.plan
    layouts = known_layouts(plan, probe_here(plan, ORDER))
    traffic = Traffic.of(plan, layouts, (tuple(range(5)),), {})
    edges = [LooseTraffic.of(traffic).edge(*port, "", traffic.hosts) for port in inputs(traffic)]
    nbytes = layouts["w", -1].nbytes
    assert sum(edge.read_bytes for edge in edges) == 2 * nbytes
    assert sum(edge.written_bytes for edge in edges) == 2 * nbytes
    assert sum(run.moved.read.values()) == sum(run.moved.written.values()) == STEPS * 2 * nbytes


def test_a_period_of_the_push_alone_leaves_reads_without_news():
    graph = pushed_every(4)
    traffic = traffic_of(graph, 2)
    moving = LooseTraffic.of(traffic)
    nbytes = traffic.layouts["w", -1].nbytes
    read = moving.edge("gradient", 0, "", traffic.hosts)
    # Each of two replicas sees the pushes of both, at other moments: 1 - (1 - 1/4)**2 of its reads.
    assert read.read_bytes == pytest.approx(2 * nbytes * 7 / 16)
    assert moving.edge("update_w", 0, "", traffic.hosts).written_bytes == 2 * nbytes / 4
    assert moving.deliver_rate() == 1 / 4


def test_rows_and_filters_are_as_large_as_they_were_in_the_measurement():
    graph = rows_by_key()
    run = graph.run(steps=STEPS, replicas=2, executor="serial", record=True)
    plan = run.outcome.plan
    payloads = measure(graph.logical, 2).payloads
    traffic = Traffic.of(plan, known_layouts(plan, {}), ((0, 1),), payloads)
    moving = LooseTraffic.of(traffic)
    edges = [moving.edge(*port, "", traffic.hosts) for port in inputs(traffic)]
    read = {edge.edge: STEPS * edge.read_bytes for edge in edges if edge.read_bytes}
    written = {edge.edge: STEPS * edge.written_bytes for edge in edges if edge.written_bytes}
    assert read == {"s -> rows": 2 * STEPS * 8 * (3 * 4 + 8)}  # eight rows and their keys
    assert read == pytest.approx(dict(run.moved.read))
    assert written == pytest.approx(dict(run.moved.written))


def rows_by_key():
    """Return a graph in which each batch names eight rows of a table, no two of them equal."""
    s = fl.sparse_table("s", 3)
    batch = fl.load((np.arange(80), np.ones(80)), batch_size=8)
    ids = fl.map(lambda b: b[0], batch, name="ids")
    rows = fl.map(lambda r: -r, s.async_().at(ids), name="rows")
    return fl.Graph(fl.update(s.at(ids), rows, fl.sgd(0.1)))


def pushed_every(period):
    model = softmax()
    w = fl.table("w", model.init(seed=0))
    grads = fl.gradient(model, w.async_(), fl.load(examples(), batch_size=8))
    return fl.Graph(fl.update(w, grads.every(period, keep="sum"), fl.sgd(0.1)))
