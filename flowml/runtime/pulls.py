"""What a replica gets from what all share: whole tables, rows of tables, answers.

Each is in three parts: whether it is due in a step, what can be made ready before the lock is
taken, and the copy that is made while it is held.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from flowml.layout import Layout
from flowml.plan import PlanOperator
from flowml.protocol.promise_specs import ReadSpec
from flowml.runtime.rank import Rank
from flowml.runtime.reads import Reads
from flowml.runtime.row_tables import RowSpec
from flowml.runtime.step_ids import StepIds
from flowml.runtime.values import EMPTY, Value
from flowml.types import Array

Buffers = tuple[Array, ...]


class Pull(Protocol):
    """One read of one replica."""

    @property
    def number(self) -> int:
        """In the plan."""

    def is_due(self, step: int) -> bool:
        """Tell whether it is made in a step."""

    def prepare(self) -> None:
        """Make ready what needs no lock."""

    def take(self, reads: Reads) -> int:
        """Copy what is read; return the bytes that a network would carry."""


@dataclass
class Copies:
    """What a replica has of the tables that it reads whole, once for each codec.

    Attributes
    ----------
    targets : dict of str to flat buffers
        Its own, by the name of the copy.
    known : dict of str to int
        Which version they hold.
    """

    targets: dict[str, Buffers]
    known: dict[str, int] = field(default_factory=dict)


@dataclass
class TablePull:
    """A read of a whole table."""

    number: int
    spec: ReadSpec
    copies: Copies
    copy: str
    """The one of them that is filled."""
    fires: Callable[[int], bool]
    """Tells whether the reader fires in a step; only asked where the edge has no period."""

    @property
    def known(self) -> int:
        """The version that is here; -1: none."""
        return self.copies.known.get(self.copy, -1)

    def is_due(self, step: int) -> bool:
        """Tell whether it is made in a step."""
        return step % self.spec.every == 0 if self.spec.every > 1 else self.fires(step)

    def prepare(self) -> None:
        """Do nothing."""

    def take(self, reads: Reads) -> int:
        """Copy the table if it has changed."""
        moved = reads.table(self.number, self.copies.targets[self.copy], self.known)
        self.copies.known[self.copy] = reads.version(self.number)
        return moved


@dataclass
class RowPull:
    """A read of the rows that an operator names."""

    number: int
    rows: RowSpec
    rank: Rank
    receiver: PlanOperator
    fires: Callable[[int], bool]
    where: str
    step_ids: StepIds
    ids: Array | None = None
    """Of this step; None: nothing is read."""
    _room: Array | None = None
    """For the rows of a step, which are good until the next one is read."""

    def is_due(self, step: int) -> bool:
        """Tell whether it is made in a step."""
        return self.fires(step)

    def prepare(self) -> None:
        """Look at the ids."""
        port = self.receiver.inputs[0]
        value = self.rank.registers[self.rank.slots[port.source, port.output]]
        self.ids = None if value.empty else self.step_ids.keys(self.rows, value.content, self.where)

    def take(self, reads: Reads) -> int:
        """Copy the rows, aligned with the ids."""
        slot = self.rank.slots[self.receiver.name, 0]
        if self.ids is None:
            self.rank.registers[slot] = EMPTY
            return 0
        found, moved = reads.rows(self.number, self.ids.reshape(-1), self._room_for)
        shaped = found.reshape(self.ids.shape + self.rows.shape)
        shaped.flags.writeable = False
        self.rank.registers[slot] = Value(shaped, None)
        return moved + self.ids.nbytes

    def _room_for(self, count: int) -> Array:
        if self._room is None or len(self._room) < count:
            self._room = np.empty((count, self.rows.items), self.rows.dtype)
        return self._room[:count]


@dataclass
class AnswerPull:
    """What the contributions of a step came to."""

    number: int
    spec: ReadSpec
    rank: Rank
    receiver: PlanOperator
    targets: tuple[tuple[Layout, Buffers], ...]
    """Of each output."""
    fires: Callable[[int], bool]

    def is_due(self, step: int) -> bool:
        """Tell whether it is made in a step."""
        return (step + 1) % self.spec.every == 0 and self.fires(step)

    def prepare(self) -> None:
        """Do nothing."""

    def take(self, reads: Reads) -> int:
        """Copy what a gate came to."""
        moved = 0
        for output, (layout, buffers) in enumerate(self.targets):
            examples = reads.answer(self.number, output, buffers)
            view = layout.views(buffers, writeable=False)
            value = EMPTY if examples == 0 else Value(view, examples)
            self.rank.registers[self.rank.slots[self.receiver.name, output]] = value
            moved += layout.nbytes
        return moved
