"""Which workers can share memory: the same boot of a machine, network namespace and user."""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path

TRANSPORTS = ("auto", "shared", "rpc")


def host_key(transport: str) -> str:
    """Return a text that is equal for processes that may share memory.

    Parameters
    ----------
    transport : str
        "auto" or "shared" tell by the machine; "rpc" makes every process a host of its own.

    Notes
    -----
    Abstract unix sockets belong to a network namespace, so two containers of one machine have
    different keys unless they share it. The link itself is the proof: where it cannot be made
    the driver falls back to RPC.
    """
    if transport == "rpc" or not hasattr(socket, "AF_UNIX") or not hasattr(os, "getuid"):
        return uuid.uuid4().hex
    return f"{_boot()}/{_namespace()}/{os.getuid()}"


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _namespace() -> str:
    try:
        return str(os.stat("/proc/self/ns/net").st_ino)
    except OSError:
        return "host"
