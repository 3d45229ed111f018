"""Partitions of a share that is larger than memory: the current one and the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread
from typing import TypeAlias

from flowml.data.rows import Rows
from flowml.data.source import Partition
from flowml.errors import DataError, FlowmlError

CLOSE_SECONDS = 5.0
"""How long ``close`` waits for a read that is under way; the thread is a daemon."""

Readable: TypeAlias = Rows | Partition | Callable[[], Rows]


@dataclass(frozen=True)
class Reading:
    """A partition that a thread is reading."""

    position: int
    result: Future[Rows]
    thread: Thread


class Shelf:
    """Holds partitions that are in memory, and at most two that are not: current and next.

    Parameters
    ----------
    partitions : sequence of Rows, Partition or callable
        Those that are Rows already stay where they are and do not count.
    counts : sequence of int
        Rows that each must have.
    prefetch : bool
        Whether a thread reads the next partition while the current one is used.
    resident_bytes : int
        Partitions that fit in this budget stay in memory once they are read. Bytes.

    Notes
    -----
    Not thread-safe: one replica uses it. The thread touches nothing but the partition that it
    reads; its result or its error comes back through a Future.
    """

    def __init__(
        self,
        partitions: Sequence[Readable],
        counts: Sequence[int],
        *,
        prefetch: bool,
        resident_bytes: int,
    ) -> None:
        self._partitions = tuple(partitions)
        self._counts = tuple(counts)
        self._prefetch = prefetch
        self._budget = resident_bytes
        self._resident: dict[int, Rows] = {}
        self._held: dict[int, Rows] = {}
        self._current: int | None = None
        self._reading: Reading | None = None
        for position, partition in enumerate(self._partitions):
            if isinstance(partition, Rows):
                self._resident[position] = self._checked(position, partition)

    def name(self, position: int) -> str:
        """Return what a partition is called in messages."""
        return str(getattr(self._partitions[position], "name", f"partition {position}"))

    def rows(self, position: int, following: Callable[[], int]) -> Rows:
        """Return the rows of a partition; reads it if nobody has.

        Parameters
        ----------
        position : int
            Of the partition in the share.
        following : callable
            Tells which one comes next; asked only when the current one changes.

        Raises
        ------
        DataError
            Naming the partition, if it cannot be read or has not as many rows as were counted.
        """
        if position in self._resident:
            return self._resident[position]
        if position != self._current:
            self._advance(position, following())
        return self._resident[position] if position in self._resident else self._held[position]

    def close(self) -> None:
        """Let go of everything; a read under way is waited for, for some seconds."""
        self._held.clear()
        self._current = None
        if self._reading is not None:
            self._reading.thread.join(CLOSE_SECONDS)
            self._reading = None

    def _advance(self, position: int, following: int) -> None:
        """Make a partition the current one.

        What is neither current nor next goes before anything is read, and a thread that reads
        something else is waited for: never are there three.
        """
        self._current = None
        for other in [p for p in self._held if p not in (position, following)]:
            del self._held[other]
        if self._reading is not None and self._reading.position not in (position, following):
            self._reading.thread.join()
            self._reading = None
        if position not in self._held:
            self._put(position, self._fetched(position))
        self._current = position
        if self._prefetch and self._wanted(following):
            self._reading = self._started(following)

    def _wanted(self, position: int) -> bool:
        reading = self._reading is not None and self._reading.position == position
        return not (reading or position in self._resident or position in self._held)

    def _fetched(self, position: int) -> Rows:
        reading = self._reading
        if reading is None or reading.position != position:
            return self._read(position)
        self._reading = None
        return reading.result.result()

    def _put(self, position: int, rows: Rows) -> None:
        if rows.nbytes <= self._budget:
            self._budget -= rows.nbytes
            self._resident[position] = rows
        else:
            self._held[position] = rows

    def _started(self, position: int) -> Reading:
        result: Future[Rows] = Future()

        def run() -> None:
            try:
                rows = self._read(position)
            except BaseException as error:  # handed over whole: the replica raises it
                result.set_exception(error)
            else:
                result.set_result(rows)

        thread = Thread(target=run, name=f"flowml-read-{self.name(position)}", daemon=True)
        thread.start()
        return Reading(position, result, thread)

    def _read(self, position: int) -> Rows:
        partition = self._partitions[position]
        assert not isinstance(partition, Rows)
        read = partition.read if isinstance(partition, Partition) else partition
        try:
            rows = read()
        except FlowmlError:
            raise
        except Exception as error:
            raise DataError(
                self.name(position),
                "the partition must be readable",
                f"{type(error).__name__}: {error}",
                "The cause is above.",
            ) from error
        return self._checked(position, rows)

    def _checked(self, position: int, rows: Rows) -> Rows:
        if len(rows) != self._counts[position]:
            raise DataError(
                self.name(position),
                f"the partition must have the {self._counts[position]} rows that were counted",
                str(len(rows)),
                "Did its file change during the run?",
            )
        return rows.compact()
