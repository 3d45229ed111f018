"""What ``graph.plan(...)`` gives: the physical plan, to be read or turned into a Dask graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dask.typing import Key

from flowml.compiler.standalone import standalone
from flowml.plan import Plan


@dataclass(frozen=True)
class CompiledPlan:
    """A plan for a number of replicas.

    Attributes
    ----------
    physical : Plan
        Operators with placement, phase and summation trees.
    """

    physical: Plan

    def dask_graph(self, steps: int = 1) -> dict[Key, Any]:
        """Return the plain dict of Dask tasks that the ``tasks`` executor runs.

        Parameters
        ----------
        steps : int
            Steps to unroll. The loads read their source inside their tasks, so the dict runs by
            itself: ``client.get(d, keys)``, or ``dask.get(d, key)``.
        """
        return standalone(self.physical, steps)

    def __str__(self) -> str:
        """Show the phases of a step, and the trees of its sums."""
        plan = self.physical
        lines = [
            f"plan of {plan.graph!r}: {plan.replicas} replicas, {len(plan.groups)} group"
            f"{'s' if len(plan.groups) > 1 else ''}, {plan.phases} phases a step"
        ]
        for phase in range(plan.phases):
            for operator in (o for o in plan.steps if o.phase == phase):
                how = "by slices" if operator.sliced else "whole"
                reads = ", ".join(p.source for p in operator.inputs) or "-"
                tree = f"  sum {plan.tree(operator, 0)}" if plan.combines(operator) else ""
                lines.append(
                    f"  phase {phase}  {operator.name:<20} {operator.placement:<8} "
                    f"{operator.scope:<8} {how:<10} reads {reads}{tree}"
                )
        for operator in plan.evaluations:
            lines.append(f"  beside   {operator.name:<20} driver")
        return "\n".join(lines)
