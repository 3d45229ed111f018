"""Which rows each replica gets, and when: the order of batches, fixed before step 0.

The number of rows of every partition is known before the first step (a scan counts them where
the source cannot say), so the end of an epoch is a fact of the plan and needs no message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flowml.actions import Load
from flowml.data.rows import Rows
from flowml.data.share import BatchOrder, Share, deal, deal_indices, random_seed
from flowml.data.source import Partition, count_rows
from flowml.data.stream import BatchStream
from flowml.errors import DataError
from flowml.plan import Plan, PlanOperator

RESIDENT_BYTES = 256 * 2**20
"""Partitions that a replica keeps in memory once read, where the worker says nothing else."""


@dataclass(frozen=True)
class Feed:
    """The batches of one load operator: an order a replica, and the steps of its epoch."""

    name: str
    orders: tuple[BatchOrder, ...]
    steps_per_epoch: int

    def dropped(self) -> int:
        """Return the rows that ``drop_last`` leaves out each epoch."""
        return sum(order.dropped() for order in self.orders)


@dataclass(frozen=True)
class OneBatch:
    """Gives the same batch in every step, as a stream does."""

    content: Any
    examples: float

    def batch(self, step: int) -> tuple[Any, float]:
        """Return the batch."""
        return self.content, self.examples


def seeds(operator: PlanOperator, run_seed: int) -> tuple[int, ...]:
    """Return the entropy of a load operator's random streams."""
    assert isinstance(operator.action, Load)
    return (run_seed, operator.action.seed, random_seed(operator.name))


def loads(plan: Plan) -> tuple[PlanOperator, ...]:
    """Return the load operators of a plan."""
    return tuple(o for o in plan.steps if isinstance(o.action, Load))


def dealt_shares(operator: PlanOperator, replicas: int, run_seed: int) -> list[Rows]:
    """Deal the rows of an in-memory source to the replicas."""
    assert isinstance(operator.action, Load)
    rows = operator.action.source.rows()
    if len(rows) == 0:
        raise DataError(operator.label, "a source needs at least one row", "0 rows")
    return deal(rows, replicas, seed=seeds(operator, run_seed))


def make_feed(
    operator: PlanOperator,
    counts: Sequence[Sequence[int]],
    ids: Sequence[Sequence[int]],
    run_seed: int,
) -> Feed:
    """Return the feed of a load operator.

    Parameters
    ----------
    counts, ids : sequence by rank of sequences
        Rows, and global numbers, of each partition of that rank.

    Raises
    ------
    DataError
        If there is no row at all, or ``drop_last`` leaves a replica nothing.
    """
    action = operator.action
    assert isinstance(action, Load)
    if not any(n for rank in counts for n in rank):
        raise DataError(operator.label, "a source needs at least one row", "0 rows")
    orders = tuple(
        BatchOrder(
            Share(tuple(c), tuple(i), rank),
            action.batch_size,
            action.shuffle,
            action.drop_last,
            seeds(operator, run_seed),
        )
        for rank, (c, i) in enumerate(zip(counts, ids, strict=True))
    )
    return Feed(operator.name, orders, max(1, *(order.batches() for order in orders)))


def steps_per_epoch(feeds: Sequence[Feed]) -> int:
    """Return the steps of an epoch of the run: that of its longest load."""
    return max(feed.steps_per_epoch for feed in feeds)


def total_steps(feeds: Sequence[Feed], steps: int | None, epochs: int | None) -> int:
    """Return how many steps a run has: ``steps`` or ``epochs``, whichever comes first."""
    by_epochs = None if epochs is None else epochs * steps_per_epoch(feeds)
    found = [n for n in (steps, by_epochs) if n is not None]
    return min(found)


def dealt_sizes(rows: int, replicas: int) -> list[int]:
    """Return the rows of each replica: the first ``rows mod replicas`` get one more."""
    each, more = divmod(rows, replicas)
    return [each + (rank < more) for rank in range(replicas)]


def expected_steps(plan: Plan, run_seed: int, steps: int | None, epochs: int | None) -> int | None:
    """Return how many steps a run will have, if that can be told without reading partitions."""
    if epochs is None:
        return steps
    feeds = []
    for operator in loads(plan):
        action = operator.action
        assert isinstance(action, Load)
        if not action.source.dealt:
            return None
        sizes = dealt_sizes(len(action.source.rows()), plan.replicas)
        ranks = range(plan.replicas)
        feeds.append(make_feed(operator, [[n] for n in sizes], [[r] for r in ranks], run_seed))
    return total_steps(feeds, steps, epochs)


def partition_ids(count: int, replicas: int) -> list[tuple[int, ...]]:
    """Return the partitions of each replica: p belongs to p mod replicas.

    Examples
    --------
    >>> partition_ids(5, 2)
    [(0, 2, 4), (1, 3)]
    """
    return [tuple(range(rank, count, replicas)) for rank in range(replicas)]


def local_feed(
    operator: PlanOperator, replicas: int, run_seed: int
) -> tuple[Feed, list[list[Rows | Partition]]]:
    """Return the feed and the data of each rank, read in this process."""
    action = operator.action
    assert isinstance(action, Load)
    if action.source.dealt:
        shares = dealt_shares(operator, replicas, run_seed)
        feed = make_feed(
            operator, [[len(s)] for s in shares], [[r] for r in range(replicas)], run_seed
        )
        return feed, [[s] for s in shares]
    partitions = action.source.partitions()
    ids = partition_ids(len(partitions), replicas)
    counts = [p.rows if p.rows is not None else count_rows(p) for p in partitions]
    feed = make_feed(operator, [[counts[i] for i in mine] for mine in ids], ids, run_seed)
    return feed, [[partitions[i] for i in mine] for mine in ids]


def first_batch(operator: PlanOperator, replicas: int, run_seed: int) -> tuple[Any, float]:
    """Return the first batch of the first replica that has one, without dealing all rows."""
    action = operator.action
    assert isinstance(action, Load)
    if not action.source.dealt:
        feed, parts = local_feed(operator, replicas, run_seed)
        rank = next(r for r, o in enumerate(feed.orders) if o.batches())
        stream = open_stream(feed, rank, parts[rank], prefetch=False)
        try:
            return stream.batch(0)
        finally:
            stream.close()
    rows = action.source.rows()
    shares = deal_indices(len(rows), replicas, seed=seeds(operator, run_seed))
    feed = make_feed(operator, [[len(s)] for s in shares], [[r] for r in range(replicas)], run_seed)
    rank = next(r for r, o in enumerate(feed.orders) if o.batches())
    ((_, index),) = feed.orders[rank].pieces(0, 0)
    batch = rows.take(shares[rank][index]).aligned()
    return batch.value(), batch.examples()


def open_stream(
    feed: Feed,
    rank: int,
    parts: Sequence[Rows | Partition],
    *,
    prefetch: bool = True,
    resident_bytes: int = RESIDENT_BYTES,
) -> BatchStream:
    """Return the batches of one rank; partitions beyond ``resident_bytes`` are read again."""
    return BatchStream(
        feed.orders[rank],
        parts,
        steps_per_epoch=feed.steps_per_epoch,
        prefetch=prefetch,
        resident_bytes=resident_bytes,
    )
