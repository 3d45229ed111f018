"""Frames of tables: what goes in comes out; what is damaged is refused whole, whatever it says."""

from __future__ import annotations

import random
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hn

from flowml.protocol.failures import ProtocolError
from flowml.protocol.table_server import TableServer
from flowml.protocol.table_wire import (
    ACT,
    DELIVER,
    DTYPES,
    HEAD,
    HEAD_BYTES,
    ITEM,
    READ,
    REPLY,
    REQUEST,
    Act,
    Frame,
    Item,
)
from flowml.types import Array

RUN = b"0123456789abcdef"
LIMIT = 1 << 16
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hn.arrays(dtype, hn.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)
ITEMS = st.builds(
    Item,
    number=st.integers(0, 2**16 - 1),
    version=st.integers(0, 2**32 - 1),
    staleness=st.integers(0, 2**32 - 1),
    examples=st.floats(allow_nan=False),
    weight=st.floats(allow_nan=False),
    arrays=st.lists(ARRAYS, max_size=3).map(tuple),
)
ACTS = st.builds(
    Act,
    kind=st.sampled_from([READ, DELIVER]),
    step=st.integers(0, 2**32 - 1),
    place=st.integers(0, 255),
    event=st.integers(0, 2**32 - 1),
    items=st.lists(ITEMS, max_size=3).map(tuple),
)


def plain(frame: Frame) -> object:
    """Return a frame with bytes instead of arrays, to be compared."""

    def told(array: Array) -> object:
        return array.dtype.str, array.shape, array.tobytes()

    acts = [
        (a[:4], [(i[:5], [told(array) for array in i.arrays]) for i in a.items]) for a in frame.acts
    ]
    head = frame.kind, frame.run, frame.incarnation, frame.writer, frame.seq
    return head, acts, frame.flags, frame.known


@given(
    st.sampled_from([REQUEST, REPLY]),
    st.integers(1, 2**63),
    st.integers(0, 2**32 - 1),
    st.lists(ACTS, max_size=4).map(tuple),
)
@settings(max_examples=200)
def test_what_goes_in_comes_out(kind: int, seq: int, writer: int, acts: tuple[Act, ...]) -> None:
    frame = Frame(kind, RUN, 3, writer, seq, acts, 7, seq - 1)
    content = frame.encode()
    assert plain(Frame.decode(content, len(content))) == plain(frame)


def test_arrays_are_read_only_views_of_the_frame() -> None:
    sent = np.arange(1000.0)
    content = Frame(REPLY, RUN, 1, 0, 1, (Act(READ, items=(Item(0, arrays=(sent,)),)),)).encode()
    (array,) = Frame.decode(content, LIMIT).acts[0].items[0].arrays
    assert np.shares_memory(array, np.frombuffer(content, np.uint8))
    assert not array.flags.writeable
    assert array.ctypes.data % 8 == np.frombuffer(content, np.uint8).ctypes.data % 8


def test_big_endian_and_strided_arrays_are_sent_by_value() -> None:
    big, strided = np.arange(4, dtype=">f4"), np.arange(10)[::3]
    act = Act(DELIVER, items=(Item(0, arrays=(big, strided)),))
    found = Frame.decode(Frame(REQUEST, RUN, 1, 0, 1, (act,)).encode(), LIMIT)
    first, second = found.acts[0].items[0].arrays
    assert first.dtype == np.dtype("<f4")
    np.testing.assert_array_equal(first, big)
    np.testing.assert_array_equal(second, strided)


@pytest.mark.parametrize("array", [np.array([None]), np.array(["a"]), np.zeros(1, "M8[s]")])
def test_other_dtypes_are_not_sent(array: Array) -> None:
    act = Act(DELIVER, items=(Item(0, arrays=(array,)),))
    with pytest.raises(ProtocolError, match="known dtype"):
        Frame(REQUEST, RUN, 1, 0, 1, (act,)).encode()


def sealed(head: bytes, body: bytes) -> bytes:
    """Return a frame whose CRC is right, whatever it says."""
    return head + struct.pack("<I", zlib.crc32(body, zlib.crc32(head))) + body


def head(length: int, acts: int = 1, kind: int = REQUEST, seq: int = 1, known: int = 0) -> bytes:
    """Return a head."""
    return HEAD.pack(b"flTA", 1, kind, RUN, 1, seq, known, length, 0, 0, acts)


ONE_ACT = ACT.pack(DELIVER, 0, 1, 0, 0)
ONE_ITEM = ITEM.pack(0, 1, 0, 0, 0.0, 0.0)
HUGE = struct.pack("<BB6xQQ", 11, 2, 2**62, 2**62)
LYING = {
    "a body that is not there": head(2**40) + bytes(4),
    "millions of acts": sealed(head(0, 2**32 - 1), b""),
    "more items than there are": sealed(head(ACT.size), ACT.pack(DELIVER, 0, 65535, 0, 0)),
    "an array of 2**127 bytes": sealed(
        head(ACT.size + ITEM.size + len(HUGE)), ONE_ACT + ONE_ITEM + HUGE
    ),
    "an unknown dtype": sealed(
        head(ACT.size + ITEM.size + 8), ONE_ACT + ONE_ITEM + struct.pack("<BB6x", 99, 0)
    ),
    "too many axes": sealed(
        head(ACT.size + ITEM.size + 8), ONE_ACT + ONE_ITEM + struct.pack("<BB6x", 0, 200)
    ),
    "an unknown act": sealed(head(ACT.size), ACT.pack(0, 0, 0, 0, 0)),
    "something behind the last act": sealed(head(8, 0), bytes(8)),
    "an unknown kind": sealed(head(0, 0, kind=9), b""),
    "number 0": sealed(head(0, 0, seq=0), b""),
    "replies that are not made yet": sealed(head(0, 0, seq=4, known=4), b""),
}


@pytest.mark.parametrize("name", LYING)
def test_lies_with_a_right_checksum_are_refused(name: str) -> None:
    tracemalloc.start()
    with pytest.raises(ProtocolError):
        Frame.decode(LYING[name], LIMIT)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < LIMIT


def test_a_frame_over_the_limit_is_not_looked_at() -> None:
    content = Frame(REQUEST, RUN, 1, 0, 1).encode()
    assert Frame.decode(content, len(content))
    with pytest.raises(ProtocolError, match="between"):
        Frame.decode(content, len(content) - 1)


class Untouched:
    """Tables to which nothing may happen."""

    stop = 0

    def may(self, writer: int, act: Act) -> bool:
        raise AssertionError(f"{writer} asks for {act}")

    def apply(self, writer: int, act: Act) -> Act:
        raise AssertionError(f"{writer} does {act}")


def mutated(rng: random.Random, content: bytes) -> bytes:
    """Return something else than some bytes: cut, grown, flipped, spliced, random, resealed."""
    how = rng.randrange(6)
    if how == 0:
        return content[: rng.randrange(len(content))]
    if how == 1:
        return content + rng.randbytes(rng.randint(1, 64))
    if how == 2:
        return rng.randbytes(rng.randrange(2 * len(content)))
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 20))):
        changed[rng.randrange(len(changed))] ^= rng.randint(1, 255)
    if how == 3:
        at = rng.randrange(len(changed))
        changed[at:at] = rng.randbytes(rng.choice((1, 8)))
    if how == 4:  # the checksum is right, so that all else is looked at
        body = bytes(changed[HEAD_BYTES:])
        return sealed(head(len(body), rng.choice((1, 2, 9))), body)
    return bytes(changed)


def test_a_hundred_thousand_damaged_frames_do_nothing() -> None:
    """Of those that are resealed some may be frames: the bytes of an array are anything."""
    rng = random.Random(5)
    items = (Item(1, 2, 0, 32.0, 1.0, (np.arange(40.0), np.arange(3))), Item(2))
    content = Frame(REQUEST, RUN, 1, 0, 1, (Act(DELIVER, 4, 0, 0, items), Act(READ, 5))).encode()
    server = TableServer(RUN, 1, Untouched(), range(2))
    refused = passed = 0
    tracemalloc.start()
    for _ in range(100_000):
        changed = mutated(rng, content)
        if changed == content:
            continue
        try:
            frame = Frame.decode(changed, LIMIT)
        except ProtocolError:
            refused += 1
            continue
        passed += 1
        assert sum(a.nbytes for act in frame.acts for i in act.items for a in i.arrays) <= LIMIT
        assert zlib.crc32(changed[HEAD_BYTES:], zlib.crc32(changed[: HEAD.size])) == int.from_bytes(
            changed[HEAD.size : HEAD_BYTES], "little"
        )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"\n{refused} refused, {passed} resealed frames read, {peak} bytes at most")
    assert refused > 85_000
    assert peak < 16 * LIMIT
    assert server.done() == {0: 0, 1: 0}
