"""Lines and fields of a block of CSV, found without parsing it."""

from __future__ import annotations

import csv
from dataclasses import dataclass

import numpy as np

from flowml.data.text import Place
from flowml.errors import DataError
from flowml.types import Array


@dataclass(frozen=True)
class Lines:
    """The lines of a block that hold something.

    Attributes
    ----------
    starts, stops : ndarray of int
        Byte offsets in the block.
    numbers : ndarray of int
        Which line of the block each one is, blank lines counted, from 0.
    delimiters : ndarray of int
        How many delimiters each line has, quoted ones counted too.
    """

    starts: Array
    stops: Array
    numbers: Array
    delimiters: Array


def scan_lines(block: bytes, delimiter: str) -> Lines:
    """Find the lines of a block that hold something, in three vectorised passes."""
    text = np.frombuffer(block, np.uint8)
    if not text.size:
        none = np.empty(0, np.intp)
        return Lines(none, none, none, none)
    ends = np.flatnonzero(text == ord("\n"))
    if not block.endswith(b"\n"):
        ends = np.append(ends, text.size)
    starts = np.concatenate(([0], ends[:-1] + 1))
    blank = np.zeros(256, bool)
    blank[[ord(c) for c in " \t\r\n" if c != delimiter]] = True
    solid = np.flatnonzero(np.add.reduceat(~blank[text], starts, dtype=np.intp))
    delimiters = np.add.reduceat(text == ord(delimiter), starts, dtype=np.intp)
    return Lines(starts[solid], ends[solid], solid, delimiters[solid])


def check_encoding(block: bytes, encoding: str, place: Place) -> None:
    """Refuse bytes that are not text in an encoding.

    Raises
    ------
    DataError
        Naming the line, the byte in it (from 1) and its value.
    """
    try:
        block.decode(encoding)
    except UnicodeDecodeError as error:
        line = block.count(b"\n", 0, error.start)
        column = error.start - block.rfind(b"\n", 0, error.start)
        raise DataError(
            f"{place.line(line)} byte {column}", f"text must be valid {encoding}",
            f"0x{block[error.start]:02X}",
            "Pass encoding='latin-1', or the encoding that the file was written in.",
        ) from error


def fields_of(line: bytes, encoding: str, delimiter: str) -> list[str]:
    """Split one line, with its quotes, as pandas would."""
    text = line.decode(encoding).removeprefix("\ufeff").rstrip("\r\n")
    return next(csv.reader([text], delimiter=delimiter), [])
