"""What a synchronous run moves between replicas, counted and not measured.

Which buffers a rank writes and reads in a step is fixed when the functions of its step are made
(program.py), so the bytes are added up there, where each function gets hold of its buffers, and
multiplied by the steps that ran. The step loop does not know of it. Messages to other hosts are
counted where they are sent (courier.py).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Moved:
    """Bytes between replicas, by edge (``source -> reader``), and messages between hosts.

    Attributes
    ----------
    written : Counter of str
        Put into memory that others share. A value with several readers counts for the first one.
    read : Counter of str
        Taken from memory that others share: values of replicas, and shared tables.
    messages, message_bytes : int
        Sent to other hosts by a synchronous run, headers included.
    """

    written: Counter[str] = field(default_factory=Counter)
    read: Counter[str] = field(default_factory=Counter)
    messages: int = 0
    message_bytes: int = 0

    def add(self, other: Moved, times: int = 1) -> None:
        """Add what another count holds, so many times."""
        for mine, theirs in ((self.written, other.written), (self.read, other.read)):
            for edge, nbytes in theirs.items():
                mine[edge] += times * nbytes
        self.messages += times * other.messages
        self.message_bytes += times * other.message_bytes
