"""What the replicas of a loose run share: tables, queues, and what fires when one delivers.

Every change happens inside ``read``, ``deliver`` or ``leave``, one at a time, and is a function of
the order of these calls: the serial executor makes them in turn, the resident one under a lock,
and a replay in the order that was recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from flowml.actions import Aggregate, Assign, Map, Until
from flowml.errors import FlowmlError
from flowml.layout import Layout
from flowml.plan import PlanOperator
from flowml.protocol.promise_rule import Firing, PromiseRule, Taken
from flowml.reductions import Tree, reduce_slices
from flowml.rules import At
from flowml.runtime.calls import (
    Spot,
    all_finite,
    call,
    check_outputs,
    diverged,
    is_true,
    nonfinite,
    returned,
)
from flowml.runtime.center_memory import CenterMemory, Slot
from flowml.runtime.domain import Layouts, layout_of_port
from flowml.runtime.loose_plan import Gate, LoosePlan
from flowml.runtime.values import EMPTY, Value, agreed_examples
from flowml.types import Array, Pytree

Contribution = tuple[Value, float]
"""(value, weight)."""


class Center:
    """One process's view of what all replicas share.

    Parameters
    ----------
    loose : LoosePlan
    layouts : mapping of (operator, output) to Layout
    memory : CenterMemory
        Private, or shared by the processes of a host.
    stops_on_nonfinite : bool
    worker : str
        For messages.
    enter : callable of (int, int, int)
        Told (replica, index of the operator in the plan, step) of each operator that a replica's
        delivery sets off, for those who watch for silence.
    """

    def __init__(
        self,
        loose: LoosePlan,
        layouts: Layouts,
        memory: CenterMemory,
        stops_on_nonfinite: bool = True,
        worker: str = "driver",
        enter: Callable[[int, int, int], None] = lambda replica, operator, step: None,
    ) -> None:
        self.loose = loose
        self.rule = PromiseRule(
            memory.words,
            loose.plan.replicas,
            tuple(g.spec for g in loose.gates),
            loose.reads,
            loose.queue,
        )
        self._memory = memory
        self._layouts = layouts
        self._checks = stops_on_nonfinite
        self._worker = worker
        self._views = {
            name: [layouts[name, -1].views(v, writeable=False) for v in versions]
            for name, versions in memory.tables.items()
        }
        self._incoming = [
            layout_of_port(loose.plan, layouts, g.operator.inputs[0]) for g in loose.gates
        ]
        self._sums = [_Sum(layout) for layout in self._incoming]
        self._enter, self._by = enter, 0
        self._index = {o.name: n for n, o in enumerate(loose.plan.steps)}

    # -- the three events ------------------------------------------------------------------------

    def read(self, targets: Mapping[str, tuple[Array, ...]], known: dict[str, int]) -> int:
        """Copy the tables that have changed into a replica's own buffers.

        Parameters
        ----------
        targets : mapping of table to flat buffers
        known : dict of table to version
            What the buffers hold; brought up to date.

        Returns
        -------
        int
            Number of the event.
        """
        for name, buffers in targets.items():
            version = self.rule.version(name)
            if known.get(name) != version:
                for source, target in zip(self._buffers(name), buffers, strict=True):
                    target[...] = source
                known[name] = version
        return self.rule.read()

    def deliver(self, rank: int, made: Sequence[Contribution | None], staleness: int) -> int:
        """Take in what a replica made in its step, and do what fires.

        Parameters
        ----------
        made : sequence of (Value, weight) or None
            For each gate; None where its edge has nothing in this step.
        staleness : int
            Steps that the reads behind it were late.

        Returns
        -------
        int
            Number of the event.
        """
        stamp, self._by = self.rule.clock(rank), rank
        for number, contribution in enumerate(made):
            if contribution is not None:
                self._put(number, rank, stamp, contribution, staleness)
        event = self.rule.deliver(rank)
        self._fire_all()
        return event

    def leave(self, rank: int) -> int:
        """Let a replica be waited for no longer, and do what fires without it."""
        self._by = rank
        event = self.rule.leave(rank)
        self._fire_all()
        return event

    # -- tables ----------------------------------------------------------------------------------

    def table(self, name: str) -> Pytree:
        """Return a read-only view of a table as it is."""
        return self._views[name][self.rule.version(name) % 2]

    def copy_of(self, name: str) -> Pytree:
        """Return a private copy of a table.

        Notes
        -----
        Needs no lock, which a replica that is stuck may hold: the version that is read is written
        again only after the next one has been counted, and then it is copied once more.
        """
        layout, version = self._layouts[name, -1], -1
        fresh = layout.allocate()
        while version != self.rule.version(name):
            version = self.rule.version(name)
            for source, target in zip(self._memory.tables[name][version % 2], fresh, strict=True):
                target[...] = source
        return layout.views(fresh)

    def _buffers(self, name: str, ahead: int = 0) -> tuple[Array, ...]:
        return self._memory.tables[name][(self.rule.version(name) + ahead) % 2]

    # -- contributions ---------------------------------------------------------------------------

    def _slot(self, gate: int, rank: int, stamp: int) -> Slot:
        return self._memory.queues[gate, rank][stamp % self.loose.queue]

    def _put(
        self, number: int, rank: int, stamp: int, contribution: Contribution, staleness: int
    ) -> None:
        value, weight = contribution
        slot, layout = self._slot(number, rank, stamp), self._incoming[number]
        slot.header[0] = (
            0.0 if value.empty else np.nan if value.examples is None else value.examples
        )
        slot.header[1], slot.header[2] = weight, float(staleness)
        if value.empty:
            return
        wrong = layout.mismatch(value.content)
        if wrong is not None:
            port = self.loose.gates[number].operator.inputs[0]
            raise returned(
                Spot(self.loose.plan.operator(port.source), rank, stamp, self._worker),
                "its value must have the same structure, shapes and dtypes in every replica and "
                "step",
                wrong,
                "Return arrays of one shape.",
            )
        layout.write(value.content, slot.buffers)

    def _fire_all(self) -> None:
        for firing in self.rule.firings():
            gate = self.loose.gates[firing.gate]
            (self._push if gate.spec.push else self._aggregate)(gate, firing)

    def _push(self, gate: Gate, firing: Firing) -> None:
        """Apply contributions one after another; what is read changes once, at the end."""
        table, current = gate.spec.table, self._buffers(gate.spec.table)
        new = self._buffers(table, 1)
        applied, staleness = 0, 0
        for rank, stamp in firing.taken:
            slot = self._slot(firing.gate, rank, stamp)
            examples = slot.header[0]
            if examples == 0.0:
                continue
            count = 0.0 if examples != examples else examples
            late = int(slot.header[2])
            self._enter(self._by, self._index[gate.operator.name], stamp)
            at = At(stamp, self._updates(gate.operator) + applied, late, rank, count)
            self._write(gate.operator, current, slot.buffers, at, new)
            current, applied, staleness = new, applied + 1, max(staleness, late)
        if applied:
            self._finish(gate, firing, gate.operator, new, applied)
            moved = Value(self.table(table), None)
            self._behind(gate, firing, {(gate.operator.name, 0): moved}, staleness)

    def _aggregate(self, gate: Gate, firing: Firing) -> None:
        self._enter(self._by, self._index[gate.operator.name], firing.number)
        slots = {(r, s): self._slot(firing.gate, r, s) for r, s in firing.taken}
        action = gate.operator.action
        assert isinstance(action, Aggregate)
        present = {
            key: slot
            for key, slot in slots.items()
            if slot.header[0] != 0.0 and slot.header[1] != 0.0
        }
        spot = partial(Spot, gate.operator, 0, firing.number, self._worker)
        made: dict[tuple[str, int], Value] = {}
        if present:
            number = _leaves(firing.taken, self._replicas)
            tree = _tree(self.loose.plan.tree(gate.operator, 0), number, self._replicas)
            buffers = {number[key]: slot.buffers for key, slot in present.items()}
            weights = {number[key]: slot.header[1] for key, slot in present.items()}
            out = call(spot, self._sums[firing.gate].take, action.reduction, tree, buffers, weights)
            total = sum(slot.header[0] for slot in present.values())
            made[gate.operator.name, 0] = Value(out, None if total != total else total)
        else:
            made[gate.operator.name, 0] = EMPTY
        staleness = max((int(s.header[2]) for s in present.values()), default=0)
        self._behind(gate, firing, made, staleness)

    @property
    def _replicas(self) -> int:
        return self.loose.plan.replicas

    # -- behind an aggregate, or a push ------------------------------------------------------------

    def _behind(
        self, gate: Gate, firing: Firing, made: dict[tuple[str, int], Value], staleness: int
    ) -> None:
        for operator in gate.behind:
            spot = partial(Spot, operator, 0, firing.number, self._worker)
            values = [
                Value(self.table(p.source), None) if p.table else made[p.source, p.output]
                for p in operator.inputs
            ]
            self._enter(self._by, self._index[operator.name], firing.number)
            if isinstance(operator.action, Map):
                for output, value in enumerate(_mapped(operator, values, spot)):
                    made[operator.name, output] = value
            elif isinstance(operator.action, Until):
                if not values[0].empty and is_true(
                    spot, operator.action.function, values[0].content
                ):
                    self.rule.request_stop(ended=True)
            else:
                made[operator.name, 0] = self._written(gate, firing, operator, values[0], staleness)

    def _written(
        self, gate: Gate, firing: Firing, operator: PlanOperator, value: Value, staleness: int
    ) -> Value:
        table = str(operator.writes)
        if not value.empty:
            layout = self._layouts[table, -1]
            wrong = layout.mismatch(value.content)
            if wrong is not None:
                raise returned(
                    Spot(operator, 0, firing.number, self._worker),
                    f"what is written to table {table!r} must have its structure, shapes and "
                    "dtypes",
                    wrong,
                    "Cast or reshape it before.",
                )
            new = self._buffers(table, 1)
            applied = self._updates(operator)
            at = At(firing.number, applied, staleness, 0, value.examples or 0.0)
            self._write(operator, self._buffers(table), layout.flat(value.content), at, new)
            self._finish(gate, firing, operator, new, 1)
        return Value(self.table(table), None)

    def _updates(self, operator: PlanOperator) -> int:
        return self.rule.updates(str(operator.writes))

    def _write(
        self,
        operator: PlanOperator,
        old: tuple[Array, ...],
        update: tuple[Array, ...],
        at: At,
        new: tuple[Array, ...],
    ) -> None:
        if isinstance(operator.action, Assign):
            for source, target in zip(update, new, strict=True):
                target[...] = source
            return
        spot = partial(Spot, operator, at.writer, at.step, self._worker)
        call(spot, self._memory.rules[operator.name].apply, old, update, at, new)

    def _finish(
        self,
        gate: Gate,
        firing: Firing,
        operator: PlanOperator,
        new: tuple[Array, ...],
        updates: int,
    ) -> None:
        if self._checks and not all_finite(new):
            raise self._not_finite(gate, firing, operator, new)
        self.rule.commit(str(operator.writes), updates)

    def _not_finite(
        self, gate: Gate, firing: Firing, operator: PlanOperator, new: tuple[Array, ...]
    ) -> FlowmlError:
        """Return the error for a write that is not finite: it names who brought that, if anyone."""
        source = self.loose.plan.operator(gate.operator.inputs[0].source)
        for rank, stamp in firing.taken:
            slot = self._slot(firing.gate, rank, stamp)
            if slot.header[0] != 0.0 and not all_finite(slot.buffers):
                return diverged(
                    Spot(source, rank, stamp, self._worker),
                    "its value must be finite",
                    nonfinite(self._incoming[firing.gate], slot.buffers),
                )
        table = str(operator.writes)
        rank, stamp = firing.taken[-1]
        return diverged(
            Spot(operator, rank, stamp, self._worker),
            f"what this write makes of table {table!r} must be finite",
            nonfinite(self._layouts[table, -1], new),
        )


class _Sum:
    """Buffers that a gate's sums are made in, again and again."""

    def __init__(self, layout: Layout) -> None:
        self._out = layout.allocate()
        self._view = layout.views(self._out, writeable=False)

    def take(
        self,
        reduction: Any,
        tree: Tree,
        buffers: Mapping[int, tuple[Array, ...]],
        weights: Mapping[int, float],
    ) -> Pytree:
        """Return the reduction of some contributions, valid until the next call."""
        for number, out in enumerate(self._out):
            parts = {key: b[number] for key, b in buffers.items()}
            reduce_slices(reduction, tree, parts, weights, out)
        return self._view


def _leaves(taken: Taken, replicas: int) -> dict[tuple[int, int], int]:
    """Return the number of each contribution in a sum: its replica's, or a free one for a further.

    Examples
    --------
    >>> _leaves(((0, 4), (1, 4), (1, 5)), 3)
    {(0, 4): 0, (1, 4): 1, (1, 5): 4}
    """
    found: dict[tuple[int, int], int] = {}
    following: dict[int, int] = {}
    for rank, stamp in taken:
        found[rank, stamp] = following.get(rank, rank)
        following[rank] = found[rank, stamp] + replicas
    return found


def _tree(tree: Tree, leaves: Mapping[tuple[int, int], int], replicas: int) -> Tree:
    """Return the plan's tree over the replicas that contribute, several of one in their order.

    Notes
    -----
    A replica that brings one contribution is a leaf, as in a synchronous sum; one that brings more
    is the sum of them from the first to the last.
    """
    there = set(leaves.values())

    def grown(node: Tree) -> Tree | None:
        if isinstance(node, tuple):
            left, right = grown(node[0]), grown(node[1])
            return right if left is None else left if right is None else (left, right)
        if node not in there:
            return None
        found: Tree = node
        following = node + replicas
        while following in there:
            found, following = (found, following), following + replicas
        return found

    found = grown(tree)
    assert found is not None  # a firing takes something
    return found


def _mapped(operator: PlanOperator, values: list[Value], spot: Callable[[], Spot]) -> list[Value]:
    assert isinstance(operator.action, Map)
    try:
        examples = agreed_examples(values)
    except ValueError as error:
        raise returned(spot(), str(error), "") from error
    if examples == 0:
        return [EMPTY] * operator.outputs
    result = call(spot, operator.action.function, *[v.content for v in values])
    return [Value(c, examples) for c in check_outputs(spot, result, operator.outputs)]
