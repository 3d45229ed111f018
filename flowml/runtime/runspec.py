"""What a worker is told of a run, frozen: one record that travels once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from flowml.actions import Evaluate, Load
from flowml.layout import Layout
from flowml.plan import Plan
from flowml.protocol.roster import Roster
from flowml.runtime.board import Board
from flowml.runtime.domain import Domain, map_memory
from flowml.runtime.feeding import Feed
from flowml.runtime.loose_memory import LooseMemory
from flowml.runtime.loose_plan import LoosePlan, is_loose, split
from flowml.runtime.outcome import Order

LEAST_BYTES = 64
"""A segment has at least one cache line."""


@dataclass(frozen=True)
class RunSpec:
    """A run as its workers know it.

    Attributes
    ----------
    plan : Plan
        Without the sources: data reach workers in load tasks.
    layouts : mapping of (operator, output) to Layout
    order : Order
    feeds : mapping of str to Feed
        By load operator.
    roster : Roster
    addresses : mapping of str to str
        Where each worker listens for processes of its own host.
    """

    plan: Plan
    layouts: Mapping[tuple[str, int], Layout]
    order: Order
    feeds: Mapping[str, Feed]
    roster: Roster
    addresses: Mapping[str, str]

    @property
    def name(self) -> str:
        """Run id as text."""
        return self.roster.run.hex()

    def member(self, worker: str) -> int:
        """Return the number of a worker among all of the run."""
        return self.roster.workers.index(worker)

    def domain_ranks(self) -> tuple[tuple[int, ...], ...]:
        """Return the ranks of each domain."""
        return tuple(
            tuple(sorted(r for w in workers for r in self.roster.ranks(w)))
            for workers in self.roster.domains
        )

    def shared_bytes(self, domain: Domain) -> tuple[int, int]:
        """Return the bytes that the processes of a domain share, and those there from the start."""
        workers = len(self.roster.workers)
        if self.loose is not None:
            cut = LooseMemory.of(self.loose, self.layouts, self.order.seed, domain, workers)
            return max(cut.nbytes, LEAST_BYTES), max(cut.reserved, LEAST_BYTES)
        board = Board.nbytes(self.plan.replicas, workers)
        nbytes = max(map_memory(self.plan, self.layouts, domain, board).nbytes, LEAST_BYTES)
        return nbytes, nbytes

    @cached_property
    def loose(self) -> LoosePlan | None:
        """The parts of a plan with stale or async edges; None for a synchronous one."""
        return split(self.plan) if is_loose(self.plan) else None

    def domain_of(self, worker: str) -> Domain:
        """Return the domain that a worker is in."""
        number = self.roster.domains.index(self.roster.domain(worker))
        return Domain(number, self.domain_ranks())


def without_sources(plan: Plan) -> Plan:
    """Return the plan as it travels: a source may hold the whole data set."""
    operators = tuple(
        replace(o, action=replace(o.action, source=None))
        if isinstance(o.action, Load | Evaluate)
        else o
        for o in plan.operators
    )
    return replace(plan, operators=operators)
