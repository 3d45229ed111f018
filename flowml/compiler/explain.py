"""What EXPLAIN is to a database: the plan of a graph, what it moves, and how long a step takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flowml.actions import Aggregate, Evaluate
from flowml.compiler.advice import advice, verdict
from flowml.compiler.check import check
from flowml.compiler.curve import by_host, speedup_curve
from flowml.compiler.explained import Explanation
from flowml.compiler.fuse import Fused, fuse
from flowml.compiler.layouts import known_layouts
from flowml.compiler.loose_traffic import LooseTraffic
from flowml.compiler.lower import lower
from flowml.compiler.measured import Measured
from flowml.compiler.memory import memory_of
from flowml.compiler.place import Groups, Placed, place
from flowml.compiler.predict import predict
from flowml.compiler.promises import SYNC, describe, resolve
from flowml.compiler.stages import STAGES, Stage
from flowml.compiler.traffic import EdgeTraffic, Traffic
from flowml.drawing.text import counted
from flowml.errors import FlowmlError
from flowml.graph import LogicalGraph
from flowml.plan import Plan
from flowml.reductions import Tree
from flowml.runtime.loose_plan import is_loose
from flowml.runtime.notes import notes

REFUSED = "it can be declared and drawn, but does not run in this release"


def explain(
    graph: LogicalGraph,
    replicas: int,
    groups: Groups = None,
    *,
    probe: Measured | None,
    hosts: Sequence[str] | None = None,
) -> Explanation:
    """Explain how a graph would run.

    Parameters
    ----------
    replicas : int
    groups : "host", int, sequence of sequences of ranks, or None
    probe : Measured or None
        From :func:`flowml.compiler.gauge.measure`; without it there is no prediction, and the
        size of what a map makes is unknown.
    hosts : sequence of str, optional
        Host of each rank; all on one when left out.

    Raises
    ------
    GraphError, PlanError
        If the graph or the groups cannot mean anything. A graph that means something and does
        not run yet is explained as far as it goes.
    """
    checked = check(graph)
    placed = place(checked, replicas, groups, hosts)
    fused = fuse(placed)
    try:
        plan = lower(fused)
    except FlowmlError as refusal:  # it cannot run yet: explained as far as it goes
        stages = _stages(placed, fused, None, None, _refusal(refusal))
        return _asked(checked, fused, hosts, stages, REFUSED)
    traffic = Traffic.of(
        plan,
        known_layouts(plan, probe.layouts if probe else {}),
        by_host(replicas, hosts),
        probe.payloads if probe else {},
    )
    prediction = predict(traffic, probe) if probe else None
    curve = speedup_curve(checked, replicas, groups, hosts, probe) if probe else ()
    stages = _stages(placed, fused, plan, traffic.barriers(), "")
    return replace(
        _asked(checked, fused, hosts, stages, verdict(prediction, probe)),
        trees=_trees(plan),
        edges=_edges(checked, traffic),
        barriers=traffic.barriers(),
        memory=memory_of(traffic),
        prediction=prediction,
        timed=len(probe.together) if probe else 0,
        notes=notes(plan),
        curve=curve,
        advice=advice(traffic, probe, prediction, curve) if probe and prediction else (),
    )


def _asked(
    graph: LogicalGraph,
    fused: Fused,
    hosts: Sequence[str] | None,
    stages: tuple[tuple[Stage, str], ...],
    conclusion: str,
) -> Explanation:
    """Return what can be said of a graph that may not run."""
    placed = fused.placed
    taken = tuple(
        (f"{port.source} -> {operator.name}", describe(promise))
        for (name, number), promise in resolve(graph).items()
        for operator in (graph.operator(name),)
        for port in (operator.inputs[number],)
        if port.edge.promise is None and not port.edge.until
    )
    return Explanation(
        graph.name,
        placed.replicas,
        placed.groups,
        by_host(placed.replicas, hosts),
        stages,
        taken,
        _loops(fused),
        placed.placements,
        conclusion,
    )


def _refusal(error: FlowmlError) -> str:
    several = getattr(error, "errors", (error,))
    first = f"{len(several)} mistakes, the first: " if len(several) > 1 else ""
    return f"{first}{several[0]}"


def _loops(fused: Fused) -> tuple[tuple[str, ...], ...]:
    """Return the fused groups of a step; evaluations stand beside the steps."""
    graph = fused.placed.graph
    return tuple(
        tuple(n for n in loop if not isinstance(graph.operator(n).action, Evaluate))
        for loop in fused.loops()
    )


def _edges(graph: LogicalGraph, traffic: Traffic) -> tuple[EdgeTraffic, ...]:
    """Return what each edge of a step carries; over two halves where there is only one host."""
    replicas, hosts = traffic.plan.replicas, traffic.hosts
    if len(hosts) == 1 and replicas > 1:
        half = -(-replicas // 2)
        hosts = (tuple(range(half)), tuple(range(half, replicas)))
    promises = resolve(graph)
    inputs = [
        (o.name, number, describe(promises.get((o.name, number), SYNC)))
        for o in traffic.plan.steps
        for number in range(len(o.inputs))
    ]
    if is_loose(traffic.plan):
        loose = LooseTraffic.of(traffic)
        return tuple(loose.edge(*port, hosts) for port in inputs)
    return tuple(traffic.edge(*port, hosts) for port in inputs)


def _trees(plan: Plan) -> tuple[tuple[str, Tree], ...]:
    found = []
    for operator in plan.steps:
        if isinstance(operator.action, Aggregate):
            count = plan.instances(operator.scope)
            for instance in range(count):
                name = operator.name if count == 1 else f"{operator.name}[{instance}]"
                found.append((name, plan.tree(operator, instance)))
    return tuple(found)


def _stages(
    placed: Placed, fused: Fused, plan: Plan | None, barriers: float | None, refusal: str
) -> tuple[tuple[Stage, str], ...]:
    graph = placed.graph
    scopes = list(dict.fromkeys(o.scope for o in graph.operators))
    groups = f" in {len(placed.groups)} groups" if len(placed.groups) > 1 else ""
    texts = [
        f"{counted(len(graph.operators), 'operator')} and {counted(len(graph.tables), 'table')}, "
        f"scopes {', '.join(scopes)}; {_marked(graph)}",
        f"{counted(placed.replicas, 'replica')}{groups}: " + _placements(placed),
        " | ".join(" + ".join(loop) for loop in _loops(fused)),
    ]
    if plan is None:
        texts += [f"refused: {refusal}", "nothing to emit"]
    else:
        instances = sum(plan.instances(o.scope) for o in plan.steps)
        meets = f"{counted(plan.phases, 'phase')}, {counted(barriers or 0, 'barrier')} a step"
        tasks = f"{instances} Dask tasks a step"
        if is_loose(plan):
            meets, tasks = "replicas at their own pace, no barrier", "sync edges only"
        texts += [
            f"{meets}, {counted(plan.blas_threads, 'BLAS thread')} a replica",
            f"resident: one window task a worker; tasks: {tasks}",
        ]
    return tuple(zip(STAGES, texts, strict=True))


def _marked(graph: LogicalGraph) -> str:
    ports = [p for p, _ in graph.edges()]
    marked = sum(p.edge.promise is not None for p in ports)
    return f"{marked} of {len(ports)} edges marked"


def _placements(placed: Placed) -> str:
    words: dict[str, list[str]] = {}
    for name, placement in placed.placements:
        words.setdefault(placement, []).append(name)
    return "; ".join(f"{placement}: {', '.join(names)}" for placement, names in words.items())
