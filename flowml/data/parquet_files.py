"""Parquet files, read by row groups with pyarrow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from flowml.data.convert import label_dtype_of, number_dtype, to_dtype
from flowml.data.files import BLOCK_BYTES, DataFile, Path, close_names, files_token, find_files
from flowml.data.rows import Rows
from flowml.data.source import Unshipped
from flowml.errors import DataError
from flowml.types import Array

NEEDS_PYARROW = 'Parquet files need pandas and pyarrow: pip install "flowml[dataframe]"'


@dataclass(frozen=True)
class ParquetColumns:
    """Which columns are read, and as what."""

    wanted: tuple[str, ...]
    label: str | None
    dtype: np.dtype[Any]
    label_dtype: np.dtype[Any]


@dataclass(frozen=True)
class RowGroups:
    """Neighbouring row groups of a file."""

    file: DataFile
    groups: tuple[int, ...]
    rows: int
    columns: ParquetColumns

    @property
    def name(self) -> str:
        """The file and its row groups."""
        return f"{self.file.shown}[row groups {self.groups[0]}-{self.groups[-1]}]"

    def read(self) -> Rows:
        """Read the row groups.

        Raises
        ------
        DataError
            If the file is not Parquet, lacks a column, or has one that holds no numbers.
        """
        asked = self.columns
        names = [*asked.wanted, *([] if asked.label is None else [asked.label])]
        with open_parquet(self.file) as opened:
            _check_columns(names, opened.schema_arrow.names, self.file.shown)
            table = opened.read_row_groups(list(self.groups), columns=names)
        features = np.empty((table.num_rows, len(asked.wanted)), asked.dtype)
        for at, name in enumerate(asked.wanted):
            features[:, at] = self._numbers(table, name, asked.dtype)
        if asked.label is None:
            return Rows((features,), single=True)
        return Rows((features, self._numbers(table, asked.label, asked.label_dtype)))

    def _numbers(self, table: Any, name: str, dtype: np.dtype[Any]) -> Array:
        where = f"{self.name}, column {name!r}"
        values = np.asarray(table.column(name).to_numpy())
        if values.dtype.kind not in "biuf":
            raise _no_numbers(where, str(table.schema.field(name).type))
        return to_dtype(values, dtype, lambda row: f"{where}, row {row}")


@dataclass(frozen=True)
class ParquetSource(Unshipped):
    """Parquet files, in partitions of whole row groups."""

    files: tuple[DataFile, ...]
    columns: ParquetColumns
    block_bytes: int
    name: str
    dealt: bool = False

    def rows(self) -> Rows:
        """Read everything."""
        return Rows.concat([partition.read() for partition in self.partitions()])

    def partitions(self) -> tuple[RowGroups, ...]:
        """Return the row groups, small neighbours together; reads the files' footers once."""
        return self._cut

    @cached_property
    def _cut(self) -> tuple[RowGroups, ...]:
        return tuple(
            RowGroups(file, groups, rows, self.columns)
            for file in self.files
            for groups, rows in _packed(file, self.block_bytes)
        )

    def token(self) -> str:
        """Return a hash of path, size, time of change and options."""
        return f"parquet-{files_token(self.files, self.columns, self.block_bytes)}"


def parquet(
    path: Path,
    label: str | None = None,
    columns: Sequence[str] | None = None,
    dtype: npt.DTypeLike = "float32",
    *,
    label_dtype: npt.DTypeLike | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> ParquetSource:
    """Give Parquet files as a source.

    Parameters
    ----------
    path : str or path-like
        A file, a glob or a folder of ``*.parquet``, on anything fsspec opens.
    label : str, optional
        The label's column.
    columns : sequence of str, optional
        Feature columns; by default all but the label.
    dtype : dtype
        Of the features. Nulls become NaN.
    label_dtype : dtype, optional
        By default int64 for integers and booleans, else what the file has.
    block_bytes : int
        Row groups are put together up to this many bytes before compression; 64 MiB by default.

    Raises
    ------
    ImportError
        Without pyarrow.
    DataError
        If there is no such file or column, or a column holds no numbers.
    """
    files = find_files(path, ".parquet")
    where = files[0].shown
    with open_parquet(files[0]) as opened:
        schema = opened.schema_arrow
    wanted = [n for n in schema.names if n != label] if columns is None else list(columns)
    named = [*wanted, *([] if label is None else [label])]
    _check_columns(named, schema.names, where)
    stored = [_stored_dtype(schema, name, where) for name in named]
    chosen = np.dtype(np.int64) if label is None else label_dtype_of(stored[-1], where)
    asked = ParquetColumns(
        tuple(wanted),
        label,
        number_dtype(dtype, where),
        chosen if label_dtype is None else number_dtype(label_dtype, where),
    )
    return ParquetSource(files, asked, block_bytes, f"parquet({where})")


def open_parquet(file: DataFile) -> Any:
    """Open a Parquet file; its footer is read.

    Raises
    ------
    DataError
        If it is not a Parquet file, or cannot be read.
    """
    arrow, reader = import_parquet()
    try:
        return reader.ParquetFile(file.open(), pre_buffer=True)
    except (OSError, arrow.ArrowInvalid) as error:
        raise DataError(
            file.shown, "the file must be Parquet", f"{type(error).__name__}: {error}"
        ) from error


def import_parquet() -> tuple[ModuleType, ModuleType]:
    """Return pyarrow and pyarrow.parquet, or say how to get them."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(NEEDS_PYARROW) from error
    return pyarrow, pyarrow.parquet


def _packed(file: DataFile, block_bytes: int) -> list[tuple[tuple[int, ...], int]]:
    packs: list[tuple[tuple[int, ...], int]] = []
    filled = block_bytes
    with open_parquet(file) as opened:
        footer = opened.metadata
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        if filled + group.total_byte_size > block_bytes:
            packs.append(((number,), group.num_rows))
            filled = group.total_byte_size
        else:
            numbers, rows = packs.pop()
            packs.append(((*numbers, number), rows + group.num_rows))
            filled += group.total_byte_size
    return packs


def _stored_dtype(schema: Any, name: str, where: str) -> np.dtype[Any]:
    arrow, _ = import_parquet()
    stored = schema.field(name).type
    try:
        dtype: np.dtype[Any] = np.dtype(stored.to_pandas_dtype())
    except (NotImplementedError, TypeError) as error:
        raise _no_numbers(f"{where}, column {name!r}", str(stored)) from error
    if dtype.kind not in "biuf" or arrow.types.is_decimal(stored):
        raise _no_numbers(f"{where}, column {name!r}", str(stored))
    return dtype


def _no_numbers(where: str, kind: str) -> DataError:
    return DataError(
        where,
        "a column must hold numbers",
        kind,
        "Name the columns that do (columns=[...]), or convert it first.",
    )


def _check_columns(names: Sequence[str], there: Sequence[str], where: str) -> None:
    for name in names:
        if name not in there:
            near = ", ".join(close_names(name, there)) or ", ".join(there[:8])
            raise DataError(
                where,
                "a column that the file has is needed",
                repr(name),
                f"It has {len(there)}, such as: {near}.",
            )
