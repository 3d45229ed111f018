"""What a gate that has fired writes to tables, and what is said of a write that fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from flowml.errors import FlowmlError
from flowml.keyed_rows import KeyedRows
from flowml.layout import Layout
from flowml.plan import PlanOperator
from flowml.protocol.promise_rule import PromiseRule
from flowml.protocol.promise_specs import Firing
from flowml.rules import At
from flowml.runtime.calls import Spot, all_finite, diverged, nonfinite, raise_explained, returned
from flowml.runtime.center_memory import CenterMemory
from flowml.runtime.center_sums import Sum
from flowml.runtime.center_writes import (
    Buffers,
    DenseWriter,
    NotFinite,
    RowWriter,
    Update,
    Writer,
)
from flowml.runtime.contributions import Contribution
from flowml.runtime.domain import Layouts
from flowml.runtime.loose_plan import Gate, LoosePlan
from flowml.runtime.values import Value
from flowml.types import Pytree

Brought = Callable[[int, int, int], Contribution]
"""(gate, member, stamp) -> what it brought."""


class GateWriting:
    """The writes of all gates.

    Parameters
    ----------
    loose : LoosePlan
    layouts : mapping of (operator, output) to Layout
    memory : CenterMemory
    rule : PromiseRule
        Counts the versions.
    incoming : sequence of Layout
        Of what flows into each gate.
    sums : mapping of int to Sum
        By gate.
    checks : bool
        A value that is not finite stops the run.
    worker : str
        For messages.
    """

    def __init__(
        self,
        loose: LoosePlan,
        layouts: Layouts,
        memory: CenterMemory,
        rule: PromiseRule,
        incoming: Sequence[Layout],
        sums: Mapping[int, Sum],
        worker: str,
        *,
        checks: bool,
    ) -> None:
        self._loose = loose
        self._layouts = layouts
        self._memory = memory
        self._rule = rule
        self._incoming = incoming
        self._worker = worker
        self._writers = {
            operator.name: self._writer(operator, checks=checks)
            for gate in loose.gates
            for operator in (gate.operator, *gate.behind)
            if operator.writes
        }
        self._backing = dict(self._flat_sums(sums))

    def write(
        self,
        gate: Gate,
        firing: Firing,
        operator: PlanOperator,
        given: Sequence[Update],
        brought: Brought,
    ) -> None:
        """Apply updates one after another; what is read changes once, at the end.

        Parameters
        ----------
        brought : callable
            Asked for the error of a write that is not finite: it names whose value was not. (Kept
            here, it would be a cycle that holds shared memory after the run.)
        """
        at = given[-1][2]
        try:
            self._writers[operator.name].write(given)
        except NotFinite as error:
            raise self._not_finite(gate, firing, operator, error.buffers, brought) from None
        except BaseException as error:
            raise_explained(Spot(operator, at.writer, at.step, self._worker), error)
        self._rule.commit(str(operator.writes), len(given))

    def write_value(
        self,
        gate: Gate,
        firing: Firing,
        operator: PlanOperator,
        value: Value,
        late: int,
        brought: Brought,
    ) -> None:
        """Apply what a gate came to; an empty value changes nothing.

        Parameters
        ----------
        late : int
            Steps that the reads behind it were late.
        """
        if value.empty:
            return
        table = str(operator.writes)
        at = At(firing.number, self._rule.updates(table), late, 0, value.examples or 0.0)
        if isinstance(value.content, KeyedRows):
            given: Update = (value.content.rows,), value.content.keys, at
        else:
            given = self._flat(operator, firing, value.content), None, at
        self.write(gate, firing, operator, [given], brought)

    def _writer(self, operator: PlanOperator, *, checks: bool) -> Writer:
        table = str(operator.writes)
        if table in self._memory.rows:
            return RowWriter(operator, self._memory.rows[table], checks=checks)
        rule = self._memory.rules.get(operator.name)
        version = partial(self._rule.version, table)
        return DenseWriter(self._memory.tables[table], version, rule, checks=checks)

    def _flat_sums(self, sums: Mapping[int, Sum]) -> Iterator[tuple[tuple[str, int], Buffers]]:
        """Yield for the writes of a sum its value's identity, and its buffers: it is not copied."""
        for number, found in sums.items():
            view, buffers = found.backing
            for operator in self._loose.gates[number].behind:
                layout = self._layouts.get((str(operator.writes), -1))
                if view is not None and layout == self._incoming[number]:
                    yield (operator.name, id(view)), buffers

    def _flat(self, operator: PlanOperator, firing: Firing, content: Pytree) -> Buffers:
        """Return the flat buffers of what is written."""
        table = str(operator.writes)
        layout = self._layouts[table, -1]
        known = self._backing.get((operator.name, id(content)))
        if known is not None:
            return known
        spot = Spot(operator, 0, firing.number, self._worker)
        check_layout(layout, content, spot, f"what is written to table {table!r} must have its")
        return layout.flat(content)

    def _not_finite(
        self,
        gate: Gate,
        firing: Firing,
        operator: PlanOperator,
        new: Buffers,
        brought: Brought,
    ) -> FlowmlError:
        """Return the error for a write that is not finite: it names who brought that, if anyone."""
        source = self._loose.plan.operator(gate.operator.inputs[0].source)
        for member, stamp in firing.taken:
            given = brought(firing.gate, member, stamp)
            if not given.empty and not all_finite([b.reshape(-1) for b in given.buffers]):
                rank = self._loose.plan.ranks_of(source.scope, member)[0]
                return diverged(
                    Spot(source, rank, stamp, self._worker),
                    "its value must be finite",
                    _nonfinite(self._incoming[firing.gate], given.buffers),
                )
        table = str(operator.writes)
        member, stamp = firing.taken[-1]
        rank = self._loose.plan.ranks_of(source.scope, member)[0]
        layout = self._layouts.get((table, -1), self._incoming[firing.gate])
        return diverged(
            Spot(operator, rank, stamp, self._worker),
            f"what this write makes of table {table!r} must be finite",
            _nonfinite(layout, new),
        )


def check_layout(layout: Layout, content: Pytree, spot: Spot, what: str) -> None:
    """Raise the error of a value that has another structure, other shapes or dtypes."""
    wrong = layout.mismatch(content)
    if wrong is not None:
        raise returned(
            spot, f"{what} structure, shapes and dtypes", wrong, "Cast or reshape it before."
        )


def _nonfinite(layout: Layout, buffers: Buffers) -> str:
    if all(b.size == size for b, size in zip(buffers, layout.sizes, strict=True)):
        return nonfinite(layout, buffers)
    return f"{sum(int((~np.isfinite(b)).sum()) for b in buffers)} numbers of its rows that are not"
