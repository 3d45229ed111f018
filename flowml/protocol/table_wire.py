"""What a replica of another host and the one that holds the tables tell each other: binary frames.

::

    offset  bytes  field
         0      4  magic, "flTA"
         4      2  version of this layout
         6      2  kind: 1 request, 2 reply
         8     16  run
        24      8  incarnation
        32      8  seq: numbers the requests of a writer from 1; a reply has that of its request
        40      8  of a request: its writer has the replies up to this number
        48      8  length of the body
        56      4  writer
        60      4  flags of a reply: why the run is to stop
        64      4  acts in the body
        68      4  CRC-32 of all other bytes of the frame

    act        kind u1, place u1 (turn or team), items u2, step u4, event u4
    item       number u2 (read or gate), arrays u2, version u4, staleness u4, examples f8, weight f8
    array      dtype u1, axes u1, then each axis u8, then the items, filled up to 8 bytes

All little-endian. Nothing is pickled; dtypes are those of the list below. Every length is checked
against the frame that is there before anything is made of it, and arrays are views of the frame.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from flowml.protocol.failures import ProtocolError
from flowml.protocol.fence import RUN_BYTES
from flowml.types import Array

MAGIC = b"flTA"
VERSION = 1
REQUEST, REPLY = 1, 2
READ, DELIVER, LEAVE, SKIP, ANSWER, STOP, BEHIND, REFUSED = range(1, 9)
"""Kinds of acts; the last two are only answers."""
ACTS = range(READ, REFUSED + 1)
DTYPES = tuple(
    np.dtype(name).newbyteorder("<")
    for name in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
)
MOST_AXES = 16
MOST_BYTES = 2**62
"""Of an array without its axes of length 0: NumPy multiplies those that are left."""
HEAD = struct.Struct("<4sHH16sQQQQIII")
CRC = struct.Struct("<I")
HEAD_BYTES = HEAD.size + CRC.size
ACT = struct.Struct("<BBHII")
ITEM = struct.Struct("<HHIIdd")
ARRAY = struct.Struct("<BB6x")
AXIS = struct.Struct("<Q")


class Item(NamedTuple):
    """One read or one contribution.

    Attributes
    ----------
    number : int
        Of the read, or of the gate, in the plan.
    version : int
        Of a table: known to the reader, or of what is sent back.
    staleness : int
        Steps.
    examples, weight : float
        Of a contribution, or of an answer.
    arrays : tuple of ndarray
        Keys of rows, flat buffers.
    """

    number: int
    version: int = 0
    staleness: int = 0
    examples: float = 0.0
    weight: float = 0.0
    arrays: tuple[Array, ...] = ()


class Act(NamedTuple):
    """One event of a writer, or what came of it.

    Attributes
    ----------
    kind : int
        READ, DELIVER, LEAVE, SKIP, ANSWER or STOP; what came of it is of the same kind, or BEHIND
        (a read's quorum went on without its reader), or REFUSED (the run is to stop).
    step : int
        The writer's; of what came of a read: a later one, if the writer was moved over some.
    place : int
        The turn of a read, the team of a delivery; of a STOP: why.
    event : int
        In a reply: its number among all events of the run; of BEHIND: steps.
    items : tuple of Item
    """

    kind: int
    step: int = 0
    place: int = 0
    event: int = 0
    items: tuple[Item, ...] = ()


@dataclass(frozen=True)
class Frame:
    """A request or a reply.

    Attributes
    ----------
    kind : int
        REQUEST or REPLY.
    run : bytes, length 16
    incarnation : int
    writer : int
        The replica.
    seq : int
        From 1, without gaps.
    acts : tuple of Act
        Done in order.
    flags : int
        Of a reply: why the run is to stop; 0: it goes on.
    known : int
        Of a request: the writer has the replies up to this number.
    """

    kind: int
    run: bytes
    incarnation: int
    writer: int
    seq: int
    acts: tuple[Act, ...] = ()
    flags: int = 0
    known: int = 0

    def encode(self) -> bytes:
        """Return the frame as bytes."""
        parts: list[Any] = []
        for act in self.acts:
            parts.append(ACT.pack(act.kind, act.place, len(act.items), act.step, act.event))
            for item in act.items:
                counts = item.number, len(item.arrays), item.version, item.staleness
                parts.append(ITEM.pack(*counts, item.examples, item.weight))
                for array in item.arrays:
                    parts += _packed(array)
        body = b"".join(parts)
        head = HEAD.pack(
            MAGIC,
            VERSION,
            self.kind,
            self.run,
            self.incarnation,
            self.seq,
            self.known,
            len(body),
            self.writer,
            self.flags,
            len(self.acts),
        )
        return head + CRC.pack(zlib.crc32(body, zlib.crc32(head))) + body

    @classmethod
    def decode(cls, content: Any, limit: int) -> Frame:
        """Return what some bytes say; its arrays are read-only views of them.

        Parameters
        ----------
        content : bytes-like
        limit : int
            The longest frame that is looked at. Bytes.

        Raises
        ------
        ProtocolError
            If they are no frame, or a damaged one: nothing of it is used.
        """
        raw = memoryview(content).cast("B").toreadonly()
        if not HEAD_BYTES <= len(raw) <= limit:
            raise _damaged(f"a frame has between {HEAD_BYTES} and {limit} bytes", str(len(raw)))
        magic, version, kind, run, incarnation, seq, known, length, writer, flags, count = (
            HEAD.unpack_from(raw)
        )
        if magic != MAGIC or version != VERSION:
            raise _damaged(f"begins with {MAGIC!r}, version {VERSION}", f"{magic!r}, {version}")
        if length != len(raw) - HEAD_BYTES:
            raise _damaged(f"a body of {length} bytes", f"{len(raw) - HEAD_BYTES}")
        (sent,) = CRC.unpack_from(raw, HEAD.size)
        found = zlib.crc32(raw[HEAD_BYTES:], zlib.crc32(raw[: HEAD.size]))
        if sent != found:
            raise _damaged(f"the CRC must be {found:#010x}", f"{sent:#010x}")
        if kind not in (REQUEST, REPLY) or len(run) != RUN_BYTES or known >= seq:
            raise _damaged("a request or a reply with a number", f"kind {kind}, number {seq}")
        return cls(kind, run, incarnation, writer, seq, _Reader(raw).acts(count), flags, known)


class _Reader:
    """Walks over the body of a frame."""

    def __init__(self, raw: memoryview) -> None:
        self._raw = raw
        self._at = HEAD_BYTES

    def acts(self, count: int) -> tuple[Act, ...]:
        found = []
        for _ in range(self._checked(count, ACT.size)):
            kind, place, items, step, event = self._take(ACT)
            if kind not in ACTS:
                raise _damaged("a known kind of act", str(kind))
            made = tuple(self._item() for _ in range(self._checked(items, ITEM.size)))
            found.append(Act(kind, step, place, event, made))
        if self._at != len(self._raw):
            raise _damaged("nothing behind the last act", f"{len(self._raw) - self._at} bytes")
        return tuple(found)

    def _checked(self, count: int, size: int) -> int:
        """Refuse a count that cannot be true before anything is made for it."""
        if count * size > len(self._raw) - self._at:
            raise _damaged(f"{count} parts of {size} bytes", f"{len(self._raw) - self._at} bytes")
        return count

    def _item(self) -> Item:
        number, count, version, staleness, examples, weight = self._take(ITEM)
        arrays = tuple(self._array() for _ in range(self._checked(count, ARRAY.size)))
        return Item(number, version, staleness, examples, weight, arrays)

    def _array(self) -> Array:
        code, axes = self._take(ARRAY)
        if code >= len(DTYPES) or axes > MOST_AXES:
            raise _damaged("an array of a known dtype", f"dtype {code} with {axes} axes")
        shape = tuple(self._take(AXIS)[0] for _ in range(axes))
        dtype = DTYPES[code]
        nbytes = dtype.itemsize * math.prod(shape)  # Python's integers do not overflow
        stop = self._at + nbytes + -nbytes % 8
        if stop > len(self._raw) or dtype.itemsize * math.prod(filter(None, shape)) > MOST_BYTES:
            raise _damaged(f"an array of {nbytes} bytes", f"{len(self._raw) - self._at} left")
        found = np.frombuffer(self._raw[self._at : self._at + nbytes], dtype).reshape(shape)
        self._at = stop
        return found

    def _take(self, what: struct.Struct) -> tuple[Any, ...]:
        if what.size > len(self._raw) - self._at:
            raise _damaged(f"{what.size} bytes more", f"{len(self._raw) - self._at}")
        found = what.unpack_from(self._raw, self._at)
        self._at += what.size
        return found


def _packed(array: Array) -> Sequence[Any]:
    flat = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    try:
        code = DTYPES.index(flat.dtype)
    except ValueError:
        raise _damaged("an array of a known dtype", str(array.dtype)) from None
    head = ARRAY.pack(code, array.ndim) + b"".join(AXIS.pack(axis) for axis in array.shape)
    return head, flat.reshape(-1).view(np.uint8).data if flat.size else b"", bytes(-flat.nbytes % 8)


def _damaged(required: str, got: str) -> ProtocolError:
    return ProtocolError("table message", f"must have {required}", got)
