"""Which plans give each rank its own copy of the tables."""

from __future__ import annotations

import pytest

import flowml as fl
from flowml.cluster_run import probe_here
from flowml.compiler.stages import compile_graph
from flowml.plan import Firing, Plan
from flowml.run import Graph
from flowml.runtime.feeding import loads, local_feed, open_stream
from flowml.runtime.outcome import Order
from flowml.runtime.own_copies import with_own_copies
from flowml.runtime.program import Programs
from flowml.runtime.threads import thread_ranks
from tests.conformance.catalogue import CATALOGUE

ROOMY = 1 << 20


def planned(graph: Graph, replicas: int = 2, domains: int = 1, limit: int = ROOMY) -> Plan:
    plan = compile_graph(graph.logical, replicas, None)
    return with_own_copies(plan, probe_here(plan, Order(1, None)), domains, limit)


def test_synchronous_sgd_meets_once_a_step() -> None:
    plan = planned(CATALOGUE["ssgd"]())
    assert plan.own_copies
    assert Firing(plan).meeting(0) == Firing(plan).meeting(1) == frozenset({0})
    assert not any(o.sliced for o in plan.operators)


@pytest.mark.parametrize(
    ("replicas", "domains", "limit"), [(1, 1, ROOMY), (2, 2, ROOMY), (2, 1, 100), (2, 1, 0)]
)
def test_alone_between_hosts_and_for_large_tables_owners_compute(
    replicas: int, domains: int, limit: int
) -> None:
    assert not planned(CATALOGUE["ssgd"](), replicas, domains, limit).own_copies


@pytest.mark.parametrize("name", ["local_sgd", "kmeans", "hierarchical"])
def test_periods_ends_and_groups_need_owners(name: str) -> None:
    graph = CATALOGUE[name]()
    plan = compile_graph(graph.logical, 4, 2)
    assert with_own_copies(plan, probe_here(plan, Order(1, None)), 1, ROOMY) == plan
    assert isinstance(graph, fl.Graph)


def test_what_a_slow_rank_still_reads_is_not_written_by_a_fast_one() -> None:
    """Rank 0 is a step ahead, as far as it can be, before rank 1 reads the gradients of step 0."""
    plan, order = planned(CATALOGUE["momentum"]()), Order(2, None)
    found = [local_feed(o, 2, 0) for o in loads(plan)]
    streams = [{f.name: open_stream(f, r, parts[r]) for f, parts in found} for r in range(2)]
    ranks = thread_ranks(plan, probe_here(plan, order), order, streams)
    programs = [Programs(rank) for rank in ranks]

    def phase(rank: int, step: int, number: int) -> None:
        program = programs[rank].of(step)
        for act in program.phases[number].acts:
            act(step)
        if number == 1:
            for table, writes in program.commits:
                ranks[rank].tables[table].commit(writes)

    for rank, step, number in [
        (0, 0, 0), (1, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 1), (1, 1, 0), (0, 1, 1), (1, 1, 1),
    ]:  # fmt: skip
        phase(rank, step, number)
    truth = CATALOGUE["momentum"]().run(steps=2, replicas=2, executor="serial").tables["w"]
    for rank in ranks:
        table = rank.tables["w"].copy()
        assert all(table[k].tobytes() == truth[k].tobytes() for k in truth)
