"""Stage 3, fuse: cut a step in phases, so that ranks meet as seldom as they can.

All operators of one rank in one phase become one loop body. A value that is made by one rank and
read by another needs a barrier between: its reader stands in a later phase. A sum over replicas
and the elementwise rule that consumes it stay in one phase: each rank does both for its slice
("owner computes", Rajbhandari et al. 2020 for the optimizer state; here also for the sum).
"""

from __future__ import annotations

from dataclasses import dataclass

from flowml.actions import REPLICA, Aggregate, Assign, Update
from flowml.compiler.place import Placed
from flowml.graph import LogicalGraph, Operator, Port, coarser


@dataclass(frozen=True)
class Phase:
    """Where an operator runs inside a step."""

    number: int
    sliced: bool
    crosses: tuple[bool, ...]
    """For each input: it moves between ranks."""


@dataclass(frozen=True)
class Fused:
    """A placed graph with the phase of each operator."""

    placed: Placed
    phases: tuple[tuple[str, Phase], ...]

    def loops(self) -> tuple[tuple[str, ...], ...]:
        """Return the fused groups: the operators of each phase, in order."""
        last = max((p.number for _, p in self.phases), default=0)
        return tuple(
            tuple(name for name, p in self.phases if p.number == n) for n in range(last + 1)
        )


def fuse(placed: Placed) -> Fused:
    """Assign a phase to each operator; see the top of this module."""
    graph = placed.graph
    found: dict[str, Phase] = {}
    written: dict[str, str] = {}
    for operator in graph.operators:
        sliced = _sliced(graph, operator)
        crosses = tuple(_crosses(graph, operator, sliced, p, found) for p in operator.inputs)
        after = [
            found[p.source].number + c
            for p, c in zip(operator.inputs, crosses, strict=True)
            if not p.table
        ]
        after += [_named(graph, operator, p, found) for p in operator.inputs if p.edge.ids]
        number = max((0, *after))
        if operator.writes:
            before = written.get(operator.writes)
            if before is not None:
                other = found[before]
                moves = other.sliced != sliced and operator.scope != REPLICA
                number = max(number, other.number + moves)
            written[operator.writes] = operator.name
        found[operator.name] = Phase(number, sliced, crosses)
    return Fused(placed, tuple(found.items()))


def _named(graph: LogicalGraph, operator: Operator, port: Port, found: dict[str, Phase]) -> int:
    """Return the first phase in which rows that an operator names can be there.

    Notes
    -----
    Rows of a table that others hold too come between two phases.
    """
    shared = port.table and graph.table(port.source).scope != operator.scope
    return found[port.edge.ids[0]].number + shared


def _sliced(graph: LogicalGraph, operator: Operator) -> bool:
    """Reduce by slices; apply by slices what arrives in slices and is changed item by item."""
    if isinstance(operator.action, Aggregate):
        return True
    if not isinstance(operator.action, Update | Assign) or operator.scope == REPLICA:
        return False
    if isinstance(operator.action, Update) and not operator.action.rule.elementwise:
        return False
    port = operator.inputs[0]
    if port.table or port.edge.period is not None:
        return False
    source = graph.operator(port.source)
    return coarser(operator.scope, source.scope) or (
        source.scope == operator.scope and isinstance(source.action, Aggregate)
    )


def _crosses(
    graph: LogicalGraph, operator: Operator, sliced: bool, port: Port, found: dict[str, Phase]
) -> bool:
    if port.table:
        return False
    source = graph.operator(port.source)
    if source.scope != operator.scope:
        return True
    if source.scope == REPLICA:
        return False
    return found[source.name].sliced and not (sliced and not isinstance(operator.action, Aggregate))
