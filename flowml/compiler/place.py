"""Stage 2, place: how many instances each operator has, and which ranks make a group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeGuard

from flowml.actions import GLOBAL, REPLICA, Aggregate, Evaluate, Until
from flowml.errors import PlanError
from flowml.graph import LogicalGraph, Operator, coarser
from flowml.plan import Placement

Groups = str | int | Sequence[Sequence[int]] | None


@dataclass(frozen=True)
class Placed:
    """A checked graph with the number of replicas, their groups and a placement an operator."""

    graph: LogicalGraph
    replicas: int
    groups: tuple[tuple[int, ...], ...]
    placements: tuple[tuple[str, Placement], ...]


def place(
    graph: LogicalGraph, replicas: int, groups: Groups = None, hosts: Sequence[str] | None = None
) -> Placed:
    """Spread a checked graph over replicas.

    Parameters
    ----------
    replicas : int
        At least 1.
    groups : "host", int, sequence of sequences of ranks, or None
        "host" puts the ranks of one host together, an int makes so many groups of neighbours.
    hosts : sequence of str, optional
        Host of each rank; all on one host when left out.

    Raises
    ------
    PlanError
        If ``groups`` is not a partition of the ranks, or a named group has no meaning.
    """
    if isinstance(replicas, bool) or not isinstance(replicas, Integral) or replicas < 1:
        raise PlanError(
            "replicas",
            "must be an integer >= 1",
            repr(replicas),
            "One copy of the graph is the least that can run.",
        )
    placements = tuple((o.name, _placement(o)) for o in graph.operators)
    count = int(replicas)
    return Placed(graph, count, _partition(graph, count, groups, hosts), placements)


def _placement(operator: Operator) -> Placement:
    if isinstance(operator.action, Evaluate | Until):
        return "driver"
    if isinstance(operator.action, Aggregate):
        return "reduce"
    if operator.writes:
        return "table"
    return "replica" if operator.scope == REPLICA else "group"


def _partition(
    graph: LogicalGraph, replicas: int, groups: Groups, hosts: Sequence[str] | None
) -> tuple[tuple[int, ...], ...]:
    named = _grouping(graph)
    if groups is None:
        if named not in (None, "host"):
            raise PlanError(
                "groups",
                f"the graph names the group {named!r}, so the run must say "
                "which replicas belong together",
                "groups=None",
                "Pass groups=2, or groups=[[0, 1], [2, 3]].",
            )
        groups = "host"
    if groups == "host":
        return _by_host(replicas, hosts)
    if isinstance(groups, Integral) and not isinstance(groups, bool):
        return _neighbours(replicas, int(groups))
    if not _is_lists_of_ranks(groups):
        raise PlanError(
            "groups",
            'must be "host", a number or a list of lists of ranks',
            repr(groups),
            "For example groups=2, or groups=[[0, 1], [2, 3]].",
        )
    found = tuple(tuple(sorted(int(rank) for rank in ranks)) for ranks in groups)
    if sorted(r for ranks in found for r in ranks) != list(range(replicas)) or not all(found):
        raise PlanError(
            "groups",
            f"each rank from 0 to {replicas - 1} must be in exactly one group",
            repr([list(g) for g in found]),
            "List every rank once.",
        )
    return found


def _is_lists_of_ranks(groups: Any) -> TypeGuard[Sequence[Sequence[int]]]:
    return (
        isinstance(groups, Sequence)
        and not isinstance(groups, str)
        and all(
            isinstance(ranks, Sequence)
            and not isinstance(ranks, str)
            and all(isinstance(r, Integral) and not isinstance(r, bool) for r in ranks)
            for ranks in groups
        )
    )


def _grouping(graph: LogicalGraph) -> str | None:
    scopes = {o.scope for o in graph.operators} | {t.scope for t in graph.tables}
    return next((s for s in sorted(scopes) if coarser(s, REPLICA) and s != GLOBAL), None)


def _by_host(replicas: int, hosts: Sequence[str] | None) -> tuple[tuple[int, ...], ...]:
    if hosts is None:
        return (tuple(range(replicas)),)
    order = list(dict.fromkeys(hosts))
    return tuple(tuple(r for r in range(replicas) if hosts[r] == h) for h in order)


def _neighbours(replicas: int, count: int) -> tuple[tuple[int, ...], ...]:
    if not 1 <= count <= replicas:
        raise PlanError(
            "groups",
            f"between 1 and {replicas} groups for {replicas} replicas",
            repr(count),
            "A group needs at least one replica.",
        )
    size, rest = divmod(replicas, count)
    out, start = [], 0
    for number in range(count):
        stop = start + size + (number < rest)
        out.append(tuple(range(start, stop)))
        start = stop
    return tuple(out)
