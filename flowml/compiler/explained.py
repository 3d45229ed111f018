"""An explanation as a value, and the text that it prints."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from flowml.compiler.curve import CurvePoint
from flowml.compiler.memory import Memory
from flowml.compiler.prediction import Prediction
from flowml.compiler.shown import shown_bytes, shown_seconds
from flowml.compiler.stages import Stage
from flowml.compiler.traffic import EdgeTraffic
from flowml.drawing.text import columns, counted
from flowml.plan import Placement
from flowml.reductions import Tree

LONGEST_TREE = 72
ALONE = (
    "timed: one replica, alone. Replicas that are busy together are slower: graph.measure() or "
    "--calibrate times them"
)


@dataclass(frozen=True, repr=False)
class Explanation:
    """The plan of a graph for a number of replicas; it shows itself as text.

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
    verdict : str
        Whether the replicas are worth it.
    trees : tuple of (str, tree)
        Of each sum: the order in which replicas are added, such as ``((0, 1), 2)``.
    edges : tuple of EdgeTraffic
        Empty where the graph cannot run yet.
    barriers : float or None
        A step.
    memory : Memory or None
    prediction : Prediction or None
        None without a measurement.
    timed : int
        Replicas that were timed while all of them were busy.
    notes : tuple of str
        What is allowed and rarely meant, such as several pushes a step under a learning rate.
    curve : tuple of CurvePoint
        The predicted step at other numbers of replicas; empty without a measurement.
    advice : tuple of str
        What would make it faster, in words.
    """

    graph: str
    replicas: int
    groups: tuple[tuple[int, ...], ...]
    hosts: tuple[tuple[int, ...], ...]
    stages: tuple[tuple[Stage, str], ...]
    promises: tuple[tuple[str, str], ...]
    loops: tuple[tuple[str, ...], ...]
    placements: tuple[tuple[str, Placement], ...]
    verdict: str
    trees: tuple[tuple[str, Tree], ...] = ()
    edges: tuple[EdgeTraffic, ...] = ()
    barriers: float | None = None
    memory: Memory | None = None
    prediction: Prediction | None = None
    timed: int = 0
    notes: tuple[str, ...] = ()
    curve: tuple[CurvePoint, ...] = ()
    advice: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """Return all of it as plain dicts and tuples, for JSON."""
        found = asdict(self)
        if self.prediction is not None:
            for name in ("seconds", "communication_seconds", "speedup", "bound"):
                found["prediction"][name] = getattr(self.prediction, name)
        return found

    def __str__(self) -> str:
        return "\n\n".join(part for part in _sections(self) if part)

    __repr__ = __str__


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
        _curve_section(found),
        "\n".join(f"{text}." for text in (found.verdict, *found.advice)),
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
    header = ("edge, a step", "promise", "period", "written", "read", between)
    stay = len(found.edges) - len(crossing)
    tail = f"\nnot shown: {counted(stay, 'edge')} inside one replica or group" if stay else ""
    meets = f"{counted(found.barriers, 'barrier')} a step" if found.barriers else "no barriers"
    memory = "on one host no messages, only shared memory"
    return f"{columns(header, rows)}{tail}\n{meets}; {memory}"


def _memory_section(found: Explanation) -> str:
    if found.memory is None:
        return ""
    memory = found.memory
    parts = [
        f"tables {shown_bytes(memory.tables)}",
        f"rules {shown_bytes(memory.rules)}",
        f"what crosses {shown_bytes(memory.regions)}",
    ]
    if memory.codecs != 0:
        parts.append(f"codecs {shown_bytes(memory.codecs)}")
    return f"memory beside the data: {', '.join(parts)}"


def _prediction_section(found: Explanation) -> str:
    p = found.prediction
    if p is None:
        return ""
    rows = [
        ("work of a replica on its batch", p.replica_seconds),
        ("waiting for the slowest one", p.waiting_seconds),
        ("barriers", p.barrier_seconds),
        ("reading what crosses", p.transfer_seconds),
        ("sums and rules", p.update_seconds),
        ("queueing for the lock", p.lock_seconds),
    ]
    shown = [(name, shown_seconds(seconds)) for name, seconds in rows if seconds]
    shown += [
        ("step", shown_seconds(p.seconds)),
        ("one replica, same examples", shown_seconds(p.one_replica_seconds)),
        ("speed-up", f"{p.speedup:.2f}"),
    ]
    alone = found.timed < found.replicas and found.replicas > 1
    tail = f"\n{ALONE}" if alone and found.timed else ""
    return columns(("predicted, a step", ""), shown) + tail


def _curve_section(found: Explanation) -> str:
    if len(found.curve) < 2:
        return ""
    rows = [
        (str(p.replicas), shown_seconds(p.seconds), f"{p.speedup:.2f}", p.bound)
        for p in found.curve
    ]
    return columns(("replicas here", "step", "speed-up", "most of it"), rows)
