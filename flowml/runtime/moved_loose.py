"""What a loose run moved between replicas, from its record."""

from __future__ import annotations

from flowml.plan import Plan
from flowml.runtime.loose_plan import split
from flowml.runtime.loose_rank import DELIVER, READ
from flowml.runtime.moved import Moved
from flowml.types import Array


def moved_of(plan: Plan, record: Array) -> Moved:
    """Return the bytes that replicas read and delivered; a record does not tell edges apart.

    Parameters
    ----------
    record : ndarray of loose_rank.EVENT
    """
    loose, found = split(plan), Moved()
    reads = ", ".join(f"{read.table} -> {read.reader}" for read in loose.reads)
    gates = ", ".join(plan.edge_name(gate.operator, 0) for gate in loose.gates)
    found.read[reads] = int(record["bytes"][record["kind"] == READ].sum())
    found.written[gates] = int(record["bytes"][record["kind"] == DELIVER].sum())
    return found
