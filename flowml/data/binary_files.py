"""NumPy archives and IDX files (the format of MNIST): read once on the driver, then dealt."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import Any
from zipfile import BadZipFile

import numpy as np

from flowml.data.files import DataFile, Path, close_names, files_token, find_files
from flowml.data.memory import MemoryPartition
from flowml.data.rows import Rows, rows_of
from flowml.data.source import Unshipped
from flowml.errors import DataError
from flowml.types import Array

IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


@dataclass(frozen=True)
class NpzReader:
    """Which arrays of an archive are the columns."""

    X: str
    label: str | None
    weight: str | None

    def __call__(self, files: tuple[DataFile, ...]) -> Rows:
        """Read the arrays."""
        (file,) = files
        try:
            archive = np.load(BytesIO(file.content()), allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(
                    file.shown,
                    "a .npz archive of named arrays is needed",
                    "one bare array",
                    "Pass fl.data.arrays(np.load(path)).",
                )
            found = [
                None if name is None else self._array(archive, name, file.shown)
                for name in (self.X, self.label, self.weight)
            ]
        except (BadZipFile, ValueError, EOFError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                file.shown,
                "the file must be a .npz archive of numbers",
                f"{type(error).__name__}: {error}",
            ) from error
        return rows_of(*found, where=file.shown)

    @staticmethod
    def _array(archive: Any, name: str, where: str) -> Array:
        if name not in archive.files:
            near = ", ".join(close_names(name, archive.files)) or ", ".join(archive.files)
            raise DataError(
                where,
                f"the archive must hold {name!r}",
                f"arrays such as {near}",
                "Name them: npz(path, X=..., label=...).",
            )
        return archive[name]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class IdxReader:
    """How IDX files become columns."""

    scale: float | None

    def __call__(self, files: tuple[DataFile, ...]) -> Rows:
        """Read the images, flattened, and the labels, if any, as int64."""
        images = read_idx(files[0])
        pixels = images.reshape(len(images), -1)
        if self.scale is not None:
            pixels = pixels.astype(np.float32)
            pixels *= np.float32(self.scale)
        if len(files) == 1:
            return rows_of(pixels, where=files[0].shown)
        labels = read_idx(files[1])
        if labels.dtype.kind in "iu":
            labels = labels.astype(np.int64)
        return rows_of(pixels, labels, where=f"{files[0].shown} and {files[1].shown}")


@dataclass(frozen=True)
class DriverFiles(Unshipped):
    """Files that the driver reads whole; their rows are dealt like arrays."""

    files: tuple[DataFile, ...]
    reader: Callable[[tuple[DataFile, ...]], Rows]
    name: str
    dealt: bool = True

    def rows(self) -> Rows:
        """Read everything; the rows are kept."""
        return self._held

    @cached_property
    def _held(self) -> Rows:
        return self.reader(self.files)

    def partitions(self) -> tuple[MemoryPartition, ...]:
        """Read everything, as one partition."""
        return (MemoryPartition(self.rows(), self.name),)

    def token(self) -> str:
        """Return a hash of path, size, time of change and options."""
        return f"files-{files_token(self.files, self.reader)}"


def npz(
    path: Path, X: str = "X", label: str | None = "y", weight: str | None = None
) -> DriverFiles:
    """Give arrays of a NumPy archive as a source.

    Parameters
    ----------
    path : str or path-like
        A file that ``np.savez`` wrote, on anything fsspec opens. Pickled objects are refused.
    X, label, weight : str
        Names of the arrays in it; None where there is no label or weight.

    Raises
    ------
    DataError
        If there is no such file; when read, if it lacks an array.
    """
    files = find_files(path)[:1]
    return DriverFiles(files, NpzReader(X, label, weight), f"npz({files[0].shown})")


def idx(images: Path, labels: Path | None = None, scale: float | None = None) -> DriverFiles:
    """Give IDX files (the format of MNIST), plain or compressed, as a source.

    Parameters
    ----------
    images : str or path-like
        Any number of dimensions; flattened to shape (n, pixels).
    labels : str or path-like, optional
        Integers become int64.
    scale : float, optional
        Such as 1/255: multiplies the pixels and makes them float32. Otherwise they keep the
        file's dtype.

    Raises
    ------
    DataError
        If there is no such file; when read, if it is no IDX file or has another length.

    References
    ----------
    LeCun, Cortes, Burges, "The MNIST database": magic number, big-endian sizes, values.
    """
    paths = (images,) if labels is None else (images, labels)
    files = tuple(find_files(path)[0] for path in paths)
    return DriverFiles(files, IdxReader(scale), f"idx({files[0].shown})")


def read_idx(file: DataFile) -> Array:
    """Return the array in an IDX file.

    Raises
    ------
    DataError
        If the magic number or the length is not that of an IDX file.
    """
    content = file.content()
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in IDX_TYPES:
        raise DataError(
            file.shown, "an IDX file begins with 00 00, a type and a rank", content[:4].hex(" ")
        )
    start = 4 + 4 * content[3]
    shape = tuple(int(n) for n in np.frombuffer(content[4:start], ">u4"))
    dtype = np.dtype(IDX_TYPES[content[2]])
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected or not shape:
        raise DataError(
            file.shown,
            f"an IDX file of shape {shape} has {expected} bytes",
            str(len(content)),
            "The file may be cut short.",
        )
    values = np.frombuffer(content, dtype, offset=start).reshape(shape)
    return values.astype(dtype.newbyteorder("="))
