"""Layouts of what a plan moves, as far as they are known without running it."""

from __future__ import annotations

from flowml.actions import Aggregate, Gradient, SparseRows
from flowml.layout import Layout, layout_of
from flowml.plan import Plan, PlanOperator, PlanPort
from flowml.runtime.domain import Layouts, layout_of_port
from flowml.runtime.tablestate import initial


def known_layouts(plan: Plan, measured: Layouts) -> dict[tuple[str, int], Layout]:
    """Return the layouts of tables, and of what operators make as far as it is known.

    Notes
    -----
    A gradient has the layout of its table and an aggregate that of what it combines; what a map
    makes is only known from a measurement. A sparse table has no layout: it grows.
    """
    found = dict(measured)
    for table in plan.tables:
        if (table.name, -1) not in found and not isinstance(table.init, SparseRows):
            found[table.name, -1] = layout_of(initial(plan, table, 0, 0))
    for operator in plan.steps:
        for output in range(operator.outputs):
            key = (operator.name, output)
            layout = found.get(key) or _inferred(plan, found, operator, output)
            if layout is not None:
                found[key] = layout
    return found


def _inferred(
    plan: Plan, found: dict[tuple[str, int], Layout], operator: PlanOperator, output: int
) -> Layout | None:
    action = operator.action
    if isinstance(action, Gradient) and output < action.tables:
        return layout_of_source(plan, found, operator.inputs[output])
    if isinstance(action, Aggregate):
        return layout_of_source(plan, found, operator.inputs[0])
    return None


def layout_of_source(plan: Plan, layouts: Layouts, port: PlanPort) -> Layout | None:
    """Return the layout of what an input reads, or None where it is not known."""
    try:
        return layout_of_port(plan, layouts, port)
    except KeyError:
        return None
