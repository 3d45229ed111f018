"""The serial executor: one process, one loop, replicas interleaved in the plan's order.

It is the truth that every other executor is compared with, so it is written to be read: every
write makes new buffers, every sum follows the plan's tree, nothing is overlapped or reused.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import optree

from flowml.actions import Aggregate, Assign, Gradient, Here, Load, Map, Until, Update
from flowml.data.share import random_seed
from flowml.data.stream import BatchStream
from flowml.errors import FlowmlError
from flowml.events import Evaluated
from flowml.layout import Layout, layout_of
from flowml.plan import Firing, Plan, PlanOperator, loss_operator
from flowml.reductions import reduce_slices
from flowml.rules import At
from flowml.runtime.blas import blas_threads
from flowml.runtime.calls import (
    Spot,
    all_finite,
    call,
    call_gradient,
    check_finite_loss,
    check_outputs,
    diverged,
    is_true,
    mismatch,
    nonfinite,
    number_of,
    placed_errors,
    returned,
)
from flowml.runtime.evaluation import evaluate_source
from flowml.runtime.feeding import (
    Feed,
    loads,
    local_feed,
    open_stream,
    steps_per_epoch,
    total_steps,
)
from flowml.runtime.outcome import (
    HistoryBuilder,
    Order,
    Outcome,
    Tables,
    evaluation_due,
    history_block,
)
from flowml.runtime.place import Place
from flowml.runtime.tablestate import TableInstance, make_instance
from flowml.runtime.values import EMPTY, Kept, Value, agreed_examples, copied
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
    tables: dict[str, list[TableInstance]]
    kept: dict[tuple[str, int, int], Kept] = field(default_factory=dict)
    """By (reader, number of the input, instance of the source)."""
    held: dict[tuple[str, int, int], Value] = field(default_factory=dict)
    """Last value delivered, by (reader, number of the input, instance of the source)."""
    now: dict[Key, Value] = field(default_factory=dict)
    """What was made in this step."""
    loss: dict[int, float] = field(default_factory=dict)
    ended: bool = False


def start(plan: Plan, order: Order) -> SerialState:
    """Read the data, make the tables, and stand before step 0."""
    feeds, streams = {}, {}
    for operator in loads(plan):
        feed, parts = local_feed(operator, plan.replicas, order.seed)
        feeds[operator.name] = feed
        streams[operator.name] = [
            open_stream(feed, rank, parts[rank], prefetch=False) for rank in range(plan.replicas)
        ]
    tables = {
        t.name: [make_instance(plan, t, i, order.seed) for i in range(plan.instances(t.scope))]
        for t in plan.tables
    }
    return SerialState(plan, order, Firing(plan), feeds, streams, tables)


def run_serial(
    plan: Plan, order: Order, should_stop: Callable[[], bool] = lambda: False
) -> Outcome:
    """Run a plan in this process.

    Returns
    -------
    Outcome
        With ``error`` set, and the tables of the last whole step, if an operator failed.
    """
    with blas_threads(plan.blas_threads):
        state = start(plan, order)
        try:
            return _loop(state, should_stop)
        finally:
            for stream in (s for streams in state.streams.values() for s in streams):
                stream.close()


def _loop(state: SerialState, should_stop: Callable[[], bool]) -> Outcome:
    plan, order = state.plan, state.order
    feeds = list(state.feeds.values())
    last = total_steps(feeds, order.steps, order.epochs)
    epoch = steps_per_epoch(feeds)
    dropped = {f.name: f.dropped() for f in feeds}
    outcome = Outcome(plan, steps_per_epoch=epoch, dropped_rows=dropped)
    losses: list[list[float]] = [[] for _ in range(plan.replicas)]
    seconds: list[float] = []
    began = time.monotonic()
    step = 0
    while step < last:
        since = time.perf_counter()
        try:
            run_step(state, step)
        except FlowmlError as error:
            outcome.error, outcome.status = error, "failed"
            break
        seconds.append(time.perf_counter() - since)
        for rank in range(plan.replicas):
            losses[rank].append(state.loss.get(rank, np.nan))
        step += 1
        late = order.max_seconds is not None and time.monotonic() - began >= order.max_seconds
        if state.ended or late or should_stop():
            outcome.status = "until" if state.ended else "stopped"
        _after(state, outcome, step, epoch, ends=step == last or outcome.status != "done")
        if outcome.status != "done":
            break
    outcome.steps = step
    outcome.tables = table_values(state)
    outcome.seconds = time.monotonic() - began
    outcome.history = _history(losses, seconds)
    outcome.unsent = tuple(
        sorted(
            {
                plan.edge_name(plan.operator(reader), number)
                for (reader, number, _), kept in state.kept.items()
                if kept.seen
            }
        )
    )
    return outcome


def _after(state: SerialState, outcome: Outcome, step: int, epoch: int, *, ends: bool) -> None:
    if step in state.order.snapshots:
        outcome.snapshots[step] = table_values(state)
    for name in evaluation_due(state.plan, step, epoch, ends):
        operator = state.plan.operator(name)
        table = evaluated_table(state.plan, operator)
        instance = state.tables[table][0]
        metrics = evaluate_source(operator, instance.view(instance.current), step)
        outcome.metrics.append({"step": step, "name": name, **metrics})
        state.order.tell(Evaluated(step=step, name=name, metrics=metrics))


def evaluated_table(plan: Plan, operator: PlanOperator) -> str:
    """Return the name of the table that an evaluation reads."""
    port = operator.inputs[0]
    return port.source if port.table else str(plan.operator(port.source).writes)


def _history(losses: list[list[float]], seconds: list[float]) -> dict[str, Array]:
    builder = HistoryBuilder()
    spent = np.asarray(seconds)
    for rank, loss in enumerate(losses):
        steps = range(len(loss))
        builder.add(history_block(steps, rank, np.asarray(loss), spent, np.zeros(len(loss))))
    return builder.columns()


def table_values(state: SerialState) -> Tables:
    """Return copies of all tables."""
    return {
        name: [optree.tree_map(np.array, i.view(i.current)) for i in instances]
        for name, instances in state.tables.items()
    }


def run_step(state: SerialState, step: int) -> None:
    """Run one superstep: every operator that fires, every instance, in the plan's order."""
    state.now.clear()
    state.loss.clear()
    for operator in state.plan.steps:
        _deliver(state, operator, step)
        if state.firing.fires(operator, step):
            for instance in range(state.plan.instances(operator.scope)):
                _run(state, operator, instance, step)
        _keep(state, operator)
    for instances in state.tables.values():
        for table in instances:
            table.current = table.latest


def _keep(state: SerialState, operator: PlanOperator) -> None:
    """Add what an operator made to the edges that keep values between their firings."""
    for reader in state.plan.steps:
        for number, port in enumerate(reader.inputs):
            if port.source != operator.name or port.table or port.every == 1:
                continue
            for source in range(state.plan.instances(operator.scope)):
                value = state.now.get((operator.name, port.output, source))
                if value is not None:
                    kept = state.kept.setdefault((reader.name, number, source), Kept(port.keep))
                    kept.put(value)


def _deliver(state: SerialState, reader: PlanOperator, step: int) -> None:
    """Hand each edge's value of this step to its reader, or leave the last one standing."""
    for number, port in enumerate(reader.inputs):
        if not state.firing.delivers(port, step):
            continue
        for source in range(state.plan.instances(state.plan.scope_of(port))):
            key = (reader.name, number, source)
            if port.table:
                table = state.tables[port.source][source]
                value = Value(table.view(table.current), None)
                if port.every > 1:
                    value = Value(copied(value.content), None)
            elif port.every > 1:
                value = state.kept[key].take()
            else:
                value = state.now[port.source, port.output, source]
            state.held[key] = value


def _inputs(state: SerialState, operator: PlanOperator, instance: int) -> list[Value]:
    """Return the inputs of an instance that come from its own or a coarser scope."""
    rank = state.plan.ranks_of(operator.scope, instance)[0]
    return [
        state.held[operator.name, n, state.plan.instance_of(state.plan.scope_of(p), rank)]
        for n, p in enumerate(operator.inputs)
    ]


def _run(state: SerialState, operator: PlanOperator, instance: int, step: int) -> None:
    for output, value in enumerate(operate(state, operator, instance, step)):
        state.now[operator.name, output, instance] = value


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
    result = call(spot, operator.action.function, *(v.content for v in values))
    return tuple(Value(c, examples) for c in check_outputs(spot, result, operator.outputs))


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
        check_finite_loss(spot, loss)
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
        at = At(spot().step, rule.applied, 0, writer, value.examples or 0.0)
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
