"""The functions that load tasks call: partitions are read, batches are gathered from them."""

from __future__ import annotations

import threading

from flowml.actions import Load
from flowml.data.rows import Rows
from flowml.data.share import BatchOrder, deal_indices
from flowml.data.shelf import Shelf
from flowml.data.source import count_rows
from flowml.runtime.feeding import seeds
from flowml.runtime.tasksetting import on_worker
from flowml.runtime.taskshipment import Shipment, Shipped
from flowml.runtime.taskvalues import Batch, Between
from flowml.runtime.values import EMPTY

_ordering = threading.Lock()
"""A BatchOrder remembers permutations; tasks in threads of one process share it."""


def count_partition(shipped: Shipped) -> int:
    """Count the rows of a partition where they are not known."""
    with on_worker():
        return count_rows(shipped.partition)


def read_partition(shipped: Shipped, rows: int) -> Rows:
    """Read one partition, which must have ``rows`` rows."""
    with on_worker():
        shelf = Shelf([shipped.partition], [rows], prefetch=False, resident_bytes=0)
        return shelf.rows(0, lambda: 0)


def own_share(shipment: Shipment, name: str, rank: int) -> Rows:
    """Return what one rank is dealt of a source that is in memory (standalone graphs)."""
    operator = shipment.plan.operator(name)
    assert isinstance(operator.action, Load)
    rows: Rows = operator.action.source.rows()
    entropy = seeds(operator, shipment.order.seed)
    return rows.take(deal_indices(len(rows), shipment.plan.replicas, seed=entropy)[rank])


def own_partition(shipment: Shipment, name: str, number: int) -> Shipped:
    """Return one partition of a source, not read yet (standalone graphs)."""
    action = shipment.plan.operator(name).action
    assert isinstance(action, Load)
    return Shipped(action.source.partitions()[number])


def load_batch(order: BatchOrder, step: int, steps_per_epoch: int, *parts: Rows) -> Between:
    """Gather a rank's batch of a step.

    Parameters
    ----------
    parts : Rows
        The partitions that ``order.positions`` names for the batch, in that order.
    """
    with on_worker():
        with _ordering:
            pieces = order.pieces(*divmod(step, steps_per_epoch))
        return _batch([p.take(index) for (_, index), p in zip(pieces, parts, strict=True)])


def load_share(*parts: Rows) -> Between:
    """Put a rank's whole share together: its batch in every step where ``batch_size`` is None."""
    with on_worker():
        return _batch([part.compact() for part in parts if len(part)])


def _batch(parts: list[Rows]) -> Between:
    if not parts:
        return EMPTY
    rows = Rows.concat(parts).aligned()
    examples = float(rows.examples())
    return Batch(rows, examples) if examples else EMPTY
