"""Data on workers for the ``tasks`` executor: every share is a key that load tasks refer to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dask.typing import Key

from flowml.actions import Evaluate, Load
from flowml.data.dask_collections import DaskSource
from flowml.data.memory import MemoryPartition
from flowml.data.rows import Rows
from flowml.data.source import Partition, Source
from flowml.events import Loaded
from flowml.plan import Plan, PlanOperator
from flowml.runtime.feeding import Feed, dealt_shares, loads, make_feed, partition_ids
from flowml.runtime.outcome import Order
from flowml.runtime.taskcluster import TaskCluster
from flowml.runtime.taskloads import count_partition
from flowml.runtime.taskshipment import Shipped
from flowml.runtime.taskwindow import DaskFuture, RankShare


@dataclass
class Placing:
    """Brings data to workers; the cluster keeps them.

    Attributes
    ----------
    workers : tuple of str
        Address by rank.
    """

    cluster: TaskCluster
    workers: tuple[str, ...]

    def feed(
        self, plan: Plan, order: Order, heads: dict[str, str]
    ) -> tuple[dict[str, Feed], dict[str, tuple[RankShare, ...]]]:
        """Bring the data of every load to the workers of its ranks.

        Returns
        -------
        feeds, shares
            The order of batches, and the keys of the data, by load operator.

        Raises
        ------
        DataError
            If there is no row, or a source cannot be read.
        """
        feeds, shares = {}, {}
        for operator in loads(plan):
            action = operator.action
            assert isinstance(action, Load)
            head = heads[operator.name]
            if action.source.dealt:
                feed, parts, read = self._deal(operator, order, head)
            else:
                feed, parts, read = self._share_out(operator, order, head)
            feeds[operator.name] = feed
            shares[operator.name] = self._orders(feed, parts, read, head)
            rows = sum(o.share.rows for o in feed.orders)
            order.tell(Loaded(operator.name, sum(map(len, parts)), rows))
        return feeds, shares

    def _orders(
        self, feed: Feed, parts: list[list[Key]], read: bool, head: str
    ) -> tuple[RankShare, ...]:
        shares = []
        for rank, (order, keys) in enumerate(zip(feed.orders, parts, strict=True)):
            key = (head, -2, rank)
            self.cluster.put({key: order}, [self.workers[rank]])
            shares.append(RankShare(key, tuple(keys), read))
        return tuple(shares)

    def _deal(
        self, operator: PlanOperator, order: Order, head: str
    ) -> tuple[Feed, list[list[Key]], bool]:
        ranks = range(len(self.workers))
        shares = dealt_shares(operator, len(self.workers), order.seed)
        keys: list[Key] = [(head, -2, rank, "share") for rank in ranks]
        for key, share, worker in zip(keys, shares, self.workers, strict=True):
            self.cluster.put({key: share}, [worker])
        counts = [[len(share)] for share in shares]
        feed = make_feed(operator, counts, [[rank] for rank in ranks], order.seed)
        return feed, [[key] for key in keys], False

    def _share_out(
        self, operator: PlanOperator, order: Order, head: str
    ) -> tuple[Feed, list[list[Key]], bool]:
        """Share partitions out; p belongs to replica p mod K."""
        action = operator.action
        assert isinstance(action, Load)
        pieces = Pieces(action.source)
        ids = partition_ids(len(pieces), len(self.workers))
        keys = [
            self._pieces(pieces, mine, head, rank, [self.workers[rank]])
            for rank, mine in enumerate(ids)
        ]
        counts = self._counts(pieces, ids, keys, head)
        return make_feed(operator, counts, ids, order.seed), keys, pieces.read

    def _pieces(
        self, pieces: Pieces, mine: Sequence[int], head: str, rank: int, workers: Sequence[str]
    ) -> list[Key]:
        keys: list[Key] = [(head, -2, rank, number) for number in mine]
        if isinstance(pieces.source, DaskSource):
            for key, number in zip(keys, mine, strict=True):
                self.cluster.futures[key] = self._assembled(pieces, number, key, workers)
        else:
            self.cluster.put({k: pieces.value(n) for k, n in zip(keys, mine, strict=True)}, workers)
        return keys

    def _assembled(
        self, pieces: Pieces, number: int, key: Key, workers: Sequence[str]
    ) -> DaskFuture:
        """Compute the blocks of a Dask collection where they are needed, as rows."""
        blocks = self.cluster.client.compute(
            list(pieces.delayed[number]), workers=list(workers), allow_other_workers=True
        )
        return self.cluster.client.submit(
            pieces.source.assemble, *blocks, key=key, workers=list(workers), pure=False
        )

    def _counts(
        self, pieces: Pieces, ids: list[tuple[int, ...]], keys: list[list[Key]], head: str
    ) -> list[list[int]]:
        """Count rows on the workers where a source does not know them."""
        counting: dict[int, DaskFuture] = {}
        for rank, mine in enumerate(ids):
            for number, key in zip(mine, keys[rank], strict=True):
                if pieces.rows[number] is None:
                    counting[number] = self.cluster.client.submit(
                        count_partition if pieces.read else len,
                        self.cluster.futures[key],
                        key=(head, -3, rank, number),
                        workers=[self.workers[rank]],
                        pure=False,
                    )
        self.cluster.lookout.settle(list(counting.values()))
        found = list(pieces.rows)
        counted = self.cluster.lookout.gather(list(counting.values()))
        for number, rows in zip(counting, counted, strict=True):
            found[number] = rows
        return [[found[number] or 0 for number in mine] for mine in ids]

    def evaluation(self, operator: PlanOperator, head: str, worker: str) -> list[Key]:
        """Bring the source of an evaluation to one worker; return the keys of its pieces."""
        action = operator.action
        assert isinstance(action, Evaluate)
        if action.source.dealt:
            key = (head, -2, 0, 0)
            if key not in self.cluster.futures:
                self.cluster.put({key: action.source.rows()}, [worker])
            return [key]
        pieces = Pieces(action.source)
        if not len(pieces) or (head, -2, 0, 0) in self.cluster.futures:
            return [(head, -2, 0, number) for number in range(len(pieces))]
        return self._pieces(pieces, range(len(pieces)), head, 0, [worker])


@dataclass
class Pieces:
    """The partitions of a source, whichever form they have.

    Attributes
    ----------
    rows : list of (int or None)
        Rows of each partition, where they are known.
    read : bool
        Partitions have to be read by tasks; otherwise they reach workers as rows.
    """

    source: Any
    rows: list[int | None] = field(init=False)
    read: bool = field(init=False)
    delayed: list[tuple[Any, ...]] = field(init=False, default_factory=list)
    partitions: tuple[Partition, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        """Look at the source."""
        source: Source = self.source
        if isinstance(source, DaskSource):
            self.delayed, self.rows, self.read = source.delayed_partitions(), [], False
            self.rows = list(source.counts)
            return
        self.partitions = source.partitions()
        self.rows = [p.rows for p in self.partitions]
        self.read = not all(isinstance(p, MemoryPartition) for p in self.partitions)

    def __len__(self) -> int:
        return len(self.rows)

    def value(self, number: int) -> Rows | Shipped:
        """Return what goes to a worker: rows in memory, or the partition to read there."""
        partition = self.partitions[number]
        if not self.read and isinstance(partition, MemoryPartition):
            return partition.held
        return Shipped(partition)
