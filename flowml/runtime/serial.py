"""The serial executor: one process, one loop, replicas interleaved in the plan's order.

It is the truth that every other executor is compared with, so it is written to be read: every
write makes new buffers, every sum follows the plan's tree, nothing is overlapped or reused.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import optree

from flowml.errors import FlowmlError
from flowml.events import Evaluated
from flowml.plan import Firing, Plan, PlanOperator
from flowml.runtime.blas import blas_threads
from flowml.runtime.evaluation import evaluate_source
from flowml.runtime.feeding import (
    loads,
    local_feed,
    open_stream,
    steps_per_epoch,
    total_steps,
)
from flowml.runtime.operations import SerialState, operate
from flowml.runtime.outcome import (
    HistoryBuilder,
    Order,
    Outcome,
    Tables,
    evaluation_due,
    history_block,
)
from flowml.runtime.private_rows import PrivateRows
from flowml.runtime.tablestate import make_instance
from flowml.runtime.values import Kept, Value, copied
from flowml.types import Array


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
    began, at = time.monotonic(), time.perf_counter()
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
    outcome.history, outcome.spans = _history(losses, seconds), state.spans(at)
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
    state.timing = state.times.due(step)
    for operator in state.plan.steps:
        _deliver(state, operator, step)
        if state.firing.fires(operator, step):
            for instance in range(state.plan.instances(operator.scope)):
                _run(state, operator, instance, step)
        _keep(state, operator)
    for instances in state.tables.values():
        for table in instances:
            table.current = table.latest
            if isinstance(table, PrivateRows):
                table.commit(1)


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


def _run(state: SerialState, operator: PlanOperator, instance: int, step: int) -> None:
    began = time.perf_counter()
    made = operate(state, operator, instance, step)
    if state.timing:
        state.note_time(operator, instance, step, began)
    for output, value in enumerate(made):
        state.now[operator.name, output, instance] = value
