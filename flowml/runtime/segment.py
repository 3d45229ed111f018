"""Memory that the processes of one host share: one mapping, known by a file descriptor.

The descriptor travels over a unix socket (host_link.py). On Linux it is a memfd, whose pages are
all there before anyone maps it and whose size is sealed: a peer that could truncate it would kill
every reader with SIGBUS. Where memfd is missing it is a temporary file without a name.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flowml.errors import PlanError
from flowml.types import Array

ALIGNMENT = 64
"""Bytes of a cache line: every view begins on one."""

_WHERE = "shared segment"
_CHUNK = 1 << 20
_MEMFD = sys.platform == "linux" and hasattr(os, "memfd_create")
_FULL = (errno.ENOSPC, errno.ENOMEM, errno.EFBIG, errno.EDQUOT)


class Segment:
    """A range of zeroed bytes, shared or private; made by ``create``, ``attach`` or ``local``.

    Attributes
    ----------
    nbytes : int

    Notes
    -----
    ``close`` closes the descriptor at once. The memory is unmapped when the last view of it has
    gone, since a view must never point to nothing; before Python 3.13 the mapping keeps a
    descriptor of its own until then. Every process counts the whole mapping in its RSS.
    """

    def __init__(self, memory: memoryview, nbytes: int, fd: int | None) -> None:
        self.nbytes = nbytes
        self._memory: memoryview | None = memory
        self._fd = fd

    @classmethod
    def create(cls, nbytes: int, reserved: int | None = None) -> Segment:
        """Return a new shared segment whose pages are all allocated, or the first of them.

        Parameters
        ----------
        reserved : int, optional
            Bytes that are there from the start; the rest are addresses until ``reserve``.

        Raises
        ------
        PlanError
            ``nbytes`` is not positive, or the host has not so much memory; with both numbers.
        """
        there = nbytes if reserved is None else reserved
        _check_fits(there)
        fd = _open()
        try:
            os.ftruncate(fd, nbytes)
            _allocate(fd, 0, there)
            if _MEMFD:
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _seals())
            return cls(_map(fd, nbytes), nbytes, fd)
        except BaseException as error:
            os.close(fd)
            if isinstance(error, MemoryError) or getattr(error, "errno", None) in _FULL:
                raise _too_large(there, memory_available()) from error
            raise

    @classmethod
    def attach(cls, fd: int, nbytes: int) -> Segment:
        """Map a segment that a peer created, and own its descriptor from here on.

        Raises
        ------
        PlanError
            It has another size, or could still change its size; ``fd`` is closed then too.
        """
        try:
            _check_attached(fd, nbytes)
            return cls(_map(fd, nbytes), nbytes, fd)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def local(cls, nbytes: int, reserved: int | None = None) -> Segment:
        """Return private memory with the same interface, for a domain of one process."""
        _check_fits(nbytes if reserved is None else reserved)
        raw = np.zeros(nbytes + ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        return cls(raw[start : start + nbytes].data, nbytes, None)

    def reserve(self, start: int, nbytes: int) -> None:
        """Allocate the pages of a range, which may be there in part.

        Raises
        ------
        PlanError
            The host has not so much memory; with both numbers.
        """
        if self._fd is None or nbytes <= 0:
            return  # private memory comes when it is touched
        _check_fits(nbytes)
        try:
            _allocate(self._fd, start, nbytes)
        except OSError as error:
            if error.errno in _FULL:
                raise _too_large(nbytes, memory_available()) from error
            raise

    @property
    def fd(self) -> int:
        """The descriptor to send to a peer.

        Raises
        ------
        PlanError
            The segment is private or closed.
        """
        if self._fd is None:
            raise PlanError(_WHERE, "must be shared and open to have a descriptor")
        return self._fd

    def view(self, offset: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Return an array on the segment's own memory.

        Parameters
        ----------
        offset : int
            In bytes, a multiple of 64.

        Returns
        -------
        ndarray of ``shape`` and ``dtype``, C order, writable

        Raises
        ------
        PlanError
            The range is not inside the segment, not aligned, or the segment is closed.
        """
        if self._memory is None:
            raise PlanError(_WHERE, "must be open to be viewed")
        kind = np.dtype(dtype)
        end = offset + int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        if offset < 0 or offset % ALIGNMENT or end > self.nbytes:
            required = f"a view must begin at a multiple of {ALIGNMENT} and end by {self.nbytes}"
            raise PlanError(_WHERE, required, f"bytes {offset} to {end}")
        return np.ndarray(shape, kind, self._memory, offset)

    def close(self) -> None:
        """Close the descriptor and let go of the memory; harmless when repeated."""
        fd, self._fd, self._memory = self._fd, None, None
        if fd is not None:
            os.close(fd)


def memory_available() -> int | None:
    """Return how many bytes this host, or this container, can still give; None when unknown."""
    known = [free for free in (_host_free(), _container_free()) if free is not None]
    return min(known, default=None)


def _host_free(table: str = "/proc/meminfo") -> int | None:
    try:
        lines = Path(table).read_text().splitlines()
    except OSError:
        return None
    sizes = dict(line.split(":", 1) for line in lines if ":" in line)
    available = sizes.get("MemAvailable", "").split()
    return int(available[0]) * 1024 if available else None


def _container_free(group: str = "/sys/fs/cgroup") -> int | None:
    """Return what version 2 of control groups leaves; cache that can be dropped counts as free."""
    try:
        limit = Path(group, "memory.max").read_text().strip()
        used = int(Path(group, "memory.current").read_text())
        table = Path(group, "memory.stat").read_text().split()
    except OSError:
        return None
    cache = int(table[table.index("inactive_file") + 1]) if "inactive_file" in table else 0
    return None if limit == "max" else max(int(limit) - used + cache, 0)


def _check_fits(nbytes: int) -> None:
    """Refuse before allocating: fallocate on a memfd would go on until the kernel kills us."""
    if nbytes < 1:
        raise PlanError(_WHERE, "size must be at least 1 byte", str(nbytes))
    available = memory_available()
    if available is not None and nbytes > available:
        raise _too_large(nbytes, available)


def _too_large(nbytes: int, available: int | None) -> PlanError:
    left = "unknown" if available is None else f"{available / 2**20:,.0f} MiB"
    return PlanError(
        _WHERE,
        f"needs {nbytes / 2**20:,.0f} MiB of memory on this host",
        f"{left} available",
        "Use fewer replicas a host, a smaller table or a larger host.",
        nbytes=nbytes,
        available=available,
    )


def _open() -> int:
    if _MEMFD:
        return os.memfd_create("flowml", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    with tempfile.TemporaryFile(prefix="flowml-") as file:
        return os.dup(file.fileno())


def _allocate(fd: int, start: int, nbytes: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, start, nbytes)
        return
    zeros = bytes(min(nbytes, _CHUNK))  # a hole would turn into SIGBUS when the disk is full
    written = 0
    while written < nbytes:
        written += os.pwrite(fd, zeros[: nbytes - written], start + written)


def _seals() -> int:
    return fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def _check_attached(fd: int, nbytes: int) -> None:
    # Seals first: only a size that is sealed stays what fstat says.
    if _MEMFD:
        sealed = _read_seals(fd)
        if sealed & _seals() != _seals():
            raise PlanError(_WHERE, "must be sealed against a change of size", f"seals {sealed}")
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink or status.st_uid != os.getuid():
        raise PlanError(_WHERE, "must be an own file without a name", f"mode {status.st_mode:o}")
    if status.st_size != nbytes:
        raise PlanError(_WHERE, f"must have {nbytes} bytes", str(status.st_size))


def _read_seals(fd: int) -> int:
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return 0  # no memfd at all


def _map(fd: int, nbytes: int) -> memoryview:
    if sys.version_info >= (3, 13):
        return memoryview(mmap.mmap(fd, nbytes, trackfd=False))
    return memoryview(mmap.mmap(fd, nbytes))
