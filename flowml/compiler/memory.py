"""Bytes that a run holds on one host beside its data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import optree

from flowml.actions import REPLICA, Assign, Update
from flowml.compiler.traffic import Traffic
from flowml.layout import Layout
from flowml.plan import PlanOperator
from flowml.runtime.center_memory import HEADER as SLOT_HEADER
from flowml.runtime.domain import HEADER, Domain, layout_of_port, map_memory
from flowml.runtime.loose_plan import is_loose, split
from flowml.runtime.row_tables import is_row_table
from flowml.runtime.tablestate import RuleState, whole


@dataclass(frozen=True)
class Memory:
    """Bytes that a run holds beside its data, over all replicas of one host.

    Attributes
    ----------
    tables : int or None
        All versions of all instances, and the copies that replicas keep for themselves. None if
        some are kept as rows, whose number is not known.
    rules : int or None
        State of the rules, such as momentum: once a table, cut in slices, or once a copy.
    regions : int or None
        What crosses between replicas: values of a step, or under stale and async edges the
        queues. None where a size is not known without a measurement.
    codecs : int or None
        What codecs keep between values, such as residuals.
    """

    tables: int | None
    rules: int | None
    regions: int | None
    codecs: int | None = 0


def memory_of(traffic: Traffic) -> Memory:
    """Return what a run holds on one host."""
    if any(is_row_table(traffic.plan, table) for table in traffic.plan.tables):
        return Memory(None, None, None, None)
    tables, rules = _tables(traffic)
    try:
        if is_loose(traffic.plan):
            return Memory(tables, rules, _queues(traffic), _codecs(traffic))
        everyone = Domain(0, (tuple(range(traffic.plan.replicas)),))
        mapped = map_memory(traffic.placed, traffic.layouts, everyone)
    except KeyError:
        return Memory(tables, rules, None, None if is_loose(traffic.plan) else 0)
    regions = sum(layout.nbytes + 8 * HEADER for layout, _ in mapped.regions.values())
    return Memory(tables, rules, regions)


def _tables(traffic: Traffic) -> tuple[int, int]:
    plan, loose = traffic.placed, is_loose(traffic.plan)
    tables, rules = 0, 0
    copied = list(split(traffic.plan).copied().values()) if loose else []
    for table in plan.tables:
        layout = traffic.layouts[table.name, -1]
        count = plan.replicas if plan.own_copies else plan.instances(table.scope)
        tables += count * (1 + len(table.writes)) * layout.nbytes
        rules += count * sum(_rule_bytes(plan.operator(w), layout) for w in table.writes)
        if loose and table.scope != REPLICA:
            copies = max(1, copied.count(table.name))
            tables += plan.replicas * copies * layout.nbytes  # each computes from its own
    return tables, rules


def _queues(traffic: Traffic) -> int:
    loose, found = split(traffic.plan), 0
    for gate in loose.gates:
        layout = layout_of_port(loose.plan, traffic.layouts, gate.operator.inputs[0])
        action = gate.operator.action
        copies = 2 if isinstance(action, Update) and action.rule.reads else 1  # what was read too
        slots = loose.teams[gate.spec.team].members * (loose.queue + 1)  # one for the late
        found += slots * (copies * layout.nbytes + 8 * SLOT_HEADER)
    return found


def _codecs(traffic: Traffic) -> int:
    loose, found = split(traffic.plan), 0
    for gate in loose.gates:
        port = gate.operator.inputs[0]
        if port.codec is None:
            continue
        layout = layout_of_port(loose.plan, traffic.layouts, port)
        for leaf in layout.leaves:
            state = port.codec.init(leaf.shape, layout.dtypes[leaf.buffer], 0)
            members = loose.teams[gate.spec.team].members
            found += members * sum(np.asarray(part).nbytes for part in state)
    return found


def _rule_bytes(operator: PlanOperator, layout: Layout) -> int:
    action = operator.action
    if isinstance(action, Assign):
        return 0
    assert isinstance(action, Update)
    state = RuleState(action.rule, layout, whole(layout))
    value = layout.allocate()
    for buffer in value:
        buffer[...] = 0
    state.start(value)
    return sum(getattr(leaf, "nbytes", 0) for leaf in optree.tree_leaves(state.states))
