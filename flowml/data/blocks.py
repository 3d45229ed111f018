"""A whole source in blocks of rows, for evaluations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from flowml.data.rows import Rows
from flowml.data.source import Partition, Source


def evaluation_blocks(
    source: Source | Iterable[Rows | Partition], rows: int = 4096
) -> Iterator[Rows]:
    """Go through a source once, in its own order.

    Parameters
    ----------
    source : Source, or iterable of Rows or Partition
    rows : int
        Rows of a block; the last one of each partition may be shorter.

    Yields
    ------
    Rows
        Read-only blocks, none empty; they do not depend on the number of replicas.
    """
    if isinstance(source, Source):
        pieces: Iterable[Rows | Partition] = (
            [source.rows()] if source.dealt else source.partitions()
        )
    else:
        pieces = source
    for piece in pieces:
        held = piece if isinstance(piece, Rows) else piece.read()
        for start in range(0, len(held), rows):
            yield held.slice(start, min(start + rows, len(held)))
