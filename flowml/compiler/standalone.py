"""The Dask graph of some steps as one dict that needs nothing else: for looking and teaching."""

from __future__ import annotations

from dask.base import tokenize
from dask.task_spec import DataNode, Task, TaskRef
from dask.typing import Key

from flowml.actions import Load
from flowml.compiler.emit import emit
from flowml.plan import Plan, PlanOperator
from flowml.runtime import taskcalls, taskloads
from flowml.runtime.feeding import Feed, loads, local_feed
from flowml.runtime.outcome import Order
from flowml.runtime.taskshipment import Shipment
from flowml.runtime.taskwindow import Course, RankShare, Tasks, shipment_key, table_tasks


def standalone(plan: Plan, steps: int, seed: int = 0) -> Tasks:
    """Return the tasks of the first steps, the load of their data included.

    Parameters
    ----------
    plan : Plan
    steps : int
        At least 1. An ``until`` ends nothing here, and evaluations are left out.
    seed : int
        Of the run.

    Returns
    -------
    dict of key to dask.task_spec.GraphNode
        For ``dask.get`` or ``Client.get``. Its last items are the tables, whose keys
        `result_keys` returns by name.

    Raises
    ------
    DataError
        If the data cannot be shared out.

    Notes
    -----
    Tasks leave the number of BLAS threads of the plan behind in the process that runs them.

    Examples
    --------
    >>> import dask, numpy as np, flowml as fl
    >>> w = fl.table("w", np.zeros(1))
    >>> batch = fl.load(np.array([[1.0], [3.0]]), batch_size=1, shuffle=False)
    >>> mean = fl.aggregate("mean", fl.map(lambda x: x[0], batch))
    >>> plan = fl.Graph(fl.assign(w, mean)).plan(replicas=2).physical
    >>> graph = standalone(plan, steps=1)
    >>> dask.get(graph, result_keys(plan, 1)["w"][0])
    array([2.])
    """
    course, tasks = _loading(plan, steps, seed)
    made, carry = table_tasks(course)
    window = emit(course, 0, steps, carry)
    tasks |= made | window.tasks
    for (table, instance), keys in window.carry.tables.items():
        key = (course.table_heads[table], steps, instance, "value")
        tasks[key] = Task(key, taskcalls.table_value, TaskRef(keys.shown))
    return tasks


def result_keys(plan: Plan, steps: int, seed: int = 0) -> dict[str, list[Key]]:
    """Return the keys of the tables of a standalone graph: by name, one an instance."""
    course = Course(plan, {}, {}, "", _suffix(plan, steps, seed))
    return {
        t.name: [
            (course.table_heads[t.name], steps, i, "value") for i in range(plan.instances(t.scope))
        ]
        for t in plan.tables
    }


def _suffix(plan: Plan, steps: int, seed: int) -> str:
    """Name the graph: equal plans give equal keys, with equal values."""
    data = [o.action.source.token() for o in loads(plan) if isinstance(o.action, Load)]
    named = (plan.form, data, plan.replicas, plan.groups, plan.blas_threads, steps, seed)
    return str(tokenize(named))[:8]


def _loading(plan: Plan, steps: int, seed: int) -> tuple[Course, Tasks]:
    suffix = _suffix(plan, steps, seed)
    shipment = shipment_key(suffix)
    contents = Shipment(plan, Order(steps, None, seed=seed), suffix)
    tasks: Tasks = {shipment: DataNode(shipment, contents)}
    feeds = {o.name: local_feed(o, plan.replicas, seed)[0] for o in loads(plan)}
    heads = Course(plan, feeds, {}, shipment, suffix).heads
    shares = {
        o.name: tuple(
            _share(o, feeds[o.name], rank, heads[o.name], TaskRef(shipment), tasks)
            for rank in range(plan.replicas)
        )
        for o in loads(plan)
    }
    return Course(plan, feeds, shares, shipment, suffix), tasks


def _share(
    operator: PlanOperator, feed: Feed, rank: int, head: str, shipment: TaskRef, tasks: Tasks
) -> RankShare:
    action = operator.action
    assert isinstance(action, Load)
    order = (head, -2, rank)
    tasks[order] = DataNode(order, feed.orders[rank])
    if action.source.dealt:
        key = (head, -2, rank, "share")
        tasks[key] = Task(key, taskloads.own_share, shipment, operator.name, rank)
        return RankShare(order, (key,), read=False)
    parts: list[Key] = []
    for number in feed.orders[rank].share.ids:
        parts.append((head, -2, rank, number))
        tasks[parts[-1]] = Task(parts[-1], taskloads.own_partition, shipment, operator.name, number)
    return RankShare(order, tuple(parts), read=True)
