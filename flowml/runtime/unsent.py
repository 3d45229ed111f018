"""Which edges still keep values of the last steps of a run: nothing is flushed at its end."""

from __future__ import annotations

from flowml.actions import GLOBAL
from flowml.plan import Firing, Plan


def kept_edges(plan: Plan, steps: int, *, behind_gates: bool = True) -> tuple[str, ...]:
    """Return the edges whose sources have made something since they delivered last.

    Parameters
    ----------
    plan : Plan
    steps : int
        That were made.
    behind_gates : bool
        Also edges into what is global; what these keep in a loose run depends on more than the
        plan.

    Examples
    --------
    With ``.every(3)`` an edge delivers in the steps 2, 5 and so on: after 5 steps it keeps the
    values of the steps 3 and 4, after 6 steps none.
    """
    firing, found = Firing(plan), set()
    for reader in plan.steps:
        for number, port in enumerate(reader.inputs):
            if port.table or port.every == 1 or (reader.scope == GLOBAL and not behind_gates):
                continue
            source, since = plan.operator(port.source), range(steps - steps % port.every, steps)
            if any(firing.fires(source, step) for step in since):
                found.add(plan.edge_name(reader, number))
    return tuple(sorted(found))
