"""What EXPLAIN is to a database: the plan of a graph, what it moves, and how long a step takes."""

from __future__ import annotations

from collections.abc import Sequence

from flowml.actions import Aggregate, Evaluate
from flowml.compiler.check import check
from flowml.compiler.explained import Explanation, shown_seconds
from flowml.compiler.fuse import Fused, fuse
from flowml.compiler.gauge import Measured
from flowml.compiler.lower import lower
from flowml.compiler.place import Groups, Placed, place
from flowml.compiler.prediction import Prediction, predict
from flowml.compiler.promises import SYNC, describe, resolve
from flowml.compiler.stages import STAGES, Stage
from flowml.compiler.traffic import EdgeTraffic, Traffic, known_layouts
from flowml.drawing.text import counted
from flowml.errors import FlowmlError
from flowml.graph import LogicalGraph
from flowml.plan import Plan
from flowml.reductions import Tree
from flowml.runtime.loose_plan import is_loose
from flowml.runtime.notes import notes

ONE_IS_FASTER = "one replica is faster"


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
    on_hosts = _by_host(replicas, hosts)
    taken = tuple(
        (f"{port.source} -> {operator.name}", describe(promise))
        for (name, number), promise in resolve(checked).items()
        for operator in (checked.operator(name),)
        for port in (operator.inputs[number],)
        if port.edge.promise is None and not port.edge.until
    )
    loops = _loops(fused)
    try:
        plan = lower(fused)
    except FlowmlError as refusal:  # it cannot run yet: explained as far as it goes
        stages = _stages(placed, fused, None, None, _refusal(refusal))
        return Explanation(
            graph.name,
            replicas,
            placed.groups,
            on_hosts,
            stages,
            taken,
            loops,
            placed.placements,
            (),
            (),
            None,
            None,
            None,
            "it can be declared and drawn, but does not run in this release",
        )
    traffic = Traffic.of(plan, known_layouts(plan, probe.layouts if probe else {}))
    edges = _edges(checked, traffic, on_hosts)
    prediction = predict(traffic, edges, probe, len(on_hosts)) if probe else None
    return Explanation(
        graph.name,
        replicas,
        placed.groups,
        on_hosts,
        _stages(placed, fused, plan, traffic.barriers(len(on_hosts)), ""),
        taken,
        loops,
        placed.placements,
        _trees(plan),
        edges,
        traffic.barriers(len(on_hosts)),
        traffic.memory(),
        prediction,
        _verdict(prediction, probe),
        notes(plan),
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


def _by_host(replicas: int, hosts: Sequence[str] | None) -> tuple[tuple[int, ...], ...]:
    names = hosts or ["this host"] * replicas
    return tuple(
        tuple(rank for rank in range(replicas) if names[rank] == host)
        for host in dict.fromkeys(names)
    )


def _edges(
    graph: LogicalGraph, traffic: Traffic, hosts: tuple[tuple[int, ...], ...]
) -> tuple[EdgeTraffic, ...]:
    """Return what each edge of a step carries; over two halves where there is only one host."""
    replicas = traffic.plan.replicas
    if len(hosts) == 1 and replicas > 1:
        half = -(-replicas // 2)
        hosts = (tuple(range(half)), tuple(range(half, replicas)))
    promises = resolve(graph)
    return tuple(
        traffic.edge(o, number, describe(promises.get((o.name, number), SYNC)), hosts)
        for o in traffic.plan.steps
        for number in range(len(o.inputs))
    )


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


def _verdict(prediction: Prediction | None, probe: Measured | None) -> str:
    if prediction is None or probe is None:
        return "not predicted: nothing was measured"
    if prediction.replicas == 1:
        return "one replica runs alone; explain(replicas=2) predicts what another one brings"
    numbers = (
        f"{shown_seconds(prediction.seconds)} on {prediction.replicas} replicas (their work "
        f"{shown_seconds(prediction.replica_seconds)}, overhead "
        f"{shown_seconds(prediction.overhead_seconds)}) against "
        f"{shown_seconds(prediction.one_replica_seconds)} on one for the same examples"
    )
    shared = ""
    if prediction.slowdown > 1:
        shared = (
            f". The {prediction.replicas} replicas share {probe.cores} cores, so their work "
            f"is taken as {prediction.slowdown:.3g} times as long"
        )
    if prediction.one_is_faster:
        return (
            f"{ONE_IS_FASTER}: a step takes {numbers}{shared}. Larger batches, or "
            "communication every few steps (.every), would change it"
        )
    text = f"{prediction.replicas} replicas are {prediction.speedup:.2f} times as fast: {numbers}"
    if prediction.dominates_from is None:
        return f"{text}. Nothing is communicated{shared}"
    return (
        f"{text}. With the same total batch, communication dominates from "
        f"{prediction.dominates_from} replicas on{shared}"
    )
