"""What the rule of promises is told of a graph, and what it says: plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from flowml.freshness import Promises


class TeamSpec(NamedTuple):
    """Those who deliver at the same point of a step, each with a clock of its own.

    Attributes
    ----------
    kind : str
        "replica", or the scope of the groups that deliver as one.
    members : int
    turn : int
        Where in the step.
    """

    kind: str
    members: int
    turn: int = 0


@dataclass(frozen=True)
class GateSpec:
    """What flows into something global.

    Attributes
    ----------
    name : str
        The aggregate, update or assign.
    promises : Promises
        Of the edge that the contributions come on.
    push : bool
        A table is pushed to: under a loose promise each contribution is applied by itself.
    tables : tuple of str
        The tables that are written behind it.
    every : int
        Period of the edge, in steps.
    team : int
        Who delivers.
    quorum : int
        A firing takes the first so many contributions; 0: all of them.
    carries : bool
        A contribution that misses its quorum joins the next firing; else it is dropped.
    """

    name: str
    promises: Promises
    push: bool
    tables: tuple[str, ...] = ()
    every: int = 1
    team: int = 0
    quorum: int = 0
    carries: bool = True

    def delivers(self, stamp: int) -> bool:
        """Tell whether a step has a contribution."""
        return (stamp + 1) % self.every == 0


@dataclass(frozen=True)
class ReadSpec:
    """What a replica reads of what all share: a table, or the answer of a gate in the same step.

    Attributes
    ----------
    source : str
        The table, or the operator behind the gate.
    reader : str
    promises : Promises
    every : int
    gate : int
        What writes it; -1: nothing does.
    turn : int
        Where in the step.
    answer : bool
        It is what the step's own contribution came to (semantics.md section 1: d = 0).
    """

    source: str
    reader: str
    promises: Promises
    every: int = 1
    gate: int = -1
    turn: int = 0
    answer: bool = False

    def is_due(self, step: int) -> bool:
        """Tell whether its period lets it be read in a step."""
        return (step + self.answer) % self.every == 0


class Missing(NamedTuple):
    """What a wait is for.

    Attributes
    ----------
    edge : str
    members : tuple of int
        Who has not delivered.
    clock : int
        The steps that must be complete.
    team : int
        Whose members they are.
    """

    edge: str
    members: tuple[int, ...]
    clock: int
    team: int = 0


Taken: TypeAlias = tuple[tuple[int, int], ...]
"""(member, stamp) of contributions, in the order of the sum."""


class Firing(NamedTuple):
    """One firing of a gate, and what it takes."""

    gate: int
    number: int
    taken: Taken
