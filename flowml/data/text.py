"""Text files cut at line ends: what CSV and LIBSVM sources share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from flowml.data.files import DataFile, byte_ranges
from flowml.data.rows import Rows


@dataclass(frozen=True)
class Place:
    """Where a block begins, to name lines in messages."""

    file: DataFile
    start: int

    def line(self, index: int) -> str:
        """Return ``file:line`` of a line of the block, numbered from 0; counts lines only now."""
        return f"{self.file.shown}:{self.file.line_at(self.start) + index}"


class TextFormat(Protocol):
    """How the lines of a block become rows."""

    def parse(self, block: bytes, place: Place) -> Rows:
        """Parse whole lines."""

    def count(self, block: bytes, place: Place) -> int:
        """Count the rows that ``parse`` would give, without parsing."""


@dataclass(frozen=True)
class TextPartition:
    """The lines of a file that start in a byte range."""

    file: DataFile
    start: int
    stop: int | None
    format: TextFormat
    rows: int | None = None

    @property
    def name(self) -> str:
        """The file and the byte range."""
        stop = self.file.size if self.stop is None else self.stop
        return f"{self.file.shown}[{self.start}:{stop}]"

    @property
    def place(self) -> Place:
        """Where the range begins."""
        return Place(self.file, self.start)

    def read(self) -> Rows:
        """Read and parse the lines."""
        return self.format.parse(self.file.block(self.start, self.stop), self.place)

    def count(self) -> int:
        """Count the rows."""
        return self.format.count(self.file.block(self.start, self.stop), self.place)


def cut(
    files: Sequence[DataFile], text_format: TextFormat, block_bytes: int
) -> tuple[TextPartition, ...]:
    """Cut plain files in byte ranges; compressed ones stay whole."""
    return tuple(
        TextPartition(file, start, stop, text_format)
        for file in files
        for start, stop in byte_ranges(file, block_bytes)
    )


def is_compressed(files: Sequence[DataFile]) -> bool:
    """Tell whether a file cannot be cut, so that the source is dealt like arrays."""
    return any(file.compression is not None for file in files)
