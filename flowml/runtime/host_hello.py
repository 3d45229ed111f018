"""How two processes of one host meet: a listening socket, credentials, then a hello.

A listener has an abstract name of 128 random bits where the kernel knows such names (Linux): it
cannot be guessed, needs no directory and goes with its process. Elsewhere it is a socket file in a
fresh directory of mode 0700. Each end asks the kernel for the user at the other end, which must
be its own, before it reads or writes a byte. Then each says who it is in 64 bytes::

    offset  bytes  field
         0      4  magic, "flHI"
         4      2  version of this layout
         6      2  length, 64
         8     16  run
        24      8  incarnation
        32      8  size of the shared segment in bytes
        40      4  member
        44     16  zero
        60      4  CRC-32 of all that precedes
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import struct
import sys
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from flowml.errors import WorkerLostError
from flowml.protocol.failures import ProtocolError

HELLO_BYTES = 64
VERSION = 1
SOCKET_KIND = socket.SOCK_SEQPACKET if sys.platform == "linux" else socket.SOCK_STREAM
ABSTRACT = sys.platform == "linux"

_MAGIC = b"flHI"
_HELLO = struct.Struct("<4sHH16sQQI16x")
_CRC = struct.Struct("<I")
_BACKLOG = 1024


class HostUnreachable(WorkerLostError):
    """A worker that should share this host cannot be reached over a unix socket.

    It has gone, runs as another user, or shares the machine but not the network namespace.
    """

    member: int


@dataclass(frozen=True, slots=True)
class Hello:
    """Who speaks, and what the speaker takes the link to be."""

    run: bytes
    incarnation: int
    nbytes: int
    member: int

    def encode(self) -> bytes:
        """Return the 64 bytes."""
        head = (_MAGIC, VERSION, HELLO_BYTES, self.run, self.incarnation, self.nbytes, self.member)
        content = _HELLO.pack(*head)
        return content + _CRC.pack(zlib.crc32(content))

    @classmethod
    def decode(cls, frame: bytes) -> Hello:
        """Return the hello in a frame.

        Raises
        ------
        ProtocolError
            The frame has another length, layout or version, or its CRC does not agree.
        """
        if len(frame) != HELLO_BYTES or frame[:4] != _MAGIC:
            required = f"has {HELLO_BYTES} bytes and begins with {_MAGIC!r}"
            raise ProtocolError("hello", required, f"{len(frame)} bytes, {frame[:4]!r}")
        _, version, _, run, incarnation, nbytes, member = _HELLO.unpack_from(frame)
        if version != VERSION:
            fix = "Install the same flowml on all workers."
            raise ProtocolError("hello", f"must have version {VERSION}", f"version {version}", fix)
        crc = zlib.crc32(frame[:-4])
        if _CRC.unpack(frame[-4:])[0] != crc:
            raise ProtocolError("hello", f"the CRC must be {crc:#010x}")
        return cls(run, incarnation, nbytes, member)


class HostListener:
    """A socket on which the peers of one host domain can reach this process.

    Parameters
    ----------
    kind : int
        ``SOCK_SEQPACKET``, which keeps frames whole, or ``SOCK_STREAM`` where that is missing.
        All members must use the same.
    abstract : bool
        Whether to use an abstract name.

    Attributes
    ----------
    address : str
        What a peer needs: ``@`` and an abstract name, or the path of a socket file.
    """

    def __init__(self, kind: int = SOCKET_KIND, abstract: bool = ABSTRACT) -> None:
        self.kind = kind
        self._folder: Path | None = None
        if abstract:
            self.address = f"@flowml-{secrets.token_hex(16)}"
        else:
            self._folder = Path(tempfile.mkdtemp(prefix="flowml-"))
            self.address = str(self._folder / "s")
        self._socket = socket.socket(socket.AF_UNIX, kind)
        try:
            self._socket.bind(_name(self.address))
            self._socket.listen(_BACKLOG)
        except BaseException:
            self.close()
            raise

    def accept(self, timeout: float) -> socket.socket:
        """Return the next connection of a process of this user; drop those of others.

        Raises
        ------
        TimeoutError
            Nobody of this user connected within ``timeout`` seconds of the last stranger.
        """
        self._socket.settimeout(timeout)
        while True:
            connection, _ = self._socket.accept()
            try:
                if peer_user(connection) == os.getuid():
                    return connection
            except BaseException:
                connection.close()
                raise
            connection.close()

    def hide(self) -> None:
        """Remove the socket file, if there is one, once every peer is connected."""
        folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder)

    def close(self) -> None:
        """Stop listening; harmless when repeated."""
        self._socket.close()
        self.hide()


def reach(address: str, member: int, kind: int, timeout: float) -> socket.socket:
    """Connect to the listener of a member.

    Raises
    ------
    HostUnreachable
        Nobody listens there, or another user does.
    """
    connection = socket.socket(socket.AF_UNIX, kind)
    try:
        connection.settimeout(timeout)
        connection.connect(_name(address))
        user = peer_user(connection)
    except OSError as error:
        connection.close()
        raise _unreachable(member, "must listen on this host", str(error)) from error
    if user != os.getuid():
        connection.close()
        raise _unreachable(member, f"must run as user {os.getuid()}", f"user {user}")
    return connection


def read_hello(connection: socket.socket) -> bytes:
    """Return 64 bytes, or fewer when the peer closed before or sent a shorter message."""
    frame = connection.recv(HELLO_BYTES)
    part = frame
    while part and len(frame) < HELLO_BYTES and connection.type == socket.SOCK_STREAM:
        part = connection.recv(HELLO_BYTES - len(frame))
        frame += part
    return frame


def peer_user(connection: socket.socket) -> int:
    """Return the user at the other end, as the kernel knows it."""
    if sys.platform == "linux":
        size = struct.calcsize("3i")
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        return int(struct.unpack("3i", credentials)[1])
    # struct xucred of the BSDs: version, user, ...; SOL_LOCAL is 0, LOCAL_PEERCRED is 1
    return int(struct.unpack_from("2I", connection.getsockopt(0, 1, 76))[1])


def _name(address: str) -> str:
    return "\0" + address[1:] if address.startswith("@") else address


def _unreachable(member: int, required: str, got: str) -> HostUnreachable:
    return HostUnreachable(
        f"host link, member {member}",
        required,
        got,
        member=member,
        kind="worker",
        worker="",
        operator="",
    )
