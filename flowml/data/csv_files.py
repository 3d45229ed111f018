"""CSV files, cut in byte ranges at line ends and parsed by pandas."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from flowml.data.convert import number_dtype, to_dtype
from flowml.data.csv_lines import (
    Lines,
    check_encoding,
    count_delimiters,
    fields_of,
    scan_lines,
)
from flowml.data.files import BLOCK_BYTES, DataFile, Path, close_names, files_token, find_files
from flowml.data.rows import Rows
from flowml.data.source import Unshipped
from flowml.data.text import Place, TextPartition, cut, is_compressed
from flowml.errors import DataError
from flowml.types import Array

SAMPLE_BYTES = 2**16
NEEDS_PANDAS = 'CSV files need pandas: pip install "flowml[dataframe]"'
NO_QUOTED_NEWLINES = "Newlines inside quotes are not supported: remove them, or use Parquet."


@dataclass(frozen=True)
class CsvFormat:
    """How the lines of a CSV file become rows.

    Attributes
    ----------
    names : tuple of str
        All fields of a line.
    wanted : tuple of int
        Positions of the feature columns.
    label : int or None
        Position of the label.
    """

    names: tuple[str, ...]
    wanted: tuple[int, ...]
    label: int | None
    dtype: np.dtype[Any]
    label_dtype: np.dtype[Any]
    encoding: str
    delimiter: str
    has_header: bool

    def count(self, block: bytes, place: Place) -> int:
        """Count the lines that hold something, the header left out."""
        lines = scan_lines(block, self.delimiter)
        return max(0, len(lines.starts) - self._header_lines(place))

    def parse(self, block: bytes, place: Place) -> Rows:
        """Parse a block.

        Raises
        ------
        DataError
            Naming ``file:line``, for bytes that are not text in this encoding, a line with too
            few or too many fields, and a field that is not a number.
        """
        check_encoding(block, self.encoding, place)
        lines = scan_lines(block, self.delimiter)
        skip = self._header_lines(place)
        if skip and len(lines.starts):
            self._check_header(block[: int(lines.stops[0])], place)
        self._check_fields(block, lines, place, skip)
        if len(lines.starts) <= skip:
            return self._rows(np.empty((0, len(self.wanted)), self.dtype), self._no_labels())
        frame = self._frame(block[int(lines.starts[skip]) :])
        if frame is None or len(frame) != len(lines.starts) - skip:
            raise _open_quote(block, lines, place)
        return self._convert(frame, lambda row: place.line(int(lines.numbers[row + skip])))

    def _frame(self, body: bytes) -> Any:
        """Return a DataFrame by position, or None where pandas finds no table."""
        pandas = import_pandas()
        used = sorted({*self.wanted, *(() if self.label is None else (self.label,))})
        try:
            return pandas.read_csv(
                BytesIO(body),
                header=None,
                names=range(len(self.names)),
                usecols=used,
                sep=self.delimiter,
                encoding=self.encoding,
                index_col=False,
                low_memory=False,
            )
        except pandas.errors.ParserError:
            return None

    def _convert(self, frame: Any, place: Callable[[int], str]) -> Rows:
        features = np.empty((len(frame), len(self.wanted)), self.dtype)
        for at, position in enumerate(self.wanted):
            features[:, at] = self._numbers(frame[position], self.dtype, place)
        if self.label is None:
            return self._rows(features, self._no_labels())
        return self._rows(features, self._numbers(frame[self.label], self.label_dtype, place))

    def _numbers(self, series: Any, dtype: np.dtype[Any], place: Callable[[int], str]) -> Array:
        pandas = import_pandas()
        name = self.names[series.name]
        if not pandas.api.types.is_numeric_dtype(series.dtype):
            made = pandas.to_numeric(series, errors="coerce")
            bad = np.asarray(made.isna() & series.notna())
            if bad.any():
                row = int(np.argmax(bad))
                raise DataError(
                    place(row),
                    f"column {name!r} must hold numbers",
                    repr(series[row])[:40],
                    "Name the columns that do: columns=[...].",
                )
            series = made
        return to_dtype(series.to_numpy(), dtype, lambda row: f"{place(row)}, column {name!r}")

    def _rows(self, features: Array, labels: Array) -> Rows:
        if self.label is None:
            return Rows((features,), single=True)
        return Rows((features, labels))

    def _no_labels(self) -> Array:
        return np.empty(0, self.label_dtype)

    def _header_lines(self, place: Place) -> int:
        return 1 if self.has_header and place.start == 0 else 0

    def _check_header(self, line: bytes, place: Place) -> None:
        names = fields_of(line, self.encoding, self.delimiter)
        if tuple(names) != self.names:
            raise DataError(
                f"{place.file.shown}:1",
                f"the header must be that of the first file, {self.names}",
                str(tuple(names)),
                "Files of one source need the same columns in the same order.",
            )

    def _check_fields(self, block: bytes, lines: Lines, place: Place, skip: int) -> None:
        delimiters = count_delimiters(block, self.delimiter, lines)
        wrong = np.flatnonzero(delimiters != len(self.names) - 1)
        for at in wrong[wrong >= skip]:
            line = block[int(lines.starts[at]) : int(lines.stops[at])]
            where = place.line(int(lines.numbers[at]))
            if line.count(b'"') % 2:
                raise _open_quote(block, lines, place)
            fields = len(fields_of(line, self.encoding, self.delimiter))
            if fields != len(self.names):
                raise DataError(where, f"{len(self.names)} fields are needed", str(fields))


@dataclass(frozen=True)
class CsvSource(Unshipped):
    """CSV files; dealt when compressed, else cut in byte ranges."""

    files: tuple[DataFile, ...]
    format: CsvFormat
    block_bytes: int
    name: str

    @property
    def dealt(self) -> bool:
        """Whether a file is compressed, so that it cannot be cut."""
        return is_compressed(self.files)

    def rows(self) -> Rows:
        """Read everything; the rows are kept."""
        return self._held

    @cached_property
    def _held(self) -> Rows:
        return Rows.concat([partition.read() for partition in self.partitions()])

    def partitions(self) -> tuple[TextPartition, ...]:
        """Return the byte ranges of all files."""
        return cut(self.files, self.format, self.block_bytes)

    def token(self) -> str:
        """Return a hash of path, size, time of change and options."""
        return f"csv-{files_token(self.files, self.format, self.block_bytes)}"


def csv(
    path: Path,
    label: str | int | None = None,
    columns: Sequence[str | int] | None = None,
    dtype: npt.DTypeLike = "float32",
    encoding: str = "utf-8",
    delimiter: str = ",",
    has_header: bool = True,
    *,
    label_dtype: npt.DTypeLike | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> CsvSource:
    """Give CSV files as a source.

    Parameters
    ----------
    path : str or path-like
        A file or a glob, on anything fsspec opens. Files that end in .gz, .bz2, .xz or the like
        cannot be cut: the driver reads them once and deals the rows.
    label : str or int, optional
        Name or position of the label's column.
    columns : sequence of str or int, optional
        Feature columns; by default all but the label.
    dtype : dtype
        Of the features. Empty fields and what pandas takes for missing (NA, NaN, null ...)
        become NaN.
    encoding : str
        One in which a newline is the byte 0x0A.
    delimiter : str
        One ASCII character.
    has_header : bool
        Whether the first line of each file names the columns; otherwise they are "0", "1", ...
    label_dtype : dtype, optional
        By default int64 where the labels in the first 64 KiB are all integers, else ``dtype``.
    block_bytes : int
        Size of a byte range; 64 MiB by default. Bytes.

    Raises
    ------
    ImportError
        Without pandas.
    DataError
        If there is no such file or column, or the options contradict each other.

    Notes
    -----
    Newlines inside quotes are not supported: a file could not be cut without reading it.
    """
    import_pandas()
    _check_options(encoding, delimiter)
    encoding = "utf-8" if codecs.lookup(encoding).name == "utf-8-sig" else encoding
    files = find_files(path)
    sample, names = _header(files[0], encoding, delimiter, has_header)
    where = files[0].shown
    at = None if label is None else _position(label, names, where)
    wanted = (
        [_position(c, names, where) for c in columns]
        if columns is not None
        else [i for i in range(len(names)) if i != at]
    )
    features = number_dtype(dtype, where)
    chosen = features if label_dtype is None else number_dtype(label_dtype, where)
    if label_dtype is None and at is not None and _all_integers(row[at] for row in sample):
        chosen = np.dtype(np.int64)
    made = CsvFormat(names, tuple(wanted), at, features, chosen, encoding, delimiter, has_header)
    return CsvSource(files, made, block_bytes, f"csv({where})")


def import_pandas() -> ModuleType:
    """Return pandas, or say how to get it."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError(NEEDS_PANDAS) from error
    return pandas  # type: ignore[no-any-return]


def _check_options(encoding: str, delimiter: str) -> None:
    if len(delimiter) != 1 or not delimiter.isascii() or delimiter in '\r\n"':
        raise DataError("csv", "delimiter must be one ASCII character", repr(delimiter))
    try:
        newline = "\n".encode("utf-8" if encoding == "utf-8-sig" else encoding)
    except LookupError:
        raise DataError("csv", "encoding must be one that Python knows", repr(encoding)) from None
    if newline != b"\n":
        raise DataError(
            "csv",
            "encoding must write a newline as the byte 0x0A",
            repr(encoding),
            "Convert the files to UTF-8: others cannot be cut at line ends.",
        )


def _header(
    file: DataFile, encoding: str, delimiter: str, has_header: bool
) -> tuple[list[list[str]], tuple[str, ...]]:
    with file.open() as opened:
        head = bytes(opened.read(SAMPLE_BYTES) + opened.readline())
    check_encoding(head, encoding, Place(file, 0))
    lines = [fields_of(line, encoding, delimiter) for line in head.split(b"\n") if line.strip()]
    if not lines:
        raise DataError(file.shown, "the file must have rows", "only blank lines")
    names = lines.pop(0) if has_header else [str(i) for i in range(len(lines[0]))]
    if len(set(names)) != len(names):
        raise DataError(f"{file.shown}:1", "column names must differ", str(names))
    return [line for line in lines if len(line) == len(names)], tuple(names)


def _open_quote(block: bytes, lines: Lines, place: Place) -> DataError:
    odd = (
        int(number)
        for number, start, stop in zip(lines.numbers, lines.starts, lines.stops, strict=True)
        if block.count(b'"', int(start), int(stop)) % 2
    )
    return DataError(
        place.line(next(odd, 0)),
        "each row must be one line with its quotes closed",
        "an open quote or a stray carriage return",
        NO_QUOTED_NEWLINES,
    )


def _position(column: str | int, names: Sequence[str], where: str) -> int:
    if isinstance(column, int) and -len(names) <= column < len(names):
        return column % len(names)
    if column in names:
        return names.index(str(column))
    near = ", ".join(close_names(str(column), names)) or ", ".join(names[:8])
    raise DataError(
        where,
        "a column that the file has is needed",
        repr(column),
        f"It has {len(names)}, such as: {near}.",
    )


def _all_integers(texts: Any) -> bool:
    found = [text.strip() for text in texts]
    return bool(found) and all(text.removeprefix("-").isdecimal() for text in found)
