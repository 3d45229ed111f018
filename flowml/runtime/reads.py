"""Where the reads of a replica get their content: memory that is shared, or a reply from afar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from flowml.codecs.contract import nbytes
from flowml.protocol.promise_rule import PromiseRule
from flowml.runtime.domain import Layouts
from flowml.runtime.edge_codec import decoded, encoded
from flowml.runtime.loose_plan import LoosePlan
from flowml.runtime.shared_tables import SharedTables
from flowml.types import Array

Buffers = tuple[Array, ...]
Room: TypeAlias = Callable[[int], Array]


class Reads(Protocol):
    """The reads of a loose plan, by number."""

    def lateness(self, number: int, step: int) -> int:
        """Return how many steps late a read in a step is."""

    def version(self, number: int) -> int:
        """Return the version of what is read: of its table, or how often its gate has fired."""

    def table(self, number: int, targets: Buffers, known: int) -> int:
        """Copy a whole table, unless its known version is the current one; return the bytes."""

    def rows(self, number: int, keys: Array, room: Room) -> tuple[Array, int]:
        """Return rows, shape (n, items), and the bytes of what a network would carry.

        Parameters
        ----------
        room : callable of (n) -> ndarray, shape (n, items)
            Gives memory that rows may be copied to: fresh memory costs more than the copy.
        """

    def answer(self, number: int, output: int, targets: Buffers) -> float | None:
        """Copy what a gate came to; return its examples: 0, it is empty; None, it has none."""


class SharedReads:
    """Reads from memory that is shared."""

    def __init__(
        self, loose: LoosePlan, layouts: Layouts, tables: SharedTables, rule: PromiseRule
    ) -> None:
        self._loose = loose
        self._layouts = layouts
        self._tables = tables
        self._rule = rule

    def lateness(self, number: int, step: int) -> int:
        """Return how many steps late a read in a step is."""
        return self._rule.lateness(self._loose.reads[number], step)

    def version(self, number: int) -> int:
        """Return the version of what is read: of its table, or how often its gate has fired."""
        read = self._loose.reads[number]
        if not read.answer:
            return self._rule.version(read.source)
        table = self._loose.plan.operator(read.source).writes
        return self._rule.gates[read.gate].fired if table is None else self._rule.version(table)

    def table(self, number: int, targets: Buffers, known: int) -> int:
        """Copy a whole table, unless its known version is the current one; return the bytes."""
        source, codec = self._loose.reads[number].source, self._loose.codecs[number]
        if known == self._rule.version(source):
            return 0
        moved = 0
        for found, target in zip(self._tables.buffers(source), targets, strict=True):
            target[...] = found
            moved += target.nbytes
        if codec is None:
            return moved
        moved = 0
        for leaf in self._layouts[source, -1].leaf_views(targets).values():
            payload = encoded(codec, leaf)
            moved += nbytes(payload)
            leaf[...] = decoded(codec, payload, leaf)
        return moved

    def rows(self, number: int, keys: Array, room: Room) -> tuple[Array, int]:
        """Return rows, shape (n, items), and the bytes of what a network would carry."""
        found = self._tables.rows(self._loose.reads[number].source, keys, room(len(keys)))
        codec = self._loose.codecs[number]
        if codec is None:
            return found, found.nbytes
        payload = encoded(codec, found)
        return decoded(codec, payload, found), nbytes(payload)

    def answer(self, number: int, output: int, targets: Buffers) -> float | None:
        """Copy what a gate came to; return its examples: 0, it is empty; None, it has none."""
        examples, found = self._tables.answer(self._loose.reads[number].source, output)
        if examples != 0.0:
            for source, target in zip(found, targets, strict=True):
                target[...] = source
        return examples
