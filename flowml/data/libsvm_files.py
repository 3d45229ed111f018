"""LIBSVM (svmlight) files, cut in byte ranges and parsed by scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from flowml.data.convert import number_dtype
from flowml.data.files import BLOCK_BYTES, DataFile, Path, files_token, find_files
from flowml.data.rows import Rows
from flowml.data.source import Unshipped
from flowml.data.text import Place, TextPartition, cut, is_compressed
from flowml.errors import DataError


@dataclass(frozen=True)
class LibsvmFormat:
    """How the lines of a LIBSVM file become rows.

    Attributes
    ----------
    n_features : int
        Columns of X; 0 while a scan has not told.
    """

    n_features: int
    dtype: np.dtype[Any]
    zero_based: bool

    def count(self, block: bytes, place: Place) -> int:
        """Count the lines that hold more than a comment."""
        return self.survey(block, place)[0]

    def survey(self, block: bytes, place: Place) -> tuple[int, int]:
        """Return the number of rows and the width of X that they need.

        Notes
        -----
        Only the last item of a line is looked at: indices ascend, which parsing checks.
        """
        rows = highest = 0
        for line in BytesIO(block):
            items = line.partition(b"#")[0].rsplit(None, 1)
            rows += bool(items)
            if len(items) < 2 or items[1].startswith(b"qid:"):
                continue
            index = items[1].partition(b":")[0]
            if not index.isdigit():
                raise self._fault(block, place)
            highest = max(highest, int(index) + self.zero_based)
        return rows, highest

    def parse(self, block: bytes, place: Place) -> Rows:
        """Parse a block.

        Raises
        ------
        DataError
            Naming ``file:line``, for an item that is not ``index:value`` and an index that is
            out of order or beyond ``n_features``.
        """
        if not any(line.partition(b"#")[0].strip() for line in BytesIO(block)):
            empty = csr_array((0, self.n_features), dtype=self.dtype)
            return Rows((empty, np.empty(0, self.dtype)))
        from sklearn.datasets import load_svmlight_file  # half of flowml's import time if above

        try:
            matrix, labels = load_svmlight_file(
                BytesIO(block),
                n_features=self.n_features,
                dtype=self.dtype,
                zero_based=self.zero_based,
            )
        except (ValueError, OverflowError) as error:
            raise self._fault(block, place) from error
        short = np.int32 if matrix.nnz < 2**31 and self.n_features < 2**31 else np.int64
        parts = (matrix.data, matrix.indices.astype(short), matrix.indptr.astype(short))
        return Rows((csr_array(parts, shape=matrix.shape), labels.astype(self.dtype)))

    def _fault(self, block: bytes, place: Place) -> DataError:
        for number, line in enumerate(BytesIO(block)):
            label, *items = line.partition(b"#")[0].split() or [b"0"]
            if not _is_number(label):
                return DataError(
                    place.line(number), "a line must begin with a number, the label", _shown(label)
                )
            found = self._item_fault(items, place.line, number, block)
            if found is not None:
                return found
        return DataError(place.file.shown, "the file must be LIBSVM text", "something else")

    def _item_fault(
        self, items: list[bytes], line: Any, number: int, block: bytes
    ) -> DataError | None:
        before = -1
        for item in items:
            index, colon, value = item.partition(b":")
            if index == b"qid":
                continue
            if not (colon and index.isdigit() and _is_number(value)):
                return DataError(line(number), "expected 'index:value'", _shown(item))
            at = int(index)
            if at == 0 and not self.zero_based:
                return DataError(
                    line(number), "feature indices start at 1", "0", "Pass zero_based=True."
                )
            if at <= before:
                return DataError(
                    line(number), "feature indices must ascend", f"{at} after {before}"
                )
            if self.n_features and at + self.zero_based > self.n_features:
                return self._too_wide(line(number), at, block)
            before = at
        return None

    def _too_wide(self, where: str, index: int, block: bytes) -> DataError:
        widest = max(
            int(item.partition(b":")[0]) + self.zero_based
            for line in BytesIO(block)
            for item in line.partition(b"#")[0].split()[-1:]
            if item.partition(b":")[0].isdigit()
        )
        return DataError(
            where,
            f"feature indices must fit n_features={self.n_features}",
            f"feature {index}",
            f"Train and test may have different widths: pass n_features={widest}.",
        )


@dataclass(frozen=True)
class LibsvmSource(Unshipped):
    """LIBSVM files; dealt when compressed, else cut in byte ranges."""

    files: tuple[DataFile, ...]
    format: LibsvmFormat
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
        return Rows.concat([partition.read() for partition in self._cut])

    def partitions(self) -> tuple[TextPartition, ...]:
        """Return the byte ranges of all files, after one scan if the width is not known."""
        return self._cut

    @cached_property
    def _cut(self) -> tuple[TextPartition, ...]:
        partitions = cut(self.files, self.format, self.block_bytes)
        if self.format.n_features:
            return partitions
        found = [self.format.survey(p.file.block(p.start, p.stop), p.place) for p in partitions]
        made = replace(self.format, n_features=max(1, *(width for _, width in found)))
        return tuple(
            replace(p, format=made, rows=rows)
            for p, (rows, _) in zip(partitions, found, strict=True)
        )

    def token(self) -> str:
        """Return a hash of path, size, time of change and options."""
        return f"libsvm-{files_token(self.files, self.format, self.block_bytes)}"


def libsvm(
    path: Path,
    n_features: int | None = None,
    dtype: npt.DTypeLike = "float64",
    zero_based: bool = False,
    *,
    block_bytes: int = BLOCK_BYTES,
) -> LibsvmSource:
    """Give LIBSVM files as a source of CSR rows and labels.

    Parameters
    ----------
    path : str or path-like
        A file or a glob, on anything fsspec opens. Files that end in .gz, .bz2, .xz or the like
        cannot be cut: the driver reads them once and deals the rows.
    n_features : int, optional
        Columns of X. Without it the driver scans the files once, which also counts the rows.
        Train and test files need the same number.
    dtype : dtype
        Floating-point, of X and of the labels.
    zero_based : bool
        Whether the first feature is number 0 in the file.
    block_bytes : int
        Size of a byte range; 64 MiB by default. Bytes.

    Raises
    ------
    DataError
        If there is no such file, or an option makes no sense.
    """
    files = find_files(path)
    where = files[0].shown
    kind = number_dtype(dtype, where)
    if kind.kind != "f":
        raise DataError(where, "dtype must be floating-point", str(kind))
    if n_features is not None and n_features < 1:
        raise DataError(where, "n_features must be >= 1", str(n_features))
    made = LibsvmFormat(n_features or 0, kind, zero_based)
    return LibsvmSource(files, made, block_bytes, f"libsvm({where})")


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _shown(item: bytes) -> str:
    return repr(item[:40].decode("ascii", "replace"))
