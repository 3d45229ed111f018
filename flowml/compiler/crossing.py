"""What each edge hands over between replicas in a step, in bytes: a fact of the plan."""

from __future__ import annotations

from collections.abc import Iterator

from flowml.actions import SparseRows
from flowml.compiler.layouts import known_layouts, layout_of_source
from flowml.compiler.loose_traffic import LooseTraffic
from flowml.compiler.traffic import Traffic
from flowml.layout import layout_of
from flowml.plan import Plan
from flowml.runtime.domain import Layouts
from flowml.runtime.loose_plan import is_loose


def step_bytes(plan: Plan, measured: Layouts) -> dict[str, float | None]:
    """Return by edge what is put on it in a step, or copied of a table, before a codec.

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
    found: dict[str, float | None] = {}
    everyone = (tuple(range(plan.replicas)),)
    traffic = Traffic.of(plan, layouts, everyone, dict(_before_codecs(plan, layouts)))
    counter = LooseTraffic.of(traffic) if is_loose(plan) else traffic
    for operator in plan.steps:
        for number in range(len(operator.inputs)):
            edge = counter.edge(operator.name, number, "", everyone)
            if edge.crosses:
                before = found.get(edge.edge, 0.0)
                more = edge.read_bytes if edge.written_bytes == 0 else edge.written_bytes
                found[edge.edge] = None if before is None or more is None else before + more
    return found


def _before_codecs(plan: Plan, layouts: Layouts) -> Iterator[tuple[str, float]]:
    for reader in plan.steps:
        for number, port in enumerate(reader.inputs):
            layout = layout_of_source(plan, layouts, port)
            if port.codec is not None and port.ids is None and layout is not None:
                yield plan.edge_name(reader, number), float(layout.nbytes)
