"""What a replica gets from what all share: whole tables, rows of tables, answers.

Each is in three parts: whether it is due in a step, what can be made ready before the lock is
taken, and the copy that is made while it is held.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from flowml.codecs.contract import Codec, nbytes
from flowml.layout import Layout
from flowml.plan import PlanOperator
from flowml.protocol.promise_specs import ReadSpec
from flowml.runtime.center import Center
from flowml.runtime.rank import Rank
from flowml.runtime.row_tables import RowSpec
from flowml.runtime.values import EMPTY, Value
from flowml.types import Array

Buffers = tuple[Array, ...]


class Pull(Protocol):
    """One read of one replica."""

    @property
    def spec(self) -> ReadSpec:
        """What it promises."""

    def is_due(self, step: int) -> bool:
        """Tell whether it is made in a step."""

    def prepare(self) -> None:
        """Make ready what needs no lock."""

    def take(self, center: Center) -> int:
        """Copy what is read; return the bytes that a network would carry."""

    def version(self, center: Center) -> int:
        """Return the version of the table that was read last."""


@dataclass
class Copies:
    """The tables that a replica reads whole: its own buffers, and which version they hold."""

    targets: dict[str, Buffers]
    known: dict[str, int] = field(default_factory=dict)


@dataclass
class TablePull:
    """A read of a whole table."""

    spec: ReadSpec
    copies: Copies
    layout: Layout
    codec: Codec | None
    fires: Callable[[int], bool]
    """Tells whether the reader fires in a step; only asked where the edge has no period."""

    def is_due(self, step: int) -> bool:
        """Tell whether it is made in a step."""
        return step % self.spec.every == 0 if self.spec.every > 1 else self.fires(step)

    def prepare(self) -> None:
        """Do nothing."""

    def take(self, center: Center) -> int:
        """Copy the table if it has changed."""
        name = self.spec.source
        moved = center.copy_tables({name: self.copies.targets[name]}, self.copies.known)
        return self._coded() if moved and self.codec is not None else moved

    def version(self, center: Center) -> int:
        """Return the version of the table that was read last."""
        return self.copies.known.get(self.spec.source, 0)

    def _coded(self) -> int:
        """Let the copy be what the other end of the edge decodes."""
        assert self.codec is not None
        moved = 0
        for leaf in self.layout.leaf_views(self.copies.targets[self.spec.source]).values():
            payload, _ = self.codec.encode(leaf, self.codec.init(leaf.shape, leaf.dtype, 0))
            moved += nbytes(payload)
            leaf[...] = self.codec.decode(payload, leaf.shape, leaf.dtype)
        return moved


@dataclass
class RowPull:
    """A read of the rows that an operator names."""

    spec: ReadSpec
    rows: RowSpec
    rank: Rank
    receiver: PlanOperator
    codec: Codec | None
    fires: Callable[[int], bool]
    where: str
    _ids: Array | None = None
    _version: int = 0

    def is_due(self, step: int) -> bool:
        """Tell whether it is made in a step."""
        return self.fires(step)

    def prepare(self) -> None:
        """Look at the ids."""
        port = self.receiver.inputs[0]
        value = self.rank.registers[self.rank.slots[port.source, port.output]]
        self._ids = None if value.empty else self.rows.check_ids(value.content, self.where)

    def take(self, center: Center) -> int:
        """Copy the rows, aligned with the ids."""
        slot = self.rank.slots[self.receiver.name, 0]
        self._version = center.rule.version(self.spec.source)
        if self._ids is None:
            self.rank.registers[slot] = EMPTY
            return 0
        found = center.rows_of(self.spec.source, self._ids.reshape(-1))
        moved = found.nbytes + self._ids.nbytes
        if self.codec is not None:
            state = self.codec.init(found.shape, found.dtype, 0)
            payload, _ = self.codec.encode(found, state)
            found = self.codec.decode(payload, found.shape, found.dtype)
            moved = nbytes(payload) + self._ids.nbytes
        shaped = found.reshape(self._ids.shape + self.rows.shape)
        shaped.flags.writeable = False
        self.rank.registers[slot] = Value(shaped, None)
        return moved

    def version(self, center: Center) -> int:
        """Return the version of the table that was read last."""
        return self._version


@dataclass
class AnswerPull:
    """What the contributions of a step came to."""

    spec: ReadSpec
    rank: Rank
    receiver: PlanOperator
    targets: tuple[tuple[Layout, Buffers], ...]
    """Of each output."""
    fires: Callable[[int], bool]
    table: str | None

    def is_due(self, step: int) -> bool:
        """Tell whether it is made in a step."""
        return (step + 1) % self.spec.every == 0 and self.fires(step)

    def prepare(self) -> None:
        """Do nothing."""

    def take(self, center: Center) -> int:
        """Copy what a gate came to."""
        moved = 0
        for output, (layout, buffers) in enumerate(self.targets):
            examples = center.receive(self.spec.source, output, buffers)
            view = layout.views(buffers, writeable=False)
            value = EMPTY if examples == 0 else Value(view, examples)
            self.rank.registers[self.rank.slots[self.receiver.name, output]] = value
            moved += layout.nbytes
        return moved

    def version(self, center: Center) -> int:
        """Return the version of the table that was read last, or how often the gate has fired."""
        if self.table is not None:
            return center.rule.version(self.table)
        return center.rule.gates[self.spec.gate].fired
