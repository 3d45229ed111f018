"""Small tables: each rank keeps a copy of its own, and a step has one barrier instead of two.

Where owners compute (writing.py), a step meets twice: gradients are in place, parameters are
written. For a table of 31 kB the second meeting costs more than all the arithmetic that it shares
out. So here every rank adds up all gradients and applies the whole update to tables of its own:
the operators are pure and the tree is the plan's, so all copies have the same bytes.

What guards what is read
------------------------
A rank that has left the barrier of step n may write its gradient of step n + 1 while another still
reads that of step n. So a region has two turns, by the parity of the step. The turn of step n is
written again in n + 2, after the barrier of n + 1, at which every rank arrives only when it has
read all that it reads in step n.

Whoever dies, each survivor's copy is whole, at the last step that this rank has committed; as with
owners, ranks differ by at most one.
"""

from __future__ import annotations

from dataclasses import replace

from flowml.actions import GLOBAL, REPLICA
from flowml.plan import Plan
from flowml.runtime.domain import Layouts

REPEATABLE = ("aggregate", "update", "assign")
"""Global operators that each rank may repeat; a map may be as costly as its user likes."""
ALONE = ("load", "here", "map", "gradient")
"""What a rank does by itself; an end of the run is told at a barrier."""


def with_own_copies(plan: Plan, layouts: Layouts, domains: int, limit: int) -> Plan:
    """Return the plan for own copies of all tables, or the plan as it is where owners are better.

    Parameters
    ----------
    layouts : mapping of (operator, output) to Layout
        Tables as (table, -1).
    domains : int
        Groups of ranks that share memory.
    limit : int
        Bytes that each rank may read in a step more than it would as an owner.

    Notes
    -----
    Only where every step meets exactly once: no periods, no ends of the run, one scope of tables.
    """
    if plan.replicas == 1 or domains > 1 or not _meets_once(plan):
        return plan
    table_bytes = sum(layouts[t.name, -1].nbytes for t in plan.tables)
    if table_bytes * plan.replicas > limit:
        return plan
    operators = tuple(
        replace(
            o,
            sliced=False,
            inputs=tuple(
                replace(p, crosses=p.crosses and plan.scope_of(p) == REPLICA) for p in o.inputs
            ),
        )
        for o in plan.operators
    )
    return replace(plan, operators=operators, own_copies=True)


def _meets_once(plan: Plan) -> bool:
    ports = [p for o in plan.steps for p in o.inputs]
    shared = [p for p in ports if p.crosses and plan.scope_of(p) == REPLICA]
    return (
        all(t.scope == GLOBAL for t in plan.tables)
        and all(p.every == 1 for p in ports)
        and all(o.kind in (REPEATABLE if o.scope == GLOBAL else ALONE) for o in plan.steps)
        and len({plan.operator(p.source).phase for p in shared}) == 1
    )
