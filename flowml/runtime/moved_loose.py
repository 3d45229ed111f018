"""What a loose run moved between replicas, from its record."""

from __future__ import annotations

import numpy as np

from flowml.plan import Plan
from flowml.runtime.loose_plan import LoosePlan, split
from flowml.runtime.loose_rank import DELIVER, READ
from flowml.runtime.moved import Moved
from flowml.types import Array


def edge_names(loose: LoosePlan) -> tuple[str, ...]:
    """Return the names of the edges in the numbers of a record: reads, then gates."""
    reads = [f"{read.source} -> {read.reader}" for read in loose.reads]
    return (*reads, *(loose.plan.edge_name(gate.operator, 0) for gate in loose.gates))


def moved_of(plan: Plan, record: Array) -> Moved:
    """Return the bytes that replicas read and delivered, edge by edge.

    Parameters
    ----------
    record : ndarray of loose_rank.EVENT
    """
    names, found = edge_names(split(plan)), Moved()
    for kind, counter in ((READ, found.read), (DELIVER, found.written)):
        rows = record[(record["kind"] == kind) & (record["edge"] < len(names))]
        sums = np.bincount(rows["edge"], rows["bytes"], len(names))
        for name, nbytes in zip(names, sums.tolist(), strict=True):
            if nbytes:
                counter[name] += int(nbytes)
    return found
