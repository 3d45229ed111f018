"""How the members of a superstep barrier part.

``ProtocolError`` means a fault in flowml or a damaged frame. ``Aborted`` and ``PeerLost`` carry
the number of the member that was the first cause; the runtime turns them into the error that the
user sees, which knows the operator.
"""

from __future__ import annotations

from flowml.errors import FlowmlError, WorkerLostError


class ProtocolError(FlowmlError, RuntimeError):
    """A message or a call that no correct member makes: a damaged frame or a fault in flowml."""


class Aborted(FlowmlError, RuntimeError):
    """A member gave up; ``member`` says which, ``cause`` why when it was this one."""

    member: int
    cause: str


class PeerLost(WorkerLostError):
    """A member of the same host has gone without a word; ``member`` says which."""

    member: int
