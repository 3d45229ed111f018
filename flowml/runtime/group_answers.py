"""What a group's contribution came to: one of its replicas receives it and hands it to the others.

The replicas of a group keep step and hold equal copies of the group's tables. If each of them
received for itself, what other groups deliver in between would be in one copy and not in another.
So the group's first replica receives, in a phase of its own; then they meet, and each takes the sum
over the group, in which the others have nothing.

::

    phase T      receive       the first replica of each group, between deliveries and phase T
    phase T + 1  in the group  the sum; and whatever reads it, then or later
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from flowml import reductions
from flowml.actions import GLOBAL, REPLICA, Aggregate
from flowml.plan import Plan, PlanOperator, PlanPort


def handed(source: str, output: int) -> str:
    """Return the name of the operator that has in each replica what its group received."""
    return f"{source}[{output}] in the group"


def group_readers(plan: Plan) -> dict[str, str]:
    """Return the global operators that groups read in the same step, with the groups' scope."""
    return {
        port.source: reader.scope
        for reader in plan.steps
        if reader.scope not in (GLOBAL, REPLICA)
        for port in reader.inputs
        if not port.table and plan.operator(port.source).scope == GLOBAL
    }


def hand_round(received: PlanOperator, scope: str) -> list[PlanOperator]:
    """Return the operators that hand each output of what was received to all of a group."""
    alone = Aggregate(reductions.sum_, scope, "equal")
    return [
        replace(
            received,
            name=handed(received.name, output),
            kind="aggregate",
            action=alone,
            scope=scope,
            inputs=(PlanPort(received.name, output, table=False, crosses=True),),
            outputs=1,
            phase=received.phase + 1,
        )
        for output in range(received.outputs)
    ]


def make_room(plan: Plan, phase: dict[str, int], turns: Mapping[str, int]) -> dict[str, int]:
    """Return the phases of local operators with one more before what groups received is read.

    Parameters
    ----------
    phase : dict
        Of each local operator.
    turns : mapping of str to int
        What groups receive, and before which phase.
    """
    found = dict(phase)
    for turn in sorted(set(turns.values()), reverse=True):
        behind = {name for name, at in turns.items() if at == turn}
        for operator in plan.steps:
            if any(not p.table and p.source in behind for p in operator.inputs):
                behind.add(operator.name)
        for name, at in found.items():
            found[name] = at + (at > turn or (at == turn and name in behind))
    return found


def first_of_group(plan: Plan, number: int) -> bool:
    """Tell whether a replica is the one that receives for its group."""
    return plan.groups[plan.group_of[number]][0] == number
