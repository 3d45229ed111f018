"""What other domains send for each exchange: in order, once, fenced; without input or output.

Exchange n of a run is the n-th barrier at which something crosses between domains. A sender
repeats a message until it is acknowledged, so a receiver may see one twice, and one of exchange
n + 1 while it still waits for n from somebody else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from flowml.protocol.failures import ProtocolError
from flowml.protocol.fence import fence


@dataclass(frozen=True)
class Parcel:
    """What one domain sends to another in one exchange."""

    run: bytes
    incarnation: int
    exchange: int
    sender: int
    """Number of the domain."""
    stop: bool
    content: Any = field(repr=False, default=None)


class Mailbox:
    """The parcels that one domain awaits.

    Parameters
    ----------
    senders : iterable of int
        The other domains.
    run, incarnation : bytes (16), int
    """

    def __init__(self, senders: Iterable[int], run: bytes, incarnation: int) -> None:
        self.senders = frozenset(senders)
        self.exchange = 0
        self._run = run
        self._incarnation = incarnation
        self._held: dict[tuple[int, int], Parcel] = {}

    def put(self, parcel: Parcel) -> None:
        """Take in a parcel; a repeat changes nothing.

        Raises
        ------
        StaleRunError
            It is of another run or incarnation.
        ProtocolError
            The sender is no other domain, or is more than one exchange ahead.
        """
        fence("exchange", self._run, self._incarnation, parcel.run, parcel.incarnation)
        if parcel.sender not in self.senders:
            raise ProtocolError(
                "exchange", f"must come from one of {sorted(self.senders)}", str(parcel.sender)
            )
        if parcel.exchange > self.exchange + 1:
            raise ProtocolError(
                "exchange", f"can be at most one ahead of {self.exchange}", str(parcel.exchange)
            )
        if parcel.exchange >= self.exchange:
            self._held.setdefault((parcel.exchange, parcel.sender), parcel)

    def missing(self) -> tuple[int, ...]:
        """Return the domains whose parcel of the present exchange has not come."""
        return tuple(sorted(s for s in self.senders if (self.exchange, s) not in self._held))

    def take(self) -> dict[int, Parcel]:
        """Return the parcels of the present exchange by sender, and await the next one.

        Raises
        ------
        ProtocolError
            While some are missing.
        """
        if self.missing():
            raise ProtocolError("exchange", f"parcels of {self.missing()} must be here first")
        found = {s: self._held.pop((self.exchange, s)) for s in self.senders}
        self.exchange += 1
        return found
