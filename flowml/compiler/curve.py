"""Speed-up over the number of replicas, and what limits it, from the costs that one probe found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flowml.compiler.layouts import known_layouts
from flowml.compiler.measured import Measured
from flowml.compiler.place import Groups
from flowml.compiler.predict import predict
from flowml.compiler.prediction import Prediction
from flowml.compiler.stages import compile_graph
from flowml.compiler.traffic import Hosts, Traffic
from flowml.errors import FlowmlError
from flowml.graph import LogicalGraph
from flowml.plan import Plan

MOST_REPLICAS = 64


@dataclass(frozen=True)
class CurvePoint:
    """A number of replicas on the same cores.

    Attributes
    ----------
    replicas : int
    seconds : float
        A step.
    speedup : float
        Against one replica on the same examples.
    bound : str
        What takes most of a step; see :class:`Prediction`.
    """

    replicas: int
    seconds: float
    speedup: float
    bound: str


def predict_plan(plan: Plan, hosts: Hosts, measured: Measured) -> Prediction:
    """Return the predicted step of a plan with all replicas on some hosts."""
    layouts = known_layouts(plan, measured.layouts)
    traffic = Traffic.of(plan, layouts, hosts, measured.payloads)
    return predict(traffic, measured)


def speedup_curve(
    graph: LogicalGraph,
    replicas: int,
    groups: Groups,
    hosts: Sequence[str] | None,
    measured: Measured,
) -> tuple[CurvePoint, ...]:
    """Return points at 1, 2, 4, ... replicas, up to four times as many as were asked for.

    Notes
    -----
    More replicas share the hosts as those that were asked for do. Numbers that the groups do not
    fit are left out.
    """
    found = []
    for count in sorted({replicas, *_doubled(max(8, 4 * replicas))}):
        names = None if hosts is None else [hosts[r * replicas // count] for r in range(count)]
        try:
            plan = compile_graph(graph, count, groups, hosts=names)
        except FlowmlError:
            continue
        predicted = predict_plan(plan, by_host(count, names), measured)
        found.append(CurvePoint(count, predicted.seconds, predicted.speedup, predicted.bound))
    return tuple(found)


def _doubled(limit: int) -> Iterator[int]:
    count = 1
    while count <= min(limit, MOST_REPLICAS):
        yield count
        count *= 2


def by_host(replicas: int, hosts: Sequence[str] | None) -> Hosts:
    """Return the ranks of each host; all on one when it is not said."""
    names = hosts or ["this host"] * replicas
    return tuple(
        tuple(rank for rank in range(replicas) if names[rank] == host)
        for host in dict.fromkeys(names)
    )
