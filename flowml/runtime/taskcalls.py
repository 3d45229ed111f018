"""The functions that tasks of the ``tasks`` executor call, one a kind of operator.

A task runs the serial executor's own code for an operator, on a state that holds only what the
operator reads, so both executors compute the same. A task never changes its inputs: it copies the
state of a rule before the rule runs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import numpy as np

from flowml.actions import Update
from flowml.data.blocks import evaluation_blocks
from flowml.data.rows import Rows
from flowml.layout import layout_of
from flowml.plan import Firing, Plan, PlanOperator
from flowml.runtime.calls import Spot, all_finite
from flowml.runtime.evaluation import evaluate_source
from flowml.runtime.operations import SerialState, flatten, operate
from flowml.runtime.tablestate import RuleState, TableInstance, make_instance, whole
from flowml.runtime.tasksetting import on_worker
from flowml.runtime.taskshipment import Shipment, Shipped
from flowml.runtime.taskvalues import (
    Between,
    Flat,
    Made,
    Record,
    TableState,
    aligned,
    value_of,
)
from flowml.runtime.values import EMPTY, Kept, Value
from flowml.types import Pytree

# --- operators --------------------------------------------------------------------------------


def run_operator(
    shipment: Shipment, name: str, step: int, instance: int, *inputs: Between
) -> Value | Made:
    """Run one instance of a map, gradient or ``here`` on one value an input."""
    with on_worker(shipment.plan.blas_threads):
        plan = shipment.plan
        operator = plan.operator(name)
        rank = plan.ranks_of(operator.scope, instance)[0]
        state = _state(shipment)
        for number, (port, found) in enumerate(zip(operator.inputs, inputs, strict=True)):
            source = plan.instance_of(plan.scope_of(port), rank)
            state.held[name, number, source] = value_of(found)
        values = operate(state, operator, instance, step)
        loss = state.loss.get(instance)
    if len(values) == 1 and loss is None:
        return values[0]
    return Made(values, loss)


def run_until(shipment: Shipment, name: str, step: int, instance: int, value: Between) -> bool:
    """Tell whether an end of the graph is reached."""
    with on_worker(shipment.plan.blas_threads):
        operator = shipment.plan.operator(name)
        state = _state(shipment)
        state.held[name, 0, instance] = value_of(value)
        operate(state, operator, instance, step)
        return state.ended


def combine(
    shipment: Shipment,
    name: str,
    step: int,
    instance: int,
    values: Sequence[Between],
    weights: Sequence[Between] = (),
) -> Value | Flat:
    """Run an aggregate that is no sum along a tree: it needs all contributions at once."""
    with on_worker(shipment.plan.blas_threads):
        operator = shipment.plan.operator(name)
        members = shipment.plan.members(operator, instance)
        state = _state(shipment)
        for number, found in enumerate((values, weights)):
            for member, value in zip(members, found, strict=False):
                state.held[name, number, member] = value_of(value)
        (made,) = operate(state, operator, instance, step)
        if made.empty:
            return made
        layout = layout_of(made.content)
        spot = partial(Spot, operator, 0, step)
        out = flatten(spot, layout, made.content, 0)
        blamed = None
        if not all_finite(out):
            flats = (
                (m, layout.flat(value_of(v).content))
                for m, v in zip(members, values, strict=True)
                if not value_of(v).empty
            )
            blamed = next(((m, flat) for m, flat in flats if not all_finite(flat)), None)
        return Flat(layout, out, made.examples, blamed)


def pick(made: Made, output: int) -> Value:
    """Return one of several outputs."""
    return made.values[output]


def loss_of(made: Between) -> float:
    """Return the loss of a gradient; NaN where the replica had no examples."""
    return made.loss if isinstance(made, Made) and made.loss is not None else float("nan")


def record(
    steps: int,
    replicas: int,
    places: Sequence[tuple[int, int]],
    losses: list[float],
    ended: list[bool],
) -> Record:
    """Gather what the driver wants to know of some steps.

    Parameters
    ----------
    places : sequence of (step, rank)
        Of each loss; steps count from the first of these steps.
    """
    table = np.full((steps, replicas), np.nan)
    for (step, rank), loss in zip(places, losses, strict=True):
        table[step, rank] = loss
    return Record(table, any(ended))


# --- tables -----------------------------------------------------------------------------------


def make_table(shipment: Shipment, table: str, instance: int) -> TableState:
    """Return a table instance at its initial value."""
    with on_worker(shipment.plan.blas_threads):
        plan = shipment.plan
        made = make_instance(plan, plan.table(table), instance, shipment.order.seed)
        return _frozen(made)


def write_table(
    shipment: Shipment,
    name: str,
    step: int,
    instance: int,
    before: TableState,
    values: list[Between],
) -> TableState:
    """Apply a write: one value, or under a push that of each member in order."""
    with on_worker(shipment.plan.blas_threads):
        plan = shipment.plan
        operator = plan.operator(name)
        state = _state(shipment)
        table = _thawed(plan, before, name)
        state.tables[str(operator.writes)] = [table] * (instance + 1)
        if plan.combines(operator):
            sources = plan.members(operator, instance)
        else:
            rank = plan.ranks_of(operator.scope, instance)[0]
            sources = (plan.instance_of(plan.scope_of(operator.inputs[0]), rank),)
        for source, value in zip(sources, values, strict=True):
            state.held[name, 0, source] = value_of(value)
        _hold_contributions(state, operator, instance, values)
        operate(state, operator, instance, step)
        return _frozen(table)


def _hold_contributions(
    state: SerialState, operator: PlanOperator, instance: int, values: Sequence[Between]
) -> None:
    """Stand in for what a sum was made of: a write that fails looks there for the culprit."""
    plan, port = state.plan, operator.inputs[0]
    if port.table or plan.combines(operator) or plan.operator(port.source).kind != "aggregate":
        return
    for member in plan.members(plan.operator(port.source), instance):
        state.held[port.source, 0, member] = EMPTY
    if isinstance(values[0], Flat) and values[0].blamed is not None:
        member, buffers = values[0].blamed
        value = Value(values[0].layout.views(buffers, writeable=False), None)
        state.held[port.source, 0, member] = value


def _thawed(plan: Plan, state: TableState, changing: str) -> TableInstance:
    """Return an instance to work on, with a copy of the state of the rule that will run."""
    buffers = aligned(state.buffers)
    made = TableInstance(state.layout, buffers, buffers)
    for name, (kept, applied) in state.rules.items():
        action = plan.operator(name).action
        assert isinstance(action, Update)
        states = copy.deepcopy(kept) if name == changing else kept
        made.rules[name] = RuleState(
            action.rule, state.layout, whole(state.layout), states, applied
        )
    return made


def _frozen(table: TableInstance) -> TableState:
    rules = {name: (rule.states, rule.applied) for name, rule in table.rules.items()}
    return TableState(table.layout, table.latest, rules)


def show(table: Flat | TableState) -> Flat:
    """Return a table's parameters without the state of its rules, which need not travel."""
    return table.shown() if isinstance(table, TableState) else table


def table_value(table: Flat | TableState) -> Pytree:
    """Return a table as a pytree of read-only views."""
    return show(table).tree()


# --- edges with a period, evaluations ---------------------------------------------------------


def keep_value(keep: str, before: Kept | None, between: Between) -> Kept:
    """Return what an edge keeps after one more value."""
    kept = Kept(keep) if before is None else copy.copy(before)
    kept.put(value_of(between))
    return kept


def take_kept(keep: str, before: Kept | None, between: Between | None) -> Value:
    """Return what an edge with a period delivers, the value of this step included."""
    kept = Kept(keep) if before is None else copy.copy(before)
    if between is not None:
        kept.put(value_of(between))
    return kept.take()


def evaluate_table(
    shipment: Shipment,
    name: str,
    step: int,
    table: Flat | TableState,
    pieces: list[Rows | Shipped],
) -> dict[str, float]:
    """Return the metrics of a table over a whole source, given piece by piece."""
    with on_worker(shipment.plan.blas_threads):
        blocks = evaluation_blocks(p if isinstance(p, Rows) else p.partition for p in pieces)
        return evaluate_source(shipment.plan.operator(name), table_value(table), step, blocks)


def _state(shipment: Shipment) -> SerialState:
    plan = shipment.plan
    return SerialState(plan, shipment.order, Firing(plan), {}, {}, {})
