"""What is allowed and rarely meant: said once, before a run, and never an error."""

from __future__ import annotations

import logging

from flowml.actions import Load, Update
from flowml.events import Warned
from flowml.freshness import loosest
from flowml.plan import Plan, PlanOperator
from flowml.runtime.feeding import loads
from flowml.runtime.outcome import Order

LOG = logging.getLogger("flowml")

SUMMING = frozenset({"add"})
"""Rules whose pushes are meant to add up."""


def notes(plan: Plan) -> tuple[str, ...]:
    """Return what a user should know about a plan before it runs.

    Returns
    -------
    tuple of str
        One sentence each, naming operator, file and line.

    Examples
    --------
    >>> from flowml.plan import Plan
    >>> notes(Plan("g", "", 1, ((0,),), (), ()))
    ()
    """
    return (*_pushes(plan), *_idle(plan))


def tell_notes(plan: Plan, order: Order) -> None:
    """Log each note, and hand it to whoever listens to the run."""
    for text in notes(plan):
        LOG.warning(text)
        order.tell(Warned(text))


def _pushes(plan: Plan) -> list[str]:
    """Return a note for each table to which several writers push under a learning rate."""
    found = []
    for operator in plan.steps:
        action = operator.action
        if not isinstance(action, Update) or not plan.combines(operator):
            continue
        if loosest(operator.inputs[0].promises) > 0:  # applied as they come, which was asked for
            continue
        members = max(
            len(plan.members(operator, instance))
            for instance in range(plan.instances(operator.scope))
        )
        if members > 1 and action.rule.name not in SUMMING:
            found.append(
                f"{operator.label}: {members} pushes a step into table {action.table!r} under "
                f"{action.rule.name} are a sum: the table moves {members} times in a step. "
                'fl.aggregate("mean", values) before the update makes it one.'
            )
    return found


def _idle(plan: Plan) -> list[str]:
    """Return a note for each load with fewer rows or partitions than replicas."""
    found = []
    for operator in loads(plan):
        count, what = _pieces(operator)
        if 0 < count < plan.replicas:
            idle = plan.replicas - count
            found.append(
                f"{operator.label}: {plan.replicas} replicas but {count} {what}"
                f"{'s' if count > 1 else ''}: {idle} will be idle. Use replicas={count}, or cut "
                "the source finer."
            )
    return found


def _pieces(operator: PlanOperator) -> tuple[int, str]:
    """Return what is dealt out to the replicas: rows in memory, or partitions."""
    assert isinstance(operator.action, Load)
    source = operator.action.source
    return (len(source.rows()), "row") if source.dealt else (len(source.partitions()), "partition")
