"""An explanation as a value, and the text that it prints."""

from __future__ import annotations

from dataclasses import dataclass

from dask.utils import format_bytes

from flowml.compiler.prediction import Prediction
from flowml.compiler.stages import Stage
from flowml.compiler.traffic import EdgeTraffic, Memory
from flowml.drawing.text import columns, counted
from flowml.plan import Placement
from flowml.reductions import Tree

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
    notes : tuple of str
        What is allowed and rarely meant, such as several pushes a step under a learning rate.
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
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n\n".join(part for part in _sections(self) if part)


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
        "\n".join(f"note: {text}" for text in found.notes),
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
            e.edge,
            e.promise,
            "" if e.every == 1 else f"every({e.every})",
            shown_bytes(e.written_bytes),
            shown_bytes(e.read_bytes),
            f"{e.messages:.3g} x, {shown_bytes(e.message_bytes)}" if e.messages else "none",
        )
        for e in crossing
    ]
    header = ("edge, a step", "promise", "period", "written", "read by slices", between)
    stay = len(found.edges) - len(crossing)
    tail = f"\nnot shown: {counted(stay, 'edge')} inside one replica" if stay else ""
    return (
        f"{columns(header, rows)}{tail}\n"
        f"{counted(found.barriers or 0, 'barrier')} a step; on one host no messages, only "
        "shared memory"
    )


def _memory_section(found: Explanation) -> str:
    if found.memory is None:
        return ""
    parts = (
        f"tables {shown_bytes(found.memory.tables)}, rules {shown_bytes(found.memory.rules)}, "
        f"regions that cross {shown_bytes(found.memory.regions)}"
    )
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
