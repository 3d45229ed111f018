"""What EXPLAIN is to a database: the plan of a graph, what it moves, and how long a step takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dask.utils import format_bytes

from flowml.actions import Aggregate, Evaluate
from flowml.compiler.check import check
from flowml.compiler.fuse import Fused, fuse
from flowml.compiler.gauge import Measured
from flowml.compiler.lower import lower
from flowml.compiler.place import Groups, Placed, place
from flowml.compiler.prediction import Prediction, predict
from flowml.compiler.promises import SYNC, describe, resolve
from flowml.compiler.stages import STAGES, Stage
from flowml.compiler.traffic import EdgeTraffic, Memory, Traffic, known_layouts
from flowml.drawing.text import columns, counted
from flowml.errors import FlowmlError
from flowml.graph import LogicalGraph
from flowml.plan import Placement, Plan
from flowml.reductions import Tree

ONE_IS_FASTER = "one replica is faster"
LONGEST_TREE = 72


@dataclass(frozen=True)
class Explanation:
    """The plan of a graph for a number of replicas; ``print`` it.

    Attributes
    ----------
    graph : str
    replicas : int
    groups, hosts : tuple of tuple of int
        Ranks of each group, and of each host.
    stages : tuple of (str, str)
        What each stage of the compiler found: check, place, fuse, lower, emit.
    promises : tuple of (str, str)
        Each edge that is not marked, and the promise that it takes from its loop.
    loops : tuple of tuple of str
        Fused groups: the operators of each phase, in order.
    placements : tuple of (str, str)
        Of each operator: replica, group, reduce, table or driver.
    trees : tuple of (str, tree)
        Of each sum: the order in which replicas are added, such as ``((0, 1), 2)``.
    edges : tuple of EdgeTraffic
        Empty where the graph cannot run yet.
    barriers : float or None
        A step.
    memory : Memory or None
    prediction : Prediction or None
        None without a measurement.
    verdict : str
        Whether the replicas are worth it.
    """

    graph: str
    replicas: int
    groups: tuple[tuple[int, ...], ...]
    hosts: tuple[tuple[int, ...], ...]
    stages: tuple[tuple[Stage, str], ...]
    promises: tuple[tuple[str, str], ...]
    loops: tuple[tuple[str, ...], ...]
    placements: tuple[tuple[str, Placement], ...]
    trees: tuple[tuple[str, Tree], ...]
    edges: tuple[EdgeTraffic, ...]
    barriers: float | None
    memory: Memory | None
    prediction: Prediction | None
    verdict: str

    def __str__(self) -> str:
        return "\n\n".join(part for part in _sections(self) if part)


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
            graph.name, replicas, placed.groups, on_hosts, stages, taken, loops,
            placed.placements, (), (), None, None, None,
            "it can be declared and drawn, but does not run in this release",
        )
    traffic = Traffic.of(plan, known_layouts(plan, probe.layouts if probe else {}))
    edges = _edges(checked, traffic, on_hosts)
    prediction = predict(traffic, edges, probe, len(on_hosts)) if probe else None
    return Explanation(
        graph.name, replicas, placed.groups, on_hosts,
        _stages(placed, fused, plan, traffic.barriers(), ""), taken, loops,
        placed.placements, _trees(plan), edges, traffic.barriers(), traffic.memory(), prediction,
        _verdict(prediction, probe),
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
        texts += [
            f"{counted(plan.phases, 'phase')}, {counted(barriers or 0, 'barrier')} a step, "
            f"{counted(plan.blas_threads, 'BLAS thread')} a replica",
            f"resident: one window task a worker; tasks: {instances} Dask tasks a step",
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
        shared = (f". The {prediction.replicas} replicas share {probe.cores} cores, so their work "
                  f"is taken as {prediction.slowdown:.3g} times as long")
    if prediction.one_is_faster:
        return (f"{ONE_IS_FASTER}: a step takes {numbers}{shared}. Larger batches, or "
                "communication every few steps (.every), would change it")
    text = f"{prediction.replicas} replicas are {prediction.speedup:.2f} times as fast: {numbers}"
    if prediction.dominates_from is None:
        return f"{text}. Nothing is communicated{shared}"
    return (f"{text}. With the same total batch, communication dominates from "
            f"{prediction.dominates_from} replicas on{shared}")


def _sections(found: Explanation) -> list[str]:
    place = f" on {len(found.hosts)} hosts" if len(found.hosts) > 1 else ""
    return [
        f"graph {found.graph} with {counted(found.replicas, 'replica')}{place}",
        columns(("stage", "result"), found.stages),
        _promise_section(found),
        _tree_section(found),
        _edge_section(found),
        _memory_section(found),
        _prediction_section(found),
        f"{found.verdict}.",
    ]


def _promise_section(found: Explanation) -> str:
    loose = [(edge, promise) for edge, promise in found.promises if promise != "sync"]
    if not loose:
        edges = counted(len(found.promises), "unmarked edge")
        return f"promises: {edges} sync, as nothing loosens them"
    return columns(("unmarked edge", "takes from its loop"), loose)


def _tree_section(found: Explanation) -> str:
    if not found.trees:
        return ""
    rows = []
    for name, tree in found.trees:
        text = str(tree).replace(" ", "")
        short = len(text) <= LONGEST_TREE
        rows.append((name, text if short else f"{text[: LONGEST_TREE - 3]}..."))
    return columns(("sum", "order of additions"), rows)


def _edge_section(found: Explanation) -> str:
    crossing = [e for e in found.edges if e.crosses]
    if not crossing:
        return "" if not found.edges else "edges: all stay in one replica"
    between = "between the hosts" if len(found.hosts) > 1 else "between two hosts"
    rows = [
        (
            e.edge, e.promise, "" if e.every == 1 else f"every({e.every})",
            shown_bytes(e.written_bytes), shown_bytes(e.read_bytes),
            f"{e.messages:.3g} x, {shown_bytes(e.message_bytes)}" if e.messages else "none",
        )
        for e in crossing
    ]
    header = ("edge, a step", "promise", "period", "written", "read by slices", between)
    stay = len(found.edges) - len(crossing)
    tail = f"\nnot shown: {counted(stay, 'edge')} inside one replica" if stay else ""
    return (f"{columns(header, rows)}{tail}\n"
            f"{counted(found.barriers or 0, 'barrier')} a step; on one host no messages, only "
            "shared memory")


def _memory_section(found: Explanation) -> str:
    if found.memory is None:
        return ""
    parts = (f"tables {shown_bytes(found.memory.tables)}, rules {shown_bytes(found.memory.rules)}, "
             f"regions that cross {shown_bytes(found.memory.regions)}")
    return f"memory beside the data: {parts}"


def _prediction_section(found: Explanation) -> str:
    p = found.prediction
    if p is None:
        return ""
    rows = [
        ("work of a replica on its batch", shown_seconds(p.replica_seconds)),
        ("barriers", shown_seconds(p.barrier_seconds)),
        ("reading what crosses", shown_seconds(p.transfer_seconds)),
        ("sums and rules", shown_seconds(p.update_seconds)),
        ("step", shown_seconds(p.seconds)),
        ("one replica, same examples", shown_seconds(p.one_replica_seconds)),
        ("speed-up", f"{p.speedup:.2f}"),
    ]
    return columns(("predicted, a step", ""), rows)


def shown_bytes(count: float | None) -> str:
    """Return a size in words; "?" where it is not known.

    Examples
    --------
    >>> shown_bytes(0), shown_bytes(31400), shown_bytes(None)
    ('0', '30.66 kiB', '?')
    """
    if count is None:
        return "?"
    return format_bytes(round(count)) if count else "0"


def shown_seconds(seconds: float) -> str:
    """Return a duration with three digits.

    Examples
    --------
    >>> shown_seconds(0), shown_seconds(0.0000312), shown_seconds(0.0042), shown_seconds(1.5)
    ('0 us', '31.2 us', '4.2 ms', '1.5 s')
    """
    for unit, size in (("us", 1e-6), ("ms", 1e-3)):
        if seconds < 1000 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
