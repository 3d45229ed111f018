"""The shared segment: size, seals, views, and what closing means."""

from __future__ import annotations

import errno
import fcntl
import gc
import mmap
import os
import tempfile
from contextlib import suppress

import numpy as np
import pytest

from flowml.errors import PlanError
from flowml.runtime import segment as module
from flowml.runtime.segment import Segment, memory_available

NBYTES = 3 * mmap.PAGESIZE


def open_files() -> int:
    """Return the number of descriptors of files without a name."""
    gc.collect()
    found = 0
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that lists the folder
            found += os.readlink(f"/proc/self/fd/{number}").endswith("(deleted)")
    return found


@pytest.mark.parametrize("make", [Segment.create, Segment.local])
def test_views_are_zeroed_aligned_and_share_memory(make: object) -> None:
    segment = make(NBYTES)  # type: ignore[operator]
    one = segment.view(128, (4, 3), np.float64)
    two = segment.view(128, (12,), np.float64)
    assert one.ctypes.data % 64 == 0
    assert not one.any()
    one[1, 2] = 5
    assert two[5] == 5
    assert segment.view(0, (NBYTES,), np.uint8).flags.writeable
    segment.close()


@pytest.mark.parametrize("offset", [-64, 8, NBYTES - 64, NBYTES])
def test_views_outside_or_unaligned_are_refused(offset: int) -> None:
    segment = Segment.create(NBYTES)
    with pytest.raises(PlanError, match="a view must begin at a multiple of 64 and end by"):
        segment.view(offset, (9,), np.float64)
    segment.close()


def test_attached_memory_is_the_same_memory() -> None:
    first = Segment.create(NBYTES)
    second = Segment.attach(os.dup(first.fd), NBYTES)
    first.view(0, (2,), np.int64)[1] = -7
    assert list(second.view(0, (2,), np.int64)) == [0, -7]
    first.close()
    second.close()


def test_size_is_sealed() -> None:
    segment = Segment.create(NBYTES)
    for size in (0, 2 * NBYTES):
        with pytest.raises(PermissionError):
            os.ftruncate(segment.fd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(segment.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    assert os.fstat(segment.fd).st_blocks * 512 >= NBYTES  # the pages are there
    segment.close()


@pytest.mark.parametrize("seals", [None, 0, fcntl.F_SEAL_SHRINK])
def test_what_could_change_its_size_is_refused(seals: int | None) -> None:
    if seals is None:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    else:
        fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, NBYTES)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    with pytest.raises(PlanError, match="sealed against a change of size"):
        Segment.attach(fd, NBYTES)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_another_size_is_refused() -> None:
    segment = Segment.create(NBYTES)
    with pytest.raises(PlanError, match=f"must have {NBYTES + 1} bytes, got {NBYTES}"):
        Segment.attach(os.dup(segment.fd), NBYTES + 1)
    segment.close()


def test_closing_keeps_views_alive_and_then_frees_everything() -> None:
    before = open_files()
    segment = Segment.create(NBYTES)
    view = segment.view(0, (4,), np.int32)
    segment.close()
    segment.close()
    view[3] = 9
    assert list(view) == [0, 0, 0, 9]
    with pytest.raises(PlanError, match="open to be viewed"):
        segment.view(0, (1,), np.int8)
    with pytest.raises(PlanError, match="open to have a descriptor"):
        _ = segment.fd
    del view
    assert open_files() == before


def test_private_memory_has_no_descriptor() -> None:
    segment = Segment.local(NBYTES)
    with pytest.raises(PlanError, match="must be shared and open"):
        _ = segment.fd


@pytest.mark.parametrize("make", [Segment.create, Segment.local])
@pytest.mark.parametrize("nbytes", [0, 1 << 60])
def test_impossible_sizes_are_refused_before_allocating(make: object, nbytes: int) -> None:
    words = "at least 1 byte, got 0" if not nbytes else "1,099,511,627,776 MiB .* MiB available"
    with pytest.raises(PlanError, match=words):
        make(nbytes)  # type: ignore[operator]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), MemoryError()])
def test_a_full_host_is_told_with_both_numbers(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, offset: int, length: int) -> None:
        raise error

    before = open_files()
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(
        PlanError, match=r"MiB of memory on this host, got .* MiB available"
    ) as full:
        Segment.create(1 << 20)
    assert full.value.fields["nbytes"] == 1 << 20
    assert open_files() == before


def test_other_errors_pass_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OSError, match="broken"):
        Segment.create(NBYTES)


def test_without_memfd_it_is_a_file_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MEMFD", False)
    monkeypatch.delattr(os, "posix_fallocate")
    first = Segment.create(2 * module._CHUNK + 100)
    assert os.fstat(first.fd).st_nlink == 0
    assert os.fstat(first.fd).st_blocks * 512 >= first.nbytes
    second = Segment.attach(os.dup(first.fd), first.nbytes)
    second.view(0, (1,), np.int64)[0] = 3
    assert first.view(0, (1,), np.int64)[0] == 3
    first.close()
    second.close()


def test_a_file_with_a_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MEMFD", False)
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(NBYTES)
        with pytest.raises(PlanError, match="an own file without a name"):
            Segment.attach(os.dup(file.fileno()), NBYTES)


def test_available_memory_is_the_smaller_of_host_and_container(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "meminfo"  # type: ignore[operator]
    table.write_text("MemTotal: 9000 kB\nMemAvailable: 4000 kB\n")
    assert module._host_free(str(table)) == 4000 * 1024
    assert module._host_free(str(table) + "x") is None
    group = str(tmp_path)
    assert module._container_free(group) is None
    (tmp_path / "memory.max").write_text("1000\n")  # type: ignore[operator]
    (tmp_path / "memory.current").write_text("900\n")  # type: ignore[operator]
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 300\n")  # type: ignore[operator]
    assert module._container_free(group) == 400
    (tmp_path / "memory.max").write_text("max\n")  # type: ignore[operator]
    assert module._container_free(group) is None
    monkeypatch.setattr(module, "_host_free", lambda: 50)
    monkeypatch.setattr(module, "_container_free", lambda: 20)
    assert memory_available() == 20


# -- pages that come later ---------------------------------------------------------------------


def blocks(segment: Segment) -> int:
    """Return the bytes of pages that are there."""
    return os.fstat(segment.fd).st_blocks * 512


def test_only_what_is_reserved_is_there() -> None:
    page = mmap.PAGESIZE
    segment = Segment.create(1000 * page, reserved=2 * page)
    assert (segment.nbytes, blocks(segment)) == (1000 * page, 2 * page)
    segment.reserve(2 * page, 3 * page)
    assert blocks(segment) == 5 * page
    segment.reserve(4 * page + 8, page)  # in part there already
    assert blocks(segment) == 6 * page
    segment.reserve(900 * page, 0)
    assert blocks(segment) == 6 * page
    segment.close()


def test_what_lies_there_stays_when_more_comes() -> None:
    segment = Segment.create(64 * mmap.PAGESIZE, reserved=mmap.PAGESIZE)
    first = segment.view(0, (mmap.PAGESIZE,), np.uint8)
    first[:] = 7
    segment.reserve(0, 64 * mmap.PAGESIZE)
    assert (first == 7).all()
    rest = segment.view(mmap.PAGESIZE, (63 * mmap.PAGESIZE,), np.uint8)
    assert not rest.any()
    second = Segment.attach(os.dup(segment.fd), segment.nbytes)
    rest[-1] = 9
    assert second.view(segment.nbytes - 64, (64,), np.uint8)[63] == 9
    segment.close()
    second.close()


def test_addresses_may_be_more_than_the_host_has_but_not_the_pages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "memory_available", lambda: 100 << 20)
    segment = Segment.create(1 << 40, reserved=1 << 20)
    with pytest.raises(PlanError, match=r"needs 200 MiB of memory .* 100 MiB available") as full:
        segment.reserve(1 << 20, 200 << 20)
    assert (full.value.nbytes, full.value.available) == (200 << 20, 100 << 20)
    assert blocks(segment) == 1 << 20
    segment.reserve(1 << 20, 1 << 20)
    assert blocks(segment) == 2 << 20
    segment.close()


def test_a_host_that_turns_out_to_be_full_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    segment = Segment.create(NBYTES, reserved=mmap.PAGESIZE)

    def refuse(fd: int, offset: int, length: int) -> None:
        raise OSError(code, "no")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    code = errno.ENOSPC
    with pytest.raises(PlanError, match="of memory on this host"):
        segment.reserve(mmap.PAGESIZE, mmap.PAGESIZE)
    code = errno.EIO
    with pytest.raises(OSError, match="no"):
        segment.reserve(mmap.PAGESIZE, mmap.PAGESIZE)
    segment.close()


def test_private_memory_comes_when_it_is_touched() -> None:
    segment = Segment.local(1 << 30, reserved=64)
    segment.reserve(0, 1 << 30)
    view = segment.view((1 << 30) - 64, (8,), np.float64)
    view[:] = 2.0
    assert view.sum() == 16.0
    segment.close()
    segment.reserve(0, 64)  # harmless when closed
