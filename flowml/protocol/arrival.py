"""What the members of a superstep barrier tell each other: one frame of 64 bytes.

::

    offset  bytes  field
         0      4  magic, "flAR"
         4      2  version of this layout
         6      2  length of the frame, 64
         8     16  run
        24      8  incarnation
        32      8  superstep
        40      8  flip (signed)
        48      4  sender
        52      4  origin
        56      4  flags: 1 stop, 2 abort, 4 lost
        60      4  CRC-32 of all that precedes

All little-endian. The first 32 bytes are the same in every frame of an incarnation, so a
receiver accepts them with one comparison and goes on with a CRC begun in advance.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from flowml.protocol.failures import ProtocolError
from flowml.protocol.fence import RUN_BYTES

FRAME_BYTES = 64
HEAD_BYTES = 32
CRC_OFFSET = 60
VERSION = 1
STOP, ABORT, LOST = 1, 2, 4

HEAD = struct.Struct("<4sHH16sQ")
BODY = struct.Struct("<QqiiI")
CRC = struct.Struct("<I")
FRAME = struct.Struct("<32sQqiiII")
_MAGIC = b"flAR"


@dataclass(frozen=True, slots=True)
class Arrival:
    """A member has entered a superstep, or gives up.

    Attributes
    ----------
    run : bytes, length 16
    incarnation : int, 0 <= incarnation < 2**64
    superstep : int, 0 <= superstep < 2**64
        The superstep that the sender has entered; the first is 0.
    sender : int
        Member number.
    stop : bool
        The sender wants every member to stop after this superstep.
    abort : bool
        The sender leaves without completing anything more.
    flip : int
        Number of the step that this superstep commits (or its parity); equal at all members.
    origin : int
        Only with ``abort``: the member whose failure was the first cause; the sender itself
        unless it passes on what it heard. -1 otherwise.
    lost : bool
        Only with ``abort``: the origin died, rather than gave up.
    """

    run: bytes
    incarnation: int
    superstep: int
    sender: int
    stop: bool = False
    abort: bool = False
    flip: int = 0
    origin: int = -1
    lost: bool = False

    def __post_init__(self) -> None:
        if len(self.run) != RUN_BYTES:
            raise ProtocolError("arrival", f"run must be {RUN_BYTES} bytes", str(len(self.run)))

    def encode(self) -> bytes:
        """Return the frame of 64 bytes."""
        flags = STOP * self.stop | ABORT * self.abort | LOST * self.lost
        content = head(self.run, self.incarnation) + BODY.pack(
            self.superstep, self.flip, self.sender, self.origin, flags
        )
        return content + CRC.pack(zlib.crc32(content))

    @classmethod
    def decode(cls, frame: bytes | bytearray | memoryview) -> Arrival:
        """Return the arrival in a frame.

        Raises
        ------
        ProtocolError
            The frame has another length, layout or version, or its CRC does not agree.
        """
        run, incarnation = check_frame(frame)
        superstep, flip, sender, origin, flags = BODY.unpack_from(frame, HEAD_BYTES)
        stop, abort, lost = bool(flags & STOP), bool(flags & ABORT), bool(flags & LOST)
        return cls(run, incarnation, superstep, sender, stop, abort, flip, origin, lost)


def head(run: bytes, incarnation: int) -> bytes:
    """Return the first 32 bytes of every frame of one incarnation."""
    return HEAD.pack(_MAGIC, VERSION, FRAME_BYTES, run, incarnation)


def check_frame(frame: bytes | bytearray | memoryview) -> tuple[bytes, int]:
    """Return run and incarnation of a frame whose length, layout, version and CRC are right."""
    if len(frame) != FRAME_BYTES:
        raise ProtocolError("arrival", f"a frame has {FRAME_BYTES} bytes", str(len(frame)))
    magic, version, length, run, incarnation = HEAD.unpack_from(frame, 0)
    if magic != _MAGIC or length != FRAME_BYTES:
        raise ProtocolError("arrival", f"a frame begins with {_MAGIC!r}", repr(bytes(magic)))
    if version != VERSION:
        raise ProtocolError(
            "arrival",
            f"frames must have version {VERSION}",
            f"version {version}",
            "Install the same flowml on all workers.",
        )
    (sent,) = CRC.unpack_from(frame, CRC_OFFSET)
    found = zlib.crc32(memoryview(frame)[:CRC_OFFSET])
    if sent != found:
        raise ProtocolError("arrival", f"the CRC must be {found:#010x}", f"{sent:#010x}")
    return run, incarnation
