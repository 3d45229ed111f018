"""Chunks of rows from a function that returns an iterator of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from dask.base import tokenize

from flowml.data.rows import Rows, rows_of
from flowml.data.source import Unshipped
from flowml.errors import DataError, GraphError
from flowml.types import calling_site

Make = Callable[[], Iterable[Any]]


@dataclass(frozen=True, eq=False)
class ChunkPartition:
    """Every ``step``-th chunk of the iterator, from chunk ``first`` on."""

    make: Make
    first: int
    step: int
    name: str
    rows: int | None = None

    def read(self) -> Rows:
        """Run through the iterator once and keep this partition's chunks.

        Raises
        ------
        DataError
            If the function returns no fresh iterator, or too few chunks for every partition.
        """
        chunks = list(self._chunks())
        if not chunks:
            raise DataError(
                self.name,
                f"the iterator must give at least {self.step} chunks",
                "fewer",
                "Pass a smaller parts=, and a function that returns a fresh iterator.",
            )
        return Rows.concat(chunks)

    def count(self) -> int:
        """Run through the iterator once, holding one chunk at a time."""
        return sum(len(chunk) for chunk in self._chunks())

    def _chunks(self) -> Iterator[Rows]:
        numbered = enumerate(self.make())
        for number, chunk in islice(numbered, self.first, None, self.step):
            columns = chunk if isinstance(chunk, tuple) else (chunk,)
            yield rows_of(*columns[:3], where=f"{self.name}, chunk {number}")


@dataclass(frozen=True)
class IterableSource(Unshipped):
    """Chunks of rows; dealt from memory, or read in partitions where ``parts`` is given."""

    make: Make
    parts: int | None
    name: str

    @property
    def dealt(self) -> bool:
        """Whether the driver reads everything once."""
        return self.parts is None

    def rows(self) -> Rows:
        """Run through the iterator once; the rows are kept."""
        return self._held

    @cached_property
    def _held(self) -> Rows:
        return ChunkPartition(self.make, 0, 1, self.name).read()

    def partitions(self) -> tuple[ChunkPartition, ...]:
        """Return the partitions, each every n-th chunk."""
        count = self.parts or 1
        return tuple(ChunkPartition(self.make, i, count, f"{self.name}[{i}]") for i in range(count))

    def token(self) -> str:
        """Return a hash of the function and its closure, not of what it reads."""
        return f"iterable-{tokenize(self.make, self.parts)}"


def iterable(make: Make, parts: int | None = None) -> IterableSource:
    """Give a function that returns an iterator of chunks.

    Parameters
    ----------
    make : callable
        Takes nothing and returns a fresh iterator of ``X``, ``(X, y)`` or ``(X, y, weight)``,
        the same chunks at every call. It is shipped to the workers.
    parts : int, optional
        Without it the driver reads everything once and deals it like arrays. With it, for more
        than fits in memory, partition i is every ``parts``-th chunk from chunk i on, and costs
        one pass over the iterator.

    Raises
    ------
    GraphError
        If ``make`` is itself an iterator, which cannot be read again after a failure.

    Examples
    --------
    >>> len(iterable(lambda: ([[float(i)]] for i in range(3))).rows())
    3
    """
    refuse_iterator(make)
    if not callable(make):
        raise GraphError(
            f"{calling_site()} iterable",
            "a function that returns an iterator is needed",
            f"a {type(make).__name__}",
            "Pass lambda: iter(chunks).",
        )
    if parts is not None and (isinstance(parts, bool) or not isinstance(parts, int) or parts < 1):
        raise GraphError(f"{calling_site()} iterable", "parts must be an int >= 1", repr(parts))
    name = getattr(make, "__name__", type(make).__name__)
    return IterableSource(make, parts, f"iterable({name})")


def refuse_iterator(source: object) -> None:
    """Refuse what can be read only once.

    Raises
    ------
    GraphError
        For generators and other iterators.
    """
    if isinstance(source, Iterator):
        kind = type(source).__name__
        raise GraphError(
            f"{calling_site()} source",
            "a source must be readable again after a failure",
            f"a {kind}, which cannot be re-read",
            "Pass fl.data.iterable(make), where make is a function that returns one.",
        )
