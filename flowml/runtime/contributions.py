"""What a member brings to a gate, and where it waits until the gate takes it."""

from __future__ import annotations

import math
from typing import NamedTuple

from flowml.runtime.center_memory import EXAMPLES, ROWS, STALENESS, WEIGHT, CenterMemory, Slot
from flowml.types import Array


class Contribution(NamedTuple):
    """A value of one member for one gate, flat.

    Attributes
    ----------
    examples : float
        That it stands for; 0: it is empty, NaN: it stands for none.
    weight : float
    buffers : tuple of ndarray
        Flat; rows, shape (n, items), where there are keys.
    keys : ndarray of int64 or None
        Of rows; each once.
    read : tuple of ndarray
        The table as the writer had read it, where a rule wants to know.
    staleness : int
        Steps that the reads behind it were late.
    """

    examples: float
    weight: float
    buffers: tuple[Array, ...]
    keys: Array | None = None
    read: tuple[Array, ...] = ()
    staleness: int = 0

    @property
    def empty(self) -> bool:
        """Whether nothing is computed from it."""
        return self.examples == 0.0

    @property
    def counted(self) -> float:
        """The examples that it stands for, 0 where it carries none."""
        return 0.0 if math.isnan(self.examples) else self.examples


NOTHING = Contribution(0.0, 0.0, ())
"""There is no example behind it; it says only that a member has come so far."""


class Queues:
    """Contributions of all members to all gates.

    Parameters
    ----------
    memory : CenterMemory
    turns : int
        Steps of one member that a gate may hold.
    names : tuple of str
        Of the gates, for messages.
    """

    def __init__(self, memory: CenterMemory, turns: int, names: tuple[str, ...]) -> None:
        self._slots = memory.queues
        self._turns = turns
        self._names = names

    def put(
        self, gate: int, member: int, stamp: int, given: Contribution, *, late: bool = False
    ) -> None:
        """Keep a contribution until the gate takes it.

        Parameters
        ----------
        late : bool
            It has missed its quorum; it has a place of its own, since its member moves on.
        """
        slot = self._slot(gate, member, stamp, late)
        header = slot.header
        header[EXAMPLES], header[WEIGHT] = given.examples, given.weight
        header[STALENESS], header[ROWS] = float(given.staleness), 0.0
        if given.empty:
            return
        if slot.room is not None and given.keys is not None:
            where = f"edge -> {self._names[gate]} of replica {member}, step {stamp}"
            slot.room.put(given.keys, given.buffers[0], where)
            header[ROWS] = float(len(given.keys))
            return
        for sources, targets in ((given.buffers, slot.buffers), (given.read, slot.read)):
            for source, target in zip(sources, targets, strict=True):
                target[...] = source

    def get(self, gate: int, member: int, stamp: int, *, late: bool = False) -> Contribution:
        """Return a contribution that is kept, as it lies there."""
        slot = self._slot(gate, member, stamp, late)
        examples, weight, late, rows = slot.header[: ROWS + 1]
        if slot.room is None:
            return Contribution(examples, weight, slot.buffers, None, slot.read, int(late))
        keys, values = slot.room.get(int(rows))
        return Contribution(examples, weight, (values,), keys, (), int(late))

    def _slot(self, gate: int, member: int, stamp: int, late: bool) -> Slot:
        return self._slots[gate, member][self._turns if late else stamp % self._turns]
