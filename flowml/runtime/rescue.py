"""The tables that a failed run leaves: those of the last step of which most of them are left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import optree

from flowml.errors import FlowmlError
from flowml.plan import Plan
from flowml.runtime.gang import Committed
from flowml.runtime.loose_places import ELSEWHERE
from flowml.runtime.outcome import Order, Tables
from flowml.runtime.tablestate import initial


def by_table(plan: Plan, found: Mapping[tuple[str, int], Any]) -> Tables:
    """Return instances by table, in order; None where one is not there."""
    return {
        t.name: [found.get((t.name, i)) for i in range(plan.instances(t.scope))]
        for t in plan.tables
    }


def rescued(
    plan: Plan, order: Order, replies: Sequence[Committed], seen: Committed
) -> tuple[int, Tables]:
    """Return the last step of which most tables are left, and its tables.

    Parameters
    ----------
    replies : sequence of Committed
        What each worker that answers has.
    seen : Committed
        The last tables that came to the driver in time.

    Notes
    -----
    A table that is shared is whole as soon as one rank has committed it: all have met before.
    Tables of one group or replica are None where their ranks are lost, or at another step, by
    steps that they make without meeting the others. Of a loose run a worker that does not hold the
    shared tables does not know how far all have come: what it has belongs to what others tell.
    """
    found: Committed = {}
    for reply in replies:
        for step, tables in reply.items():
            found.setdefault(step, {}).update(tables)
    elsewhere = found.pop(ELSEWHERE, {})
    for tables in found.values():
        tables.update(elsewhere)
    found = found or seen
    if found:
        last = max(found, key=lambda step: (len(found[step]), step))
        return last, by_table(plan, found[last])
    first: Tables = {}
    with suppress(FlowmlError):  # an init that fails is the error that brought us here
        first = {
            t.name: [
                optree.tree_map(np.array, initial(plan, t, i, order.seed))
                for i in range(plan.instances(t.scope))
            ]
            for t in plan.tables
        }
    return 0, first
