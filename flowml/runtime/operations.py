"""What each kind of operator does in the serial executor, one instance at a time.

The tasks executor calls the same functions, on values that travel between tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

from flowml.actions import Aggregate, Assign, Gradient, Here, Load, Map, Until, Update
from flowml.data.share import random_seed
from flowml.data.stream import BatchStream
from flowml.errors import FlowmlError
from flowml.keyed_rows import KeyedRows, coalesce
from flowml.layout import Layout, layout_of
from flowml.plan import Firing, Plan, PlanOperator, PlanPort, loss_operator
from flowml.reductions import reduce_slices
from flowml.rules import At
from flowml.runtime.calls import (
    Spot,
    all_finite,
    call,
    call_gradient,
    call_map,
    check_finite_loss,
    diverged,
    gradient_inputs,
    is_true,
    mismatch,
    nonfinite,
    number_of,
    placed_errors,
    returned,
)
from flowml.runtime.center_sums import Sum
from flowml.runtime.contributions import Contribution
from flowml.runtime.feeding import Feed
from flowml.runtime.outcome import Order
from flowml.runtime.place import Place
from flowml.runtime.private_rows import PrivateRows
from flowml.runtime.row_tables import row_spec
from flowml.runtime.spans import TimedSteps, as_spans
from flowml.runtime.tablestate import TableInstance
from flowml.runtime.values import EMPTY, Kept, Value, agreed_examples, read_only
from flowml.types import Array

Key = tuple[str, int, int]
"""(operator, output, instance)."""


@dataclass
class SerialState:
    """Everything that a serial run carries from step to step."""

    plan: Plan
    order: Order
    firing: Firing
    feeds: dict[str, Feed]
    streams: dict[str, list[BatchStream]]
    tables: dict[str, list[Any]]
    """TableInstance, or PrivateRows."""
    kept: dict[tuple[str, int, int], Kept] = field(default_factory=dict)
    """By (reader, number of the input, instance of the source)."""
    held: dict[tuple[str, int, int], Value] = field(default_factory=dict)
    """Last value delivered, by (reader, number of the input, instance of the source)."""
    now: dict[Key, Value] = field(default_factory=dict)
    """What was made in this step."""
    loss: dict[int, float] = field(default_factory=dict)
    ended: bool = False
    times: TimedSteps = field(default_factory=TimedSteps)
    timing: bool = False
    """Whether the operators of this step are timed."""

    def note_time(self, operator: PlanOperator, instance: int, step: int, began: float) -> None:
        """Note that an operator has run since ``began``, on the clock ``perf_counter``."""
        replica = self.plan.ranks_of(operator.scope, instance)[0]
        number = self.plan.steps.index(operator)
        self.times.spans.append((replica, step, number, began, perf_counter() - began))

    def spans(self, origin: float) -> Array:
        """Return the times that were noted, from ``origin`` on."""
        found = as_spans(self.times.spans)
        found["began"] -= origin
        return found


def _inputs(state: SerialState, operator: PlanOperator, instance: int) -> list[Value]:
    """Return the inputs of an instance that come from its own or a coarser scope."""
    rank = state.plan.ranks_of(operator.scope, instance)[0]
    held = [
        state.held[operator.name, n, state.plan.instance_of(state.plan.scope_of(p), rank)]
        for n, p in enumerate(operator.inputs)
    ]
    return [
        _looked_up(state, operator, p, value, rank) if p.table and p.ids else value
        for p, value in zip(operator.inputs, held, strict=True)
    ]


def _looked_up(
    state: SerialState, operator: PlanOperator, port: PlanPort, table: Value, rank: int
) -> Value:
    """Return the rows of a table that an edge names."""
    assert port.ids is not None
    ids = _ids(state, port.ids, rank)
    if ids.empty:
        return EMPTY
    where = f"edge {port.source} -> {operator.name}"
    instance = state.plan.instance_of(state.plan.table(port.source).scope, rank)
    held = state.tables[port.source][instance]
    if isinstance(held, PrivateRows):
        return Value(held.at(ids.content, where), None)
    keys = row_spec(state.plan.table(port.source), held.layout).check_ids(ids.content, where)
    return Value(read_only(table.content[keys]), None)


def _ids(state: SerialState, ids: tuple[str, int], rank: int) -> Value:
    source, output = ids
    scope = state.plan.operator(source).scope
    return state.now[source, output, state.plan.instance_of(scope, rank)]


def operate(
    state: SerialState, operator: PlanOperator, instance: int, step: int
) -> tuple[Value, ...]:
    """Return what one instance of an operator makes of what ``state`` holds for it."""
    rank = state.plan.ranks_of(operator.scope, instance)[0]
    spot = partial(Spot, operator, rank, step)
    return _RUN[type(operator.action)](state, operator, instance, spot)


Made = tuple[Value, ...]
SpotOf = Callable[[], Spot]


def _load(state: SerialState, operator: PlanOperator, instance: int, spot: SpotOf) -> Made:
    with placed_errors(spot):
        content, examples = state.streams[operator.name][instance].batch(spot().step)
    return (Value(content, float(examples)) if examples else EMPTY,)


def _here(state: SerialState, operator: PlanOperator, instance: int, spot: SpotOf) -> Made:
    return (Value(place_of(state.plan, operator, instance, spot().step, state.order.seed), None),)


def place_of(plan: Plan, operator: PlanOperator, rank: int, step: int, run_seed: int) -> Place:
    """Return the record that ``fl.here`` gives to a replica in a step."""
    action = operator.action
    assert isinstance(action, Here)
    entropy = (run_seed, action.seed, random_seed(operator.name))
    return Place(rank, plan.replicas, plan.group_of[rank], step, entropy)


def _examples(spot: SpotOf, values: list[Value]) -> float | None:
    try:
        return agreed_examples(values)
    except ValueError as error:
        raise returned(spot(), str(error), "") from error


def _map(state: SerialState, operator: PlanOperator, instance: int, spot: SpotOf) -> Made:
    assert isinstance(operator.action, Map)
    values = _inputs(state, operator, instance)
    examples = _examples(spot, values)
    if examples == 0:
        return (EMPTY,) * operator.outputs
    contents = [v.content for v in values]
    made = call_map(spot, operator.action.function, contents, operator.outputs)
    return tuple(Value(c, examples) for c in made)


def _gradient(state: SerialState, operator: PlanOperator, instance: int, spot: SpotOf) -> Made:
    action = operator.action
    assert isinstance(action, Gradient)
    values = _inputs(state, operator, instance)
    examples = _examples(spot, values)
    if examples == 0:
        return (EMPTY,) * operator.outputs
    params = [v.content for v in values[: action.tables]]
    layouts = [layout_of(p) for p in params]
    inputs = [v.content for v in values[action.tables :]]
    loss, gradients, beside = call_gradient(spot, action, params, inputs, layouts)
    if state.order.on_nonfinite == "stop":
        check_finite_loss(spot, loss, gradient_inputs(action, [*params, *inputs]))
    if operator.name == loss_operator(state.plan):
        state.loss[instance] = loss
    return tuple(Value(c, examples) for c in (*gradients, *beside))


def _contributions(
    state: SerialState, operator: PlanOperator, instance: int, spot: SpotOf
) -> dict[int, tuple[Value, float]]:
    """Return what an aggregate combines: values that stand for examples, and their weights."""
    action = operator.action
    found = {}
    for source in state.plan.members(operator, instance):
        value = state.held[operator.name, 0, source]
        if value.empty:
            continue
        weight = 1.0
        if isinstance(action, Aggregate) and action.weight == "handle":
            given = state.held[operator.name, 1, source]
            weight = (
                0.0
                if given.empty
                else number_of(
                    spot, given.content, "the weight must be one number", "Return a float."
                )
            )
        elif isinstance(action, Aggregate) and action.weight == "examples":
            weight = 1.0 if value.examples is None else value.examples
        found[source] = (value, weight)
    return found


def _aggregate(state: SerialState, operator: PlanOperator, instance: int, spot: SpotOf) -> Made:
    action = operator.action
    assert isinstance(action, Aggregate)
    found = _contributions(state, operator, instance, spot)
    if not any(weight for _, weight in found.values()):
        return (EMPTY,)
    if operator.inputs[0].ids is not None:
        return (_row_sum(state, operator, instance, found),)
    layout: Layout | None = None
    flats: dict[int, tuple[Array, ...]] = {}
    for source, (value, _) in found.items():
        layout = layout or _layout(spot, value.content)
        flats[source] = flatten(spot, layout, value.content, source)
    assert layout is not None
    out = layout.allocate()
    tree = state.plan.tree(operator, instance)
    weights = {source: weight for source, (_, weight) in found.items()}
    for number, buffer in enumerate(out):
        parts = {source: flat[number] for source, flat in flats.items()}
        call(spot, reduce_slices, action.reduction, tree, parts, weights, buffer)
    counts = [v.examples for v, _ in found.values()]
    examples = None if None in counts else float(sum(c for c in counts if c is not None))
    return (Value(layout.views(out, writeable=False), examples),)


def _row_sum(
    state: SerialState,
    operator: PlanOperator,
    instance: int,
    found: dict[int, tuple[Value, float]],
) -> Value:
    """Combine rows over the union of their keys."""
    action, ids = operator.action, operator.inputs[0].ids
    assert isinstance(action, Aggregate)
    assert ids is not None
    members = state.plan.members(operator, instance)
    present = {}
    for member, (value, weight) in found.items():
        named = np.asarray(_ids(state, ids, member).content)
        rows = np.asarray(value.content)
        keys, sums = coalesce(named, rows.reshape(*named.shape, -1))
        examples = math.nan if value.examples is None else value.examples
        present[member, 0] = Contribution(examples, weight, (sums,), keys)
    like = layout_of(next(iter(present.values())).buffers[0][:1])
    total = Sum(
        action.reduction, state.plan.tree(operator, instance), len(members), like, rows=True
    )
    out = total.take(tuple((m, 0) for m in members), present)
    counts = [v.examples for v, _ in found.values()]
    return Value(out, None if None in counts else float(sum(c for c in counts if c is not None)))


def _write_rows(
    state: SerialState, operator: PlanOperator, instance: int, table: PrivateRows, spot: SpotOf
) -> None:
    """Change the rows of a table: by one value, or by that of each member in order."""
    plan, checks = state.plan, state.order.on_nonfinite == "stop"
    where = f"{operator.name} of table {operator.writes!r}"
    combines = plan.combines(operator)
    for member in plan.members(operator, instance) if combines else (instance,):
        if combines:
            value = state.held[operator.name, 0, member]
            ids = state.held[operator.name, 1, member] if len(operator.inputs) > 1 else EMPTY
        else:
            value, *more = _inputs(state, operator, instance)
            ids = more[0] if more else EMPTY
        if value.empty:
            continue
        with placed_errors(spot):
            if isinstance(value.content, KeyedRows):
                keys, rows = value.content.keys, value.content.rows
            else:
                keys, rows = table.keyed(operator, ids.content, value.content, where)
            at = At(spot().step, table.store.writes, 0, member, value.examples or 0.0)
            table.write(operator, keys, rows, at, checks=checks)


def _layout(spot: SpotOf, content: Any) -> Layout:
    try:
        return layout_of(content)
    except TypeError as error:
        raise returned(
            spot(),
            "values must be pytrees of numeric arrays",
            str(error),
            "Return NumPy arrays, or dicts, tuples and lists of them.",
        ) from error


def flatten(spot: SpotOf, layout: Layout, content: Any, source: int) -> tuple[Array, ...]:
    """Return the flat buffers of a value that must fit ``layout``."""
    wrong = mismatch(layout, content)
    if wrong is not None:
        raise returned(
            spot(),
            "values of all members must have the same structure, shapes and "
            f"dtypes; member {source} differs",
            wrong,
            "Return arrays of one shape and dtype.",
        )
    buffers = layout.allocate()
    layout.write(content, buffers)
    return buffers


def _write(state: SerialState, operator: PlanOperator, instance: int, spot: SpotOf) -> Made:
    """Apply one value, or under a push the value of each member in order."""
    table = state.tables[str(operator.writes)][instance]
    if isinstance(table, PrivateRows):
        _write_rows(state, operator, instance, table, spot)
        return (Value(table.view(), None),)
    if state.plan.combines(operator):
        values = [state.held[operator.name, 0, s] for s in state.plan.members(operator, instance)]
    else:
        values = _inputs(state, operator, instance)[:1]
    for writer, value in enumerate(values):
        if not value.empty:
            out = _written(operator, table, value, writer, spot)
            if state.order.on_nonfinite == "stop" and not all_finite(out):
                raise _not_finite(state, operator, instance, table.layout, out, spot)
            table.latest = out
    return (Value(table.view(table.latest), None),)


def _written(
    operator: PlanOperator, table: TableInstance, value: Value, writer: int, spot: SpotOf
) -> tuple[Array, ...]:
    wrong = mismatch(table.layout, value.content)
    if wrong is not None:
        raise returned(
            spot(),
            f"what is written to table {operator.writes!r} must have its "
            "structure, shapes and dtypes",
            wrong,
            "Cast or reshape it before.",
        )
    flat = table.layout.allocate()
    table.layout.write(value.content, flat)
    out = table.layout.allocate()
    if isinstance(operator.action, Assign):
        out = flat
    else:
        rule = table.rules[operator.name]
        read = table.current if rule.rule.reads else None  # in a step in which all go together
        at = At(spot().step, rule.applied, 0, writer, value.examples or 0.0, read)
        call(spot, rule.apply, table.latest, flat, at, out)
    return out


def _not_finite(
    state: SerialState,
    operator: PlanOperator,
    instance: int,
    layout: Layout,
    out: tuple[Array, ...],
    spot: SpotOf,
) -> FlowmlError:
    """Return the error for a write that would make a table infinite or NaN.

    Notes
    -----
    It names the replica whose value was not finite, where the write combines several.
    """
    plan, port, combining = state.plan, operator.inputs[0], operator
    if not plan.combines(operator) and not port.table:
        source = plan.operator(port.source)
        combining = source if isinstance(source.action, Aggregate) else operator
    source_port = combining.inputs[0]
    for member in plan.members(combining, instance) if plan.combines(combining) else ():
        value = state.held[combining.name, 0, member]
        flat = () if value.empty else layout.flat(value.content)
        if not all_finite(flat):
            made_by = combining if source_port.table else plan.operator(source_port.source)
            rank = plan.ranks_of(plan.scope_of(source_port), member)[0]
            return diverged(
                Spot(made_by, rank, spot().step),
                "its value must be finite",
                nonfinite(layout, flat),
            )
    return diverged(
        spot(),
        f"what this write makes of table {operator.writes!r} must be finite",
        nonfinite(layout, out),
    )


def _until(state: SerialState, operator: PlanOperator, instance: int, spot: SpotOf) -> Made:
    assert isinstance(operator.action, Until)
    value = _inputs(state, operator, instance)[0]
    if not value.empty and is_true(spot, operator.action.function, value.content):
        state.ended = True
    return ()


_RUN: dict[type, Callable[[SerialState, PlanOperator, int, SpotOf], Made]] = {
    Load: _load,
    Here: _here,
    Map: _map,
    Gradient: _gradient,
    Aggregate: _aggregate,
    Update: _write,
    Assign: _write,
    Until: _until,
}
