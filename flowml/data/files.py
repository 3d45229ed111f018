"""Files through fsspec: finding them, cutting them at line ends, and naming places in them."""

from __future__ import annotations

import difflib
import glob
import lzma
import os
import posixpath
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, TypeAlias

import fsspec
from dask.base import tokenize
from fsspec.core import url_to_fs
from fsspec.utils import infer_compression

from flowml.errors import DataError

Path: TypeAlias = str | PathLike[str]

BLOCK_BYTES = 64 * 2**20
"""Nominal size of a byte range: large enough to parse at full speed, two fit in memory."""

CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class DataFile:
    """A file that was there when the source was declared.

    Attributes
    ----------
    url : str
        Absolute, with its protocol.
    shown : str
        The path as the user wrote it, for messages.
    size : int
        Bytes, before decompression.
    compression : str or None
        As fsspec infers it from the file name; None for a plain file, which can be cut.
    """

    url: str
    shown: str
    size: int
    compression: str | None

    def open(self) -> Any:
        """Open for reading decompressed bytes."""
        return fsspec.open(self.url, "rb", compression=self.compression).open()

    def content(self) -> bytes:
        """Read everything, decompressed.

        Raises
        ------
        DataError
            If the file cannot be read, or its compression is damaged.
        """
        return self.block(0, None)

    def block(self, start: int, stop: int | None) -> bytes:
        """Read the lines that start in [start, stop), whole.

        Parameters
        ----------
        start, stop : int or None
            Byte offsets; None is the end of the file.

        Notes
        -----
        A line that begins before ``stop`` and ends after it belongs here; one that begins before
        ``start`` belongs to the block before. So the blocks of a file hold each line once,
        without anybody having looked for line ends beforehand.
        """
        try:
            with self.open() as file:
                return _read_lines(file, start, stop)
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise DataError(
                self.shown,
                "the file must be readable",
                f"{type(error).__name__}: {error}",
                "Check its permissions and that it is whole.",
            ) from error

    def line_at(self, start: int) -> int:
        """Return the number (from 1) of the first line that starts at or after ``start``."""
        if start == 0:
            return 1
        with self.open() as file:
            seen, left = 1, start - 1
            while left > 0 and (piece := file.read(min(CHUNK_BYTES, left))):
                seen += piece.count(b"\n")
                left -= len(piece)
        return seen + 1

    def token(self) -> str:
        """Name the contents by path, size and time of change (or what the storage has for it)."""
        system, path = url_to_fs(self.url)
        return f"{self.url}-{system.ukey(path)}"


def find_files(path: Path, suffix: str = "") -> tuple[DataFile, ...]:
    """Find the files that a path, a glob or (with a suffix) a folder names.

    Parameters
    ----------
    path : str or path-like
        Anything that fsspec opens.
    suffix : str
        What files in a folder end in; empty where a folder is not accepted.

    Returns
    -------
    tuple of DataFile
        In natural order (part.2 before part.10).

    Raises
    ------
    DataError
        If there is no such file, naming close ones in its folder, or if one is empty.
    """
    given = os.fspath(path)
    system, root = url_to_fs(given)
    pattern = f"{root.rstrip('/')}/*{suffix}" if suffix and system.isdir(root) else root
    wild = pattern != root or (glob.has_magic(root) and not system.exists(root))
    found = sorted(system.glob(pattern), key=_natural) if wild else [root]
    found = [name for name in found if system.isfile(name)]
    if not found:
        raise _missing(system, root, _hide_login(given))
    return tuple(_described(system, name, given, wild) for name in found)


def byte_ranges(file: DataFile, block_bytes: int) -> tuple[tuple[int, int | None], ...]:
    """Cut a plain file in ranges of about equal size; a compressed one stays whole."""
    if file.compression is not None:
        return ((0, None),)
    count = max(1, -(-file.size // block_bytes))
    cuts = [file.size * i // count for i in range(count)]
    return tuple(zip(cuts, [*cuts[1:], None], strict=True))


def files_token(files: Sequence[DataFile], *options: object) -> str:
    """Return a hash of what the files are now and of how they are read."""
    return str(tokenize([file.token() for file in files], options))


def close_names(name: str, among: Sequence[str], limit: int = 3) -> list[str]:
    """Return the names that somebody who wrote ``name`` may have meant."""
    starts = [other for other in among if other.startswith(name) or name.startswith(other)]
    near = difflib.get_close_matches(name, among, limit, cutoff=0.6)
    return list(dict.fromkeys(starts + near))[:limit]


def _read_lines(file: Any, start: int, stop: int | None) -> bytes:
    if start > 0:
        file.seek(start - 1)
        skipped = len(file.readline()) - 1
        start += skipped
    if stop is None:
        return bytes(file.read())
    if start >= stop:
        return b""
    block = bytes(file.read(stop - start))
    return block if block.endswith(b"\n") else block + file.readline()


def _described(system: Any, name: str, given: str, wild: bool) -> DataFile:
    shown = _shown(name, given) if wild else given
    size = int(system.info(name)["size"])
    if size == 0:
        raise DataError(_hide_login(shown), "the file must have rows", "an empty file")
    url = str(system.unstrip_protocol(name))
    return DataFile(url, _hide_login(shown), size, infer_compression(name))


def _shown(name: str, given: str) -> str:
    folder = posixpath.dirname(given) if glob.has_magic(given) else given
    return name if glob.has_magic(folder) else posixpath.join(folder, posixpath.basename(name))


def _missing(system: Any, root: str, shown: str) -> DataError:
    folder, name = posixpath.split(root.rstrip("/"))
    where = posixpath.dirname(shown) or "."
    if system.isdir(root):
        return DataError(shown, "a file is needed", "a folder", "Name a file in it, or a glob.")
    if not system.isdir(folder):
        return DataError(
            shown,
            f"no such file: there is no folder {where}",
            "",
            "Paths are relative to where the driver was started.",
        )
    there = [posixpath.basename(str(p).rstrip("/")) for p in system.ls(folder, detail=False)]
    near = close_names(name, sorted(there))
    close = f"Close names there: {', '.join(near)}." if near else f"{len(there)} other files there."
    return DataError(shown, f"no such file (looked in {where})", "", close)


def _natural(name: str) -> list[tuple[int, str]]:
    pieces = re.split(r"([0-9]+)", name)
    return [(int(p), "") if i % 2 else (-1, p) for i, p in enumerate(pieces)]


def _hide_login(path: str) -> str:
    return re.sub(r"//[^/@]*@", "//***@", path)
