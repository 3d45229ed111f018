"""The frame of an arrival: round trip, and every damage is found."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowml.protocol.arrival import FRAME_BYTES, Arrival
from flowml.protocol.failures import ProtocolError

FRAME = Arrival(bytes(range(16)), 7, 123, 3, stop=True, flip=61).encode()

arrivals = st.builds(
    Arrival,
    run=st.binary(min_size=16, max_size=16),
    incarnation=st.integers(0, 2**64 - 1),
    superstep=st.integers(0, 2**64 - 1),
    sender=st.integers(0, 2**31 - 1),
    stop=st.booleans(),
    abort=st.booleans(),
    flip=st.integers(-(2**63), 2**63 - 1),
    origin=st.integers(-1, 2**31 - 1),
    lost=st.booleans(),
)


@given(arrivals)
def test_round_trip(arrival: Arrival) -> None:
    frame = arrival.encode()
    assert len(frame) == FRAME_BYTES
    assert Arrival.decode(frame) == arrival


@pytest.mark.parametrize("bit", range(FRAME_BYTES * 8))
def test_every_flipped_bit_is_refused(bit: int) -> None:
    damaged = bytearray(FRAME)
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ProtocolError):
        Arrival.decode(damaged)


@pytest.mark.parametrize("frame", [b"", FRAME[:-1], FRAME + b"\0"])
def test_another_length_is_refused(frame: bytes) -> None:
    with pytest.raises(ProtocolError, match="a frame has 64 bytes"):
        Arrival.decode(frame)


def test_another_version_is_named_before_the_crc() -> None:
    other = FRAME[:4] + struct.pack("<H", 2) + FRAME[6:60]
    other += struct.pack("<I", zlib.crc32(other))
    with pytest.raises(ProtocolError, match=r"version 1, got version 2. Install the same flowml"):
        Arrival.decode(other)


def test_a_run_has_sixteen_bytes() -> None:
    with pytest.raises(ProtocolError, match="run must be 16 bytes, got 3"):
        Arrival(b"abc", 0, 0, 0)
