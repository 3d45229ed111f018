"""What a worker is told of a run, frozen: one record that travels once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from flowml.actions import Evaluate, Load
from flowml.layout import Layout
from flowml.plan import Plan
from flowml.protocol.roster import Roster
from flowml.runtime.domain import Domain
from flowml.runtime.feeding import Feed
from flowml.runtime.outcome import Order


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
