"""Who owns which rows, and which of them make batch number i of an epoch (semantics section 7).

Everything here is a pure function of sizes and seeds: each executor finds the same batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from zlib import crc32

import numpy as np

from flowml.data.rows import Rows
from flowml.errors import DataError
from flowml.types import Array

KEPT = 4
"""Permutations and layouts that a BatchOrder remembers: of two partitions in two epochs."""


def random_seed(text: str) -> int:
    """Return a name as an integer for a SeedSequence: its CRC-32.

    Examples
    --------
    >>> random_seed("load")
    621208605
    """
    return crc32(text.encode())


def deal_indices(n: int, replicas: int, *, seed: Sequence[int]) -> list[Array]:
    """Deal the numbers 0..n - 1 to replicas: equal runs of one permutation.

    Parameters
    ----------
    n : int
        Rows.
    replicas : int
        At least 1; the first ``n mod replicas`` get one row more.
    seed : sequence of int
        Entropy for ``numpy.random.SeedSequence``, each >= 0.

    Returns
    -------
    list of ndarray of intp
        One array a replica, in dealt order.

    Examples
    --------
    >>> [len(share) for share in deal_indices(5, 2, seed=(0, 1))]
    [3, 2]
    """
    order = np.random.default_rng(np.random.SeedSequence(tuple(seed))).permutation(n)
    each, more = divmod(n, replicas)
    cuts = [rank * each + min(rank, more) for rank in range(replicas + 1)]
    return [order[a:b] for a, b in pairwise(cuts)]


def deal(rows: Rows, replicas: int, *, seed: Sequence[int]) -> list[Rows]:
    """Deal rows to replicas by ``deal_indices``; each share is a contiguous copy."""
    return [rows.take(index) for index in deal_indices(len(rows), replicas, seed=seed)]


@dataclass(frozen=True)
class Share:
    """What one replica owns of one load.

    Attributes
    ----------
    counts : tuple of int
        Rows of each of its partitions. A dealt source has one.
    ids : tuple of int
        Their numbers among all partitions. For a dealt source: ``(rank,)``.
    rank : int or None
        The replica, for messages.
    """

    counts: tuple[int, ...]
    ids: tuple[int, ...]
    rank: int | None = None

    @property
    def rows(self) -> int:
        """Rows in all."""
        return sum(self.counts)


@dataclass(frozen=True)
class BatchOrder:
    """Which rows of a share make which batch.

    Attributes
    ----------
    batch_size : int or None
        Rows a batch; None is the whole share, in its own order.
    seed : tuple of int
        Entropy: (run seed, load seed, ``random_seed`` of the operator's name).

    Raises
    ------
    DataError
        With ``drop_last``, if a share that is not empty has fewer rows than one batch.

    Notes
    -----
    Rows inside partition p are permuted by (seed, epoch, p); partitions are sorted by a hash of
    (seed, epoch, p), so that two of them stand in the same order whoever owns them. A batch may
    span partitions. Each row is in one batch an epoch, save the rows that ``drop_last`` drops.

    Examples
    --------
    >>> order = BatchOrder(Share((5,), (0,)), 2, True, False, (0, 0, 7))
    >>> order.batches(), [len(i) for n in range(3) for _, i in order.pieces(0, n)]
    (3, [2, 2, 1])
    """

    share: Share
    batch_size: int | None
    shuffle: bool
    drop_last: bool
    seed: tuple[int, ...]
    _kept: dict[tuple[int, ...], Any] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        size, rows = self.batch_size, self.share.rows
        if size is not None and size < 1:
            raise DataError(self._owner(), "batch_size must be >= 1", str(size))
        if self.drop_last and size is not None and 0 < rows < size:
            raise DataError(
                self._owner(),
                f"with drop_last=True a share must have at least batch_size={size} rows",
                str(rows),
                "Use fewer replicas, a smaller batch_size or drop_last=False.",
                replica=self.share.rank,
                rows=rows,
                batch_size=size,
            )

    def __reduce__(self) -> tuple[Any, ...]:
        fields = (self.share, self.batch_size, self.shuffle, self.drop_last, self.seed)
        return BatchOrder, fields

    def batches(self) -> int:
        """Return how many batches this share has in one epoch."""
        rows, size = self.share.rows, self.batch_size
        if size is None:
            return int(rows > 0)
        return rows // size if self.drop_last else -(-rows // size)

    def dropped(self) -> int:
        """Return how many rows ``drop_last`` leaves out of each epoch."""
        if self.batch_size is None:
            return 0
        return max(0, self.share.rows - self.batches() * self.batch_size)

    def pieces(self, epoch: int, number: int) -> tuple[tuple[int, Array], ...]:
        """Return which rows batch ``number`` of an epoch takes.

        Returns
        -------
        tuple of (int, ndarray of intp)
            Position of a partition in the share and row numbers in it, in order; empty when
            the share has no such batch.
        """
        if not 0 <= number < self.batches():
            return ()
        size = self.share.rows if self.batch_size is None else self.batch_size
        start, stop = number * size, min(number * size + size, self.share.rows)
        positions, ends = self._layout(epoch)
        found: list[tuple[int, Array]] = []
        at = int(np.searchsorted(ends, start, side="right"))
        while start < stop:
            position, end = positions[at], int(ends[at])
            first, last = end - self.share.counts[position], min(stop, end)
            found.append((position, self.order(epoch, position)[start - first : last - first]))
            start, at = last, at + 1
        return tuple(found)

    def positions(self, epoch: int, number: int) -> tuple[int, ...]:
        """Return which partitions of the share ``pieces`` names, without permuting their rows."""
        if not 0 <= number < self.batches():
            return ()
        if len(self.share.counts) == 1:
            return (0,)
        size = self.share.rows if self.batch_size is None else self.batch_size
        start, stop = number * size, min(number * size + size, self.share.rows)
        positions, ends = self._layout(epoch)
        first = int(np.searchsorted(ends, start, side="right"))
        return positions[first : 1 + int(np.searchsorted(ends, stop, side="left"))]

    def following(self, epoch: int, position: int) -> int:
        """Return the partition that is read after one of an epoch, into the next epoch."""
        positions, _ = self._layout(epoch)
        at = positions.index(position) + 1
        return positions[at] if at < len(positions) else self._layout(epoch + 1)[0][0]

    def order(self, epoch: int, position: int) -> Array:
        """Return the order of the rows inside a partition of the share, in an epoch.

        Returns
        -------
        ndarray of intp, shape (rows of the partition,), read-only
        """
        key = (epoch, position)
        if key not in self._kept:
            self._keep(key, self._permuted(epoch, position))
        return self._kept[key]  # type: ignore[no-any-return]

    def _permuted(self, epoch: int, position: int) -> Array:
        count = self.share.counts[position]
        if self._shuffles:
            order = self._random(epoch, position).permutation(count)
        else:
            order = np.arange(count, dtype=np.intp)
        order.flags.writeable = False
        return order

    def _layout(self, epoch: int) -> tuple[tuple[int, ...], Array]:
        """Return the partitions that have rows, in epoch order, and where each one ends."""
        key = (epoch,)
        if key not in self._kept:
            counts = self.share.counts
            positions = [i for i, count in enumerate(counts) if count]
            if self._shuffles:
                positions.sort(key=lambda i: (self._rank(epoch, i), self.share.ids[i]))
            ends = np.cumsum([counts[i] for i in positions], dtype=np.intp)
            self._keep(key, (tuple(positions), ends))
        return self._kept[key]  # type: ignore[no-any-return]

    @property
    def _shuffles(self) -> bool:
        return self.shuffle and self.batch_size is not None

    def _random(self, epoch: int, position: int) -> np.random.Generator:
        entropy = (*self.seed, epoch, self.share.ids[position])
        return np.random.default_rng(np.random.SeedSequence(entropy))

    def _rank(self, epoch: int, position: int) -> int:
        entropy = (*self.seed, epoch, self.share.ids[position], 1)
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    def _keep(self, key: tuple[int, ...], value: Any) -> None:
        self._kept[key] = value
        while sum(len(k) == len(key) for k in self._kept) > KEPT:
            del self._kept[next(k for k in self._kept if len(k) == len(key))]

    def _owner(self) -> str:
        if self.share.rank is not None:
            return f"replica {self.share.rank}"
        return f"the replica that owns partitions {list(self.share.ids)}"
