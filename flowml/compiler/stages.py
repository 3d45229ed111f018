"""The stages of the compiler, in order; each is a pure function and its result can be printed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from flowml.compiler.check import check
from flowml.compiler.fuse import fuse
from flowml.compiler.lower import lower
from flowml.compiler.place import Groups, place
from flowml.graph import LogicalGraph
from flowml.plan import Plan

Stage: TypeAlias = Literal["check", "place", "fuse", "lower", "emit"]
STAGES: tuple[Stage, ...] = ("check", "place", "fuse", "lower", "emit")


def compile_graph(
    graph: LogicalGraph,
    replicas: int,
    groups: Groups = None,
    *,
    hosts: Sequence[str] | None = None,
    blas_threads: int = 1,
) -> Plan:
    """Run check, place, fuse and lower; emit takes the plan from here.

    Raises
    ------
    GraphError, PlanError
        From the stage that refuses.
    """
    placed = place(check(graph), replicas, groups, hosts)
    return lower(fuse(placed), blas_threads=blas_threads)
