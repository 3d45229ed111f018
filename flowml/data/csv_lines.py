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
    """

    starts: Array
    stops: Array
    numbers: Array


def scan_lines(block: bytes, delimiter: str) -> Lines:
    """Find the lines of a block that hold something.

    Notes
    -----
    Lines of nothing but spaces and tabs are left out, as pandas leaves them out. Only lines that
    begin with one are looked at one by one.
    """
    text = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(text == ord("\n"))
    if not text.size:
        return Lines(ends, ends, ends)
    if not block.endswith(b"\n"):
        ends = np.append(ends, text.size)
    starts = np.concatenate(([0], ends[:-1] + 1))
    blank = "".join(c for c in " \t\r\n" if c != delimiter).encode()
    first = np.zeros(256, bool)
    first[list(blank)] = True
    solid = ~first[text[starts]]
    for at in np.flatnonzero(~solid):
        solid[at] = bool(block[starts[at] : ends[at]].strip(blank))
    return Lines(starts[solid], ends[solid], np.flatnonzero(solid))


def count_delimiters(block: bytes, delimiter: str, lines: Lines) -> Array:
    """Return how many delimiters each line has, those in quotes counted too."""
    places = np.flatnonzero(np.frombuffer(block, np.uint8) == ord(delimiter))
    return np.searchsorted(places, lines.stops) - np.searchsorted(places, lines.starts)


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
            f"{place.line(line)} byte {column}",
            f"text must be valid {encoding}",
            f"0x{block[error.start]:02X}",
            "Pass encoding='latin-1', or the encoding that the file was written in.",
        ) from error


def fields_of(line: bytes, encoding: str, delimiter: str) -> list[str]:
    """Split one line, with its quotes, as pandas would."""
    text = line.decode(encoding).removeprefix("\ufeff").rstrip("\r\n")
    return next(csv.reader([text], delimiter=delimiter), [])
