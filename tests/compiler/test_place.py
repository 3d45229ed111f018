"""Which ranks make a group, and how operators are spread."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flowml as fl
from flowml.compiler.place import place
from flowml.errors import PlanError
from flowml.graph import LogicalGraph
from tests.compiler.declared import X, batch, grad, hierarchical, kmeans, local_sgd, ssgd, table


def racks() -> LogicalGraph:
    copy = table("copy", "rack")
    return fl.Graph(fl.update(copy, fl.map(grad, copy, batch()), fl.add())).logical


GRAPH = hierarchical().logical


def groups(*arguments: Any, **options: Any) -> tuple[tuple[int, ...], ...]:
    return place(GRAPH, *arguments, **options).groups


def test_one_host_is_one_group() -> None:
    assert groups(3) == ((0, 1, 2),)
    assert groups(3, "host") == ((0, 1, 2),)


def test_the_ranks_of_a_host_are_a_group_wherever_they_stand() -> None:
    assert groups(5, "host", ["b", "a", "b", "a", "c"]) == ((0, 2), (1, 3), (4,))
    assert groups(2, None, ["a", "b"]) == ((0,), (1,))


@pytest.mark.parametrize(
    ("replicas", "count", "found"),
    [
        (4, 1, ((0, 1, 2, 3),)),
        (4, 2, ((0, 1), (2, 3))),
        (5, 2, ((0, 1, 2), (3, 4))),
        (5, 3, ((0, 1), (2, 3), (4,))),
        (3, 3, ((0,), (1,), (2,))),
    ],
)
def test_a_number_of_groups_of_neighbours(replicas: int, count: int, found: Any) -> None:
    assert groups(replicas, count) == found
    assert groups(replicas, np.int64(count)) == found


@given(st.integers(1, 40), st.integers(1, 40))
def test_neighbours_are_a_partition_in_nearly_equal_parts(replicas: int, count: int) -> None:
    if count > replicas:
        with pytest.raises(PlanError, match="between 1 and"):
            groups(replicas, count)
        return
    found = groups(replicas, count)
    assert [rank for ranks in found for rank in ranks] == list(range(replicas))
    sizes = [len(ranks) for ranks in found]
    assert len(sizes) == count
    assert max(sizes) - min(sizes) <= 1


def test_lists_of_ranks_are_taken_as_given_each_in_order() -> None:
    assert groups(4, [[3, 0], [2, 1]]) == ((0, 3), (1, 2))
    assert groups(3, ((0,), range(1, 3))) == ((0,), (1, 2))


@pytest.mark.parametrize(
    ("given_groups", "says"),
    [
        ([[0, 1], [2]], "each rank from 0 to 3 must be in exactly one group, got [[0, 1], [2]]"),
        ([[0, 1], [1, 2, 3]], "must be in exactly one group"),
        ([[0, 1, 2, 3], []], "must be in exactly one group"),
        ([[0, 1], [2, 4]], "must be in exactly one group"),
        (0, "between 1 and 4 groups for 4 replicas, got 0"),
        (5, "between 1 and 4 groups for 4 replicas, got 5"),
        ("hosts", "must be \"host\", a number or a list of lists of ranks, got 'hosts'"),
        (True, 'must be "host", a number or a list of lists of ranks, got True'),
        (2.0, "a list of lists of ranks, got 2.0"),
        ([0, 1, 2, 3], "a list of lists of ranks, got [0, 1, 2, 3]"),
        (["01", "23"], "a list of lists of ranks"),
        ([[0, 1], [2.0, 3]], "a list of lists of ranks"),
    ],
)
def test_what_is_no_partition_is_refused(given_groups: Any, says: str) -> None:
    with pytest.raises(PlanError) as caught:
        groups(4, given_groups)
    assert str(caught.value).startswith("groups: ")
    assert says in str(caught.value)


def test_a_named_group_must_be_given_its_meaning() -> None:
    with pytest.raises(PlanError, match="the graph names the group 'rack'") as caught:
        place(racks(), 4)
    assert "groups=[[0, 1], [2, 3]]" in str(caught.value)
    assert place(racks(), 4, 2).groups == ((0, 1), (2, 3))
    assert place(racks(), 2, "host", ["a", "b"]).groups == ((0,), (1,))


@pytest.mark.parametrize("replicas", [0, -1, 1.0, "2", True, None])
def test_replicas_count_from_one(replicas: Any) -> None:
    with pytest.raises(PlanError, match="replicas: must be an integer >= 1, got") as caught:
        place(GRAPH, replicas)
    assert repr(replicas) in str(caught.value)


def test_the_placement_of_each_kind() -> None:
    w = table()
    mean = fl.aggregate("mean", fl.map(grad, w, batch(), name="grad"))
    scaled = fl.map(np.negative, mean, name="scaled")
    graph = fl.Graph(
        fl.update(w, scaled, fl.add()),
        fl.until(lambda w: False, w),
        fl.evaluate(lambda p, b: 0.0, w, X, name="test"),
    )
    assert dict(place(graph.logical, 2).placements) == {
        "load": "replica",
        "grad": "replica",
        "mean": "reduce",
        "scaled": "group",
        "update_w": "table",
        "until": "driver",
        "test": "driver",
    }


@pytest.mark.parametrize("make", [ssgd, local_sgd, hierarchical, kmeans])
def test_place_leaves_the_graph_alone(make: Any) -> None:
    graph = make().logical
    placed = place(graph, 3)
    assert placed.graph is graph
    assert placed == place(graph, 3)
    assert placed.replicas == 3
