"""What a source is: partitions of examples that can be read again, anywhere."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Protocol, runtime_checkable

from flowml.data.rows import Rows


@runtime_checkable
class Partition(Protocol):
    """One piece of a source: picklable, cheap to ship, read on the worker that owns it."""

    @property
    def name(self) -> str:
        """What to call it in messages, such as a path and a byte range."""

    @property
    def rows(self) -> int | None:
        """How many rows it has; None until somebody counts them."""

    def read(self) -> Rows:
        """Read all of it. Twice the same, also on another worker."""


@runtime_checkable
class CountedPartition(Partition, Protocol):
    """A partition whose rows can be counted faster than they can be read."""

    def count(self) -> int:
        """Count the rows without parsing them."""


@runtime_checkable
class Source(Protocol):
    """Examples that can be read again and again, in a fixed order.

    Notes
    -----
    Two kinds. A *dealt* source is in memory (arrays, npz, idx, compressed files): one seeded
    permutation deals its rows to the replicas. The others have partitions, and partition p
    belongs to replica p mod K.
    """

    @property
    def dealt(self) -> bool:
        """Whether ``rows()`` is to be dealt; otherwise ``partitions()`` are to be shared out."""

    @property
    def name(self) -> str:
        """What to call it in messages."""

    def rows(self) -> Rows:
        """Return everything, read on the driver; kept by a dealt source."""

    def partitions(self) -> tuple[Partition, ...]:
        """Return the partitions, in order; reads no rows."""

    def token(self) -> str:
        """Name what is read: equal tokens mean equal rows, also in another process."""


class Unshipped:
    """A dataclass whose cached rows stay where they are: only its fields are pickled."""

    def __getstate__(self) -> dict[str, Any]:
        names = [field.name for field in fields(self)]  # type: ignore[arg-type]
        return {name: getattr(self, name) for name in names}


def count_rows(partition: Partition) -> int:
    """Return the number of rows of a partition; runs on a worker when it is not known yet.

    Notes
    -----
    All counts are known before step 0, so that the end of an epoch is a fact of the plan and
    needs no message.
    """
    if partition.rows is not None:
        return partition.rows
    if isinstance(partition, CountedPartition):
        return partition.count()
    return len(partition.read())
