"""One step on one batch, to learn the layout of what will cross between replicas.

It also finds most mistakes of operators (wrong shapes and dtypes, exceptions, None) before any
worker is touched. Operators are pure, so nothing of it remains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from time import perf_counter
from typing import Any

from flowml.errors import FlowmlError
from flowml.layout import Layout, layout_of
from flowml.plan import Firing, Plan, PlanOperator
from flowml.runtime.blas import blas_threads
from flowml.runtime.calls import Spot, returned
from flowml.runtime.domain import reads_table_buffers
from flowml.runtime.feeding import OneBatch
from flowml.runtime.operations import SerialState
from flowml.runtime.outcome import Order
from flowml.runtime.private_rows import table_instance
from flowml.runtime.serial import run_step
from flowml.runtime.values import Value

QUICK_SECONDS = 0.02
Batches = Mapping[str, tuple[Any, float]]
"""One batch of each load: (value, examples)."""


def probe(
    plan: Plan, batches: Batches, seed: int, worker: str = "driver"
) -> dict[tuple[str, int], Layout]:
    """Return the layouts of tables, as (table, -1), and of all outputs that are arrays.

    Raises
    ------
    OperatorError, DataError
        What the first step of the run would raise.
    """
    return timed_probe(plan, batches, seed, worker)[0]


def timed_probe(
    plan: Plan, batches: Batches, seed: int, worker: str = "driver"
) -> tuple[dict[tuple[str, int], Layout], float]:
    """Return the layouts, and about how many seconds a step of one replica takes.

    Raises
    ------
    OperatorError, DataError
        What the first step of the run would raise.
    """
    single = _single(plan)
    tables = {t.name: [table_instance(single, t, 0, seed)] for t in single.tables}
    streams: dict[str, Any] = {name: [OneBatch(*batch)] for name, batch in batches.items()}
    order = Order(1, None, seed=seed, on_nonfinite="ignore")
    state = SerialState(single, order, Firing(single), {}, streams, tables)
    _check_batches(single, batches)
    with blas_threads(plan.blas_threads):
        seconds = _seconds_of_step(state)
        if seconds < QUICK_SECONDS:  # most of it was the first time that anything is called
            seconds = _seconds_of_step(state)
    layouts = {
        (name, -1): instances[0].layout
        for name, instances in tables.items()
        if instances[0].layout is not None
    }
    for (operator, output, _), value in state.now.items():
        layout = _layout_of_output(plan, plan.operator(operator), output, value, worker)
        if layout is not None:
            layouts[operator, output] = layout
    return layouts, seconds


def _seconds_of_step(state: SerialState) -> float:
    began = perf_counter()
    run_step(state, 0)
    return perf_counter() - began


def _single(plan: Plan) -> Plan:
    """Return the plan for one replica, with every edge delivering in every step."""
    return replace(plan.every_step(), replicas=1, groups=((0,),))


def _layout_of_output(
    plan: Plan, operator: PlanOperator, output: int, value: Value, worker: str
) -> Layout | None:
    if value.empty or operator.writes:
        return None
    try:
        return layout_of(value.content)
    except TypeError as error:
        if not _crosses(plan, operator, output):
            return None
        raise returned(
            Spot(operator, 0, 0, worker),
            "what other replicas read must be a pytree of numeric arrays",
            str(error),
            "Return arrays, or use the value in one replica only.",
        ) from error


def _crosses(plan: Plan, operator: PlanOperator, output: int) -> bool:
    return any(
        p.crosses and not reads_table_buffers(plan, p)
        for o in plan.steps
        for p in o.inputs
        if not p.table and p.source == operator.name and p.output == output
    )


def _check_batches(plan: Plan, batches: Batches) -> None:
    """Let each model look at the first batch: labels that its loss cannot take are refused."""
    for operator in plan.steps:
        model = getattr(operator.action, "model", None)
        check = getattr(model, "check_batch", None)
        if check is None:
            continue
        for port in operator.inputs:
            if port.source in batches:
                try:
                    check(batches[port.source][0])
                except FlowmlError as error:
                    place = f"{operator.label}: {error.where}"
                    raise type(error)(place, error.required, error.got, error.fix) from error
