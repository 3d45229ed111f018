"""The loop body of each operator in the resident executor: functions of the step, made once.

They do the arithmetic of the serial executor on buffers that are reused, and on slices of them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from flowml.actions import Gradient, Here, Load, LookUp, Map, Until
from flowml.data.share import random_seed
from flowml.layout import layout_of
from flowml.plan import PlanOperator, loss_operator
from flowml.runtime.calls import (
    Spot,
    call,
    call_gradient,
    check_finite_loss,
    check_outputs,
    is_true,
    raise_explained,
    returned,
)
from flowml.runtime.domain import Region, kept_by_source, reads_table_buffers
from flowml.runtime.inputs import Getter, Pattern, gather, getter
from flowml.runtime.place import Place
from flowml.runtime.rank import Rank
from flowml.runtime.values import EMPTY, Kept, Value

Act: TypeAlias = Callable[[int], None]


def spot_at(rank: Rank, operator: PlanOperator, step: int) -> Callable[[], Spot]:
    """Return a function that names the place of a call, made only when something is wrong."""
    return lambda: Spot(operator, rank.number, step, rank.worker)


def out_regions(pattern: Pattern, operator: PlanOperator) -> list[Region | None]:
    """Return, for each output, the region that other ranks read in every step, or None."""
    rank = pattern.rank
    found: list[Region | None] = [None] * max(1, operator.outputs)
    for reader in rank.plan.steps:
        for port in reader.inputs:
            if port.source != operator.name or port.table or not port.crosses:
                continue
            if kept_by_source(rank.plan, port) or reads_table_buffers(rank.plan, port):
                continue
            instance = rank.instance(operator.scope)
            found[port.output] = pattern.region(("out", operator.name, port.output, instance))
    return found


def publish(pattern: Pattern, operator: PlanOperator) -> Callable[[int, list[Value]], None]:
    """Return a function that puts outputs into registers and into regions that others read."""
    rank = pattern.rank
    registers = rank.registers
    slots = [rank.slots[operator.name, n] for n in range(max(1, operator.outputs))]
    regions = out_regions(pattern, operator)

    def put(step: int, values: list[Value]) -> None:
        for slot, region, value in zip(slots, regions, values, strict=True):
            registers[slot] = value
            if region is not None:
                put_checked(rank, operator, region, value, step)

    return put


def put_checked(
    rank: Rank, operator: PlanOperator, region: Region, value: Value, step: int
) -> None:
    """Copy a value into a region, refusing one of another structure, shape or dtype."""
    if not value.empty:
        wrong = region.layout.mismatch(value.content)
        if wrong is not None:
            raise returned(
                Spot(operator, rank.number, step, rank.worker),
                "its value must have the same structure, shapes and dtypes in every replica and "
                "step",
                wrong,
                "Return arrays of one shape.",
            )
    region.put(value.content, value.examples)


def source_keeps(pattern: Pattern, operator: PlanOperator) -> list[Act]:
    """Return the actions that keep, and hand over, what edges with a period skip."""
    rank = pattern.rank
    acts = []
    for reader in rank.plan.steps:
        for number, port in enumerate(reader.inputs):
            if port.source == operator.name and kept_by_source(rank.plan, port) and port.crosses:
                acts.append(_keep_and_deliver(pattern, operator, reader, number))
    return acts


def _keep_and_deliver(
    pattern: Pattern, operator: PlanOperator, reader: PlanOperator, number: int
) -> Act:
    rank, port = pattern.rank, reader.inputs[number]
    instance = rank.instance(operator.scope)
    region = pattern.region(("port", reader.name, number, instance))
    keeps, fires = rank.firing.keeps(port), pattern.fires(operator.name)
    delivers = pattern.delivers(reader, number)
    kept = rank.kept.setdefault((reader.name, number), Kept(port.keep))
    if operator.writes is not None:
        table, writes = (
            rank.tables[operator.writes],
            pattern.writes_before(operator, including=True),
        )
        get: Getter = partial(table.value, writes)
    else:
        registers, slot = rank.registers, rank.slots[port.source, port.output]
        get = lambda: registers[slot]  # noqa: E731 - a getter like the others

    def act(step: int) -> None:
        if keeps and fires:
            kept.put(get())
        if delivers:
            put_checked(rank, operator, region, kept.take() if keeps else get(), step)

    return act


def load_body(pattern: Pattern, operator: PlanOperator) -> Act:
    """Return the body of a load: the next batch of this rank's stream."""
    rank = pattern.rank
    assert isinstance(operator.action, Load)
    batch, put = rank.streams[operator.name].batch, publish(pattern, operator)
    number, enter = rank.index[operator.name], rank.enter
    slot, registers = rank.slots[operator.name, 0], rank.registers
    is_read_elsewhere = any(region is not None for region in out_regions(pattern, operator))

    def act(step: int) -> None:
        enter(number, step)
        try:
            content, examples = batch(step)
        except BaseException as error:
            raise_explained(Spot(operator, rank.number, step, rank.worker), error)
        value = Value(content, examples) if examples else EMPTY
        if is_read_elsewhere:
            put(step, [value])
        else:
            registers[slot] = value

    return act


def here_body(pattern: Pattern, operator: PlanOperator) -> Act:
    """Return the body of ``here``."""
    rank, plan, action = pattern.rank, pattern.rank.plan, operator.action
    assert isinstance(action, Here)
    entropy = (rank.order.seed, action.seed, random_seed(operator.name))
    put, group = publish(pattern, operator), plan.group_of[rank.number]

    def act(step: int) -> None:
        put(step, [Value(Place(rank.number, plan.replicas, group, step, entropy), None)])

    return act


def map_body(pattern: Pattern, operator: PlanOperator) -> Act:
    """Return the body of a map."""
    rank, action = pattern.rank, operator.action
    assert isinstance(action, Map)
    getters = [getter(pattern, operator, n) for n in range(len(operator.inputs))]
    put, function, outputs = publish(pattern, operator), action.function, operator.outputs
    number, enter = rank.index[operator.name], rank.enter

    def act(step: int) -> None:
        enter(number, step)
        spot = spot_at(rank, operator, step)
        values, examples = gather(getters, spot)
        if examples == 0:
            put(step, [EMPTY] * outputs)
            return
        result = call(spot, function, *[v.content for v in values])
        put(step, [Value(c, examples) for c in check_outputs(spot, result, outputs)])

    return act


def until_body(pattern: Pattern, operator: PlanOperator) -> Act:
    """Return the body of an end of the run."""
    rank, action, get = pattern.rank, operator.action, getter(pattern, operator, 0)
    assert isinstance(action, Until)
    function, number, enter = action.function, rank.index[operator.name], rank.enter

    def act(step: int) -> None:
        enter(number, step)
        value = get()
        if not value.empty:
            spot = spot_at(rank, operator, step)
            rank.ended = rank.ended or is_true(spot, function, value.content)

    return act


def gradient_body(pattern: Pattern, operator: PlanOperator) -> Act:
    """Return the body of a gradient, writing in place where the model can."""
    action = operator.action
    assert isinstance(action, Gradient)
    writes_in_place = (
        action.tables == 1
        and not _looked_up(pattern, operator, 0)
        and not action.packed
        and not action.aux
        and "out" in inspect.signature(action.model.value_and_grad).parameters
    )
    return (_gradient_in_place if writes_in_place else _gradient_returned)(pattern, operator)


def _looked_up(pattern: Pattern, operator: PlanOperator, number: int) -> bool:
    """Tell whether an input is rows of a table: as many as there are ids in a step."""
    port = operator.inputs[number]
    if port.table:
        return False
    return isinstance(pattern.rank.plan.operator(port.source).action, LookUp)


def _gradient_in_place(pattern: Pattern, operator: PlanOperator) -> Act:
    rank, action = pattern.rank, operator.action
    assert isinstance(action, Gradient)
    getters = [getter(pattern, operator, n) for n in range(len(operator.inputs))]
    region = out_regions(pattern, operator)[0]
    layout = rank.layouts[operator.name, 0]
    buffers = region.buffers if region is not None else layout.allocate()
    rank.flats[operator.name, 0] = buffers
    out, made = layout.views(buffers), layout.views(buffers, writeable=False)
    rank.backing[id(made)] = buffers
    slot, registers = rank.slots[operator.name, 0], rank.registers
    value_and_grad = action.model.value_and_grad
    number, enter, checks = rank.index[operator.name], rank.enter, rank.order.on_nonfinite == "stop"
    records = operator.name == loss_operator(rank.plan)

    def act(step: int) -> None:
        enter(number, step)
        spot = spot_at(rank, operator, step)
        values, examples = gather(getters, spot)
        if region is not None:
            region.header[0] = math.nan if examples is None else examples
        if examples == 0:
            registers[slot] = EMPTY
            return
        try:
            loss, _ = value_and_grad(*[v[0] for v in values], out=out)
        except BaseException as error:
            raise_explained(spot(), error)
        if checks and not math.isfinite(loss):
            check_finite_loss(spot, loss)
        if records:
            rank.loss = loss
        registers[slot] = Value(made, examples)

    return act


def _gradient_returned(pattern: Pattern, operator: PlanOperator) -> Act:
    rank, action = pattern.rank, operator.action
    assert isinstance(action, Gradient)
    getters = [getter(pattern, operator, n) for n in range(len(operator.inputs))]
    layouts = [
        None if _looked_up(pattern, operator, n) else rank.layouts[operator.name, n]
        for n in range(action.tables)
    ]
    put, count = publish(pattern, operator), action.tables
    number, enter, checks = rank.index[operator.name], rank.enter, rank.order.on_nonfinite == "stop"
    records = operator.name == loss_operator(rank.plan)

    def act(step: int) -> None:
        enter(number, step)
        spot = spot_at(rank, operator, step)
        values, examples = gather(getters, spot)
        if examples == 0:
            put(step, [EMPTY] * operator.outputs)
            return
        contents: list[Any] = [v.content for v in values]
        known = [found or layout_of(c) for found, c in zip(layouts, contents, strict=False)]
        loss, gradients, beside = call_gradient(
            spot, action, contents[:count], contents[count:], known
        )
        if checks:
            check_finite_loss(spot, loss)
        if records:
            rank.loss = loss
        put(step, [Value(c, examples) for c in (*gradients, *beside)])

    return act
