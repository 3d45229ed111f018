"""What a loose run asks of its hosts, checked before any worker is touched."""

from __future__ import annotations

from flowml.actions import GLOBAL, REPLICA
from flowml.errors import PlanError
from flowml.plan import Plan
from flowml.protocol.roster import Roster
from flowml.runtime.domain import Layouts

HEADS = 1 << 20
"""What frames a message, generously. Bytes."""


def check_hosts(plan: Plan, layouts: Layouts, roster: Roster, longest_message: int) -> None:
    """Refuse hosts between which a loose plan cannot run.

    Raises
    ------
    PlanError
        A group of replicas has members on several hosts, or a message would be too long.
    """
    if len(roster.domains) == 1:
        return
    domain_of = {r: n for n, ws in enumerate(roster.domains) for w in ws for r in roster.ranks(w)}
    scopes = {o.scope for o in plan.steps} | {table.scope for table in plan.tables}
    meets = bool(scopes.difference((GLOBAL, REPLICA)))
    for number, ranks in enumerate(plan.groups if meets else ()):
        hosts = {domain_of[rank] for rank in ranks}
        if len(hosts) > 1:
            raise PlanError(
                f"graph {plan.graph!r}",
                "the replicas of a group meet in memory that they share, where its graph has "
                "stale, async or filtered edges",
                f"group {number} with replicas {ranks} on {len(hosts)} hosts, or a transport "
                "without shared memory",
                "Choose groups within a host (groups='host'), or workers of one host.",
            )
    names = [table.name for table in plan.tables if table.scope == GLOBAL]
    dense = [layouts[name, -1].nbytes for name in names if (name, -1) in layouts]
    if 2 * sum(dense) + HEADS > longest_message:
        raise PlanError(
            f"graph {plan.graph!r}",
            "a message with its tables must fit flowml.max-message, where replicas are on several "
            "hosts",
            f"{(2 * sum(dense) + HEADS) / 2**20:,.0f} MiB, allowed {longest_message / 2**20:,.0f}",
            "Raise flowml.max-message in Dask's configuration.",
        )
