"""Whether one step of K replicas with batches of b is one of a single replica with K * b.

That is what a mean weighed by examples gives (semantics.md, section 4), and what a sum, or K
pushes under a learning rate, do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import optree
from scipy.sparse import issparse, vstack

from flowml.actions import GLOBAL, Aggregate, Here
from flowml.errors import PlanError
from flowml.keyed_rows import KeyedRows
from flowml.plan import Firing, Plan, PlanTable
from flowml.runtime.blas import blas_threads
from flowml.runtime.feeding import OneBatch, loads, local_feed, open_stream
from flowml.runtime.operations import SerialState
from flowml.runtime.outcome import Order
from flowml.runtime.private_rows import table_instance
from flowml.runtime.serial import run_step
from flowml.types import Array

TOLERANCES = {2: 3e-2, 4: 1e-3, 8: 1e-9}
"""Allowed difference by bytes a float, relative to what the step changes: the orders of two sums
differ, so the last bits do; a wrong weight differs by far more."""

ROUNDINGS = 16
"""Roundings of a parameter itself that are no difference, however small its change."""


def largest_difference(several: Plan, one: Plan, seed: int, tolerance: float | None) -> float:
    """Compare one step of several replicas with one of a single replica on the same examples.

    Parameters
    ----------
    several, one : Plan
        Of the same graph; ``one`` for one replica.
    seed : int
    tolerance : float, optional
        By the tables' dtypes when left out: see ``TOLERANCES``.

    Returns
    -------
    float
        Largest difference of a global table, relative to the largest change that the step of one
        replica makes in that table.

    Raises
    ------
    PlanError
        Naming the first table that differs by more than the tolerance.
    """
    tables = [t for t in several.tables if t.scope == GLOBAL and t.writes]
    if not tables:
        raise PlanError(
            f"graph {several.graph!r}",
            "check_equivalent compares global tables that are written",
            "none",
            "Tables of one replica need not be equal.",
        )
    batches = _batches(several, seed)
    joined = {name: [_joined(parts)] for name, parts in batches.items()}
    found = _stepped(several, batches, seed)
    wanted = _stepped(one, joined, seed)
    worst = 0.0
    for table in tables:
        before, after, other = _arrays(table, wanted[0], wanted[1], found[1])
        difference = _relative(before, after, other)
        allowed = _tolerance(after) if tolerance is None else tolerance
        if not difference <= allowed:
            raise _refusal(several, table, difference, allowed)
        worst = max(worst, difference)
    return worst


def _batches(plan: Plan, seed: int) -> dict[str, list[OneBatch]]:
    """Return the first batch of each load and rank."""
    found: dict[str, list[OneBatch]] = {}
    for operator in loads(plan):
        feed, parts = local_feed(operator, plan.replicas, seed)
        found[operator.name] = []
        for rank in range(plan.replicas):
            stream = open_stream(feed, rank, parts[rank], prefetch=False)
            found[operator.name].append(OneBatch(*stream.batch(0)))
            stream.close()
    return found


def _joined(batches: list[OneBatch]) -> OneBatch:
    """Return the batches of all ranks as one."""
    present = [b for b in batches if b.examples]
    columns = [b.content if isinstance(b.content, tuple) else (b.content,) for b in present]
    made = tuple(_stacked(parts) for parts in zip(*columns, strict=True))
    content = made if isinstance(present[0].content, tuple) else made[0]
    return OneBatch(content, sum(b.examples for b in present))


def _stacked(parts: tuple[Any, ...]) -> Any:
    return vstack(parts, format="csr") if issparse(parts[0]) else np.concatenate(parts)


Tables = dict[str, Any]


def _stepped(plan: Plan, batches: Mapping[str, list[OneBatch]], seed: int) -> tuple[Tables, Tables]:
    """Return the global tables before and after a step in which every edge delivers."""
    plan = plan.every_step()
    tables = {
        t.name: [table_instance(plan, t, i, seed) for i in range(plan.instances(t.scope))]
        for t in plan.tables
    }
    streams: dict[str, Any] = dict(batches)
    order = Order(1, None, seed=seed, on_nonfinite="ignore")
    state = SerialState(plan, order, Firing(plan), {}, streams, tables)
    first = {name: found[0].view(found[0].current) for name, found in tables.items()}
    with blas_threads(plan.blas_threads):
        run_step(state, 0)
    return first, {name: found[0].view(found[0].current) for name, found in tables.items()}


def _arrays(table: PlanTable, *tables: Tables) -> tuple[list[Array], ...]:
    """Return the arrays of one table each time; of one with rows by key, those of all its keys."""
    contents = [found[table.name] for found in tables]
    if isinstance(contents[0], KeyedRows):
        keys = np.unique(np.concatenate([rows.keys for rows in contents]))
        return tuple([rows.at(keys)] for rows in contents)
    return tuple([np.asarray(a) for a in optree.tree_leaves(content)] for content in contents)


def _relative(before: list[Array], after: list[Array], other: list[Array]) -> float:
    """Return the largest difference, less what rounding explains, over the largest change."""
    change = difference = 0.0
    for old, new, found in zip(before, after, other, strict=True):
        if not new.size:
            continue
        wide = np.result_type(new.dtype, np.float64)
        old, new, found = (a.astype(wide) for a in (old, new, found))
        rounding = ROUNDINGS * _eps(after) * np.maximum(np.abs(old), np.abs(new))
        change = max(change, float(np.abs(new - old).max()))
        gap = np.maximum(np.abs(found - new) - rounding, 0.0)
        difference = max(difference, float(gap.max()))
    if difference == 0.0:
        return 0.0
    return difference / change if change else np.inf


def _eps(leaves: list[Array]) -> float:
    return max((float(np.finfo(a.dtype).eps) for a in leaves if a.dtype.kind in "fc"), default=0.0)


def _tolerance(leaves: list[Array]) -> float:
    sizes = [np.finfo(a.dtype).bits // 8 for a in leaves if a.dtype.kind in "fc"]
    return max((TOLERANCES[min(8, s)] for s in sizes), default=0.0)


def _refusal(plan: Plan, table: PlanTable, difference: float, allowed: float) -> PlanError:
    return PlanError(
        f"table {table.name!r} ({table.site})",
        f"one step of {plan.replicas} replicas must equal one of a single replica on the same "
        f"examples, to {allowed:g} of what the step changes",
        f"a difference of {difference:.3g}",
        _suspicion(plan, table),
        table=table.name,
        difference=difference,
    )


def _suspicion(plan: Plan, table: PlanTable) -> str:
    """Say what most likely makes the difference."""
    for name in table.writes:
        operator = plan.operator(name)
        if plan.combines(operator):
            return (
                f"The pushes of {operator.label} are a sum: update with "
                'fl.aggregate("mean", values) instead.'
            )
    for operator in plan.steps:
        action = operator.action
        if isinstance(action, Aggregate) and not (
            action.reduction.divide and action.reduction.weighted and action.weight == "examples"
        ):
            return (
                f"{operator.label} is not a mean weighed by examples: use "
                'fl.aggregate("mean", values).'
            )
    if any(isinstance(o.action, Here) for o in plan.steps):
        return "Random numbers of fl.here() differ from replica to replica."
    return "A map or a loss is not a mean over the examples of its batch."
