"""Which plans give each rank its own copy of the tables."""

from __future__ import annotations

import pytest

import flowml as fl
from flowml.cluster_run import probe_here
from flowml.compiler.stages import compile_graph
from flowml.plan import Firing, Plan
from flowml.run import Graph
from flowml.runtime.outcome import Order
from flowml.runtime.own_copies import with_own_copies
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
