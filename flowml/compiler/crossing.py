"""What each edge hands over between replicas in a step, in bytes: a fact of the plan."""

from __future__ import annotations

from flowml.actions import SparseRows
from flowml.compiler.traffic import Traffic, known_layouts
from flowml.layout import layout_of
from flowml.plan import Plan
from flowml.runtime.domain import Layouts


def step_bytes(plan: Plan, measured: Layouts) -> dict[str, float | None]:
    """Return by edge what its readers take in a step, over all replicas and before a codec.

    Parameters
    ----------
    measured : mapping of (operator, output) to Layout
        Empty where no step was tried yet: then what a map makes is not known, and nothing is where
        a table is made by a function, which is not called for this.

    Returns
    -------
    dict of str to float or None
        Averages over the periods of the edges, for those that cross; None where not known, as
        where an edge carries the rows that a value names.
    """
    layouts = dict(measured)
    made_there = [callable(t.init) or isinstance(t.init, SparseRows) for t in plan.tables]
    if not layouts and not any(made_there):
        layouts = known_layouts(plan, {(t.name, -1): layout_of(t.init) for t in plan.tables})
    traffic, found = Traffic.of(plan, layouts), dict[str, float | None]()
    everyone = [tuple(range(plan.replicas))]
    for operator in plan.steps:
        for number in range(len(operator.inputs)):
            edge = traffic.edge(operator, number, "", everyone)
            if edge.crosses:
                before = found.get(edge.edge, 0.0)
                more = None if operator.inputs[number].ids is not None else edge.read_bytes
                found[edge.edge] = None if before is None or more is None else before + more
    return found
