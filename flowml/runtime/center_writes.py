"""Writes of shared tables: all of the next version of a dense one, or some rows in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from flowml import actions
from flowml.plan import PlanOperator
from flowml.rules import At
from flowml.runtime.calls import all_finite
from flowml.runtime.row_store import RowStore
from flowml.runtime.tablestate import RuleState
from flowml.types import Array

Buffers = tuple[Array, ...]
Update = tuple[Buffers, Array | None, At]
"""(flat buffers, keys of rows or None, what a rule may know)."""


class NotFinite(ArithmeticError):
    """What would be written is infinite or NaN.

    Attributes
    ----------
    buffers : tuple of ndarray
    """

    def __init__(self, buffers: Buffers) -> None:
        super().__init__("not finite")
        self.buffers = buffers


class Writer(Protocol):
    """Changes one table, by one operator of the graph."""

    def write(self, given: Sequence[Update]) -> None:
        """Apply updates one after another.

        Parameters
        ----------
        given : sequence of (flat buffers, keys or None, At)

        Raises
        ------
        NotFinite
            The table is as it was before the first of them.
        """


class DenseWriter:
    """Writes the version of a table that is read next, from the one that is read now.

    Parameters
    ----------
    versions : sequence of flat buffers
        Two.
    version : callable of () -> int
        How often the table has changed; the caller counts after ``write``.
    rule : RuleState or None
        None assigns.
    checks : bool
        Look for what is not finite.
    """

    def __init__(
        self, versions: Sequence[Buffers], version: _Number, rule: RuleState | None, *, checks: bool
    ) -> None:
        self._versions = versions
        self._version = version
        self._rule = rule
        self._checks = checks

    def write(self, given: Sequence[Update]) -> None:
        """Apply updates one after another; what is read changes when they are counted."""
        now = self._version()
        current, new = self._versions[now % 2], self._versions[(now + 1) % 2]
        for buffers, _, at in given:
            if self._rule is None:
                for source, target in zip(buffers, new, strict=True):
                    target[...] = source
            else:
                self._rule.apply(current, buffers, at, new)
            current = new
        if self._checks and not all_finite(new):
            raise NotFinite(new)


class RowWriter:
    """Writes rows in place; see row_store.py for what becomes of a write that does not end.

    Parameters
    ----------
    operator : PlanOperator
    store : RowStore
    checks : bool
        Look for what is not finite.
    settles : bool
        What one call writes is for good when all of it is written; else the caller says so.
    """

    def __init__(
        self, operator: PlanOperator, store: RowStore, *, checks: bool, settles: bool = True
    ) -> None:
        self._store = store
        self._checks = checks
        self._settles = settles
        self._change = (
            operator.action.rule.step if isinstance(operator.action, actions.Update) else None
        )
        self._prefix = f"{operator.name}/"
        self._new: Array | None = None
        """What rows come to: kept, since fresh memory costs more than the sum that goes into it."""

    def write(self, given: Sequence[Update]) -> None:
        """Apply updates of rows, one after another."""
        if self._settles:
            self._store.mend()
        for (rows,), keys, at in given:
            assert keys is not None
            self._write(keys, rows, at)
        if self._settles:
            self._store.settle()

    def _write(self, keys: Array, rows: Array, at: At) -> None:
        slots, old, states = self._store.open(keys)
        try:
            new = rows if self._change is None else self._changed(old, rows, states, at)
            if self._checks and not all_finite((new.reshape(-1),)):
                raise NotFinite((new,))
        except BaseException:
            self._store.give_up()
            raise
        self._store.close(slots, new, states)

    def _changed(self, old: Array, rows: Array, states: dict[str, Array], at: At) -> Array:
        assert self._change is not None
        if self._new is None or len(self._new) < len(old):
            self._new = np.empty_like(old)
        new: Array = self._new[: len(old)]
        mine = {
            name.removeprefix(self._prefix): state.reshape(-1)
            for name, state in states.items()
            if name.startswith(self._prefix)
        }
        self._change(old.reshape(-1), rows.reshape(-1), mine, at, new.reshape(-1))
        return new


class _Number(Protocol):
    def __call__(self) -> int: ...
