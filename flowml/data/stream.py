"""The batches of one replica, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from flowml.data.gather import BatchRoom
from flowml.data.rows import Rows
from flowml.data.share import BatchOrder
from flowml.data.shelf import Readable, Shelf
from flowml.types import Array

Batch = tuple[Any, float]
NOTHING: Batch = (None, 0.0)


class BatchStream:
    """Reads the batches of one replica's share.

    Parameters
    ----------
    order : BatchOrder
        Which rows make which batch.
    partitions : sequence of Rows, Partition or callable returning Rows
        The share, in the order of ``order.share``. Rows are in memory already; the others are
        read when the epoch comes to them.
    steps_per_epoch : int
        Batches of the replica that has most: under sync edges an epoch ends for all together.
    prefetch : bool
        Whether a thread reads the next partition while the current one is used.
    resident_bytes : int
        Partitions that fit in this budget stay in memory once read. Beyond it at most two are
        held, the current one and the next. Bytes.

    Notes
    -----
    Values are read-only, start on a cache line, and are valid until the next call: dense columns
    are gathered into the same buffers each time, which so stay in the cache. Not thread-safe; each
    replica has its own.
    A step is looked up, not counted: any order of steps gives the same batches.
    """

    def __init__(
        self,
        order: BatchOrder,
        partitions: Sequence[Readable],
        *,
        steps_per_epoch: int,
        prefetch: bool = True,
        resident_bytes: int,
    ) -> None:
        share = order.share
        self._order = order
        self._size = order.batch_size
        self._batches = order.batches()
        self._steps = max(1, steps_per_epoch)
        self._shelf = Shelf(
            partitions, share.counts, prefetch=prefetch, resident_bytes=resident_bytes
        )
        capacity = max(1, min(self._size or 1, share.rows))
        self._room = BatchRoom(capacity)
        self._epoch = -1
        self._permutation: Array | None = None
        self._whole_share: Batch | None = None
        self._only: Rows | None = None
        if len(partitions) == 1 and isinstance(partitions[0], Rows) and self._size is not None:
            self._only = self._shelf.rows(0, lambda: 0)
            self._room.shape_for(self._only)

    def batch(self, step: int) -> Batch:
        """Return the batch of a step.

        Parameters
        ----------
        step : int
            Epoch ``step // steps_per_epoch``, batch ``step % steps_per_epoch`` of it.

        Returns
        -------
        value
            What operators get, read-only; None if this replica has no batch at this step.
        examples : float
            Sum of the weights if there are any, else the rows; 0.0 without a batch.

        Raises
        ------
        DataError
            If a partition cannot be read, naming it; also when a thread read it ahead.
        """
        epoch, number = divmod(step, self._steps)
        if number >= self._batches:
            return NOTHING
        if self._size is None:
            return self._share()
        room = self._room
        if self._only is None:
            return self._spanning(room, epoch, number)
        if epoch != self._epoch:
            self._permutation, self._epoch = self._order.order(epoch, 0), epoch
        assert self._permutation is not None
        start = number * self._size
        return room.whole(self._only, self._permutation[start : start + self._size])

    def close(self) -> None:
        """Let go of the partitions and of a read that is under way."""
        self._shelf.close()
        self._whole_share = None

    def _spanning(self, room: BatchRoom, epoch: int, number: int) -> Batch:
        for position, index in self._order.pieces(epoch, number):
            following = partial(self._order.following, epoch, position)
            # No name may hold the rows here: they would outlive the partition's turn.
            room.add(self._shelf.rows(position, following), index, self._shelf.name(position))
        return room.finish()

    def _share(self) -> Batch:
        """Return the whole share, put together once; every partition is in memory then."""
        if self._whole_share is None:
            filled = [i for i, count in enumerate(self._order.share.counts) if count]
            after = dict(zip(filled, [*filled[1:], filled[-1]], strict=True))
            found = [self._shelf.rows(i, partial(after.__getitem__, i)) for i in filled]
            rows = Rows.concat(found).aligned()
            self._whole_share = (rows.value(), rows.examples())
            self._shelf.close()
        return self._whole_share
