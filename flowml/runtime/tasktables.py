"""Tables of the ``tasks`` executor in the driver, and the carried state set down anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import optree
from dask.task_spec import Task, TaskRef
from dask.typing import Key

from flowml.plan import Plan
from flowml.runtime.outcome import Tables
from flowml.runtime.tablestate import make_instance
from flowml.runtime.taskcalls import show, table_value
from flowml.runtime.taskcluster import TaskCluster
from flowml.runtime.taskvalues import Flat, TableState
from flowml.runtime.taskwindow import Carry, Course, Homes, TableKeys, Tasks

Shown: TypeAlias = Mapping[tuple[str, int], Key]
"""The keys of tables as operators read them, by (table, instance)."""


def shown(carry: Carry) -> dict[tuple[str, int], Key]:
    """Return the keys of the tables that a carry holds."""
    return {at: keys.shown for at, keys in carry.tables.items()}


def fetch_tables(
    cluster: TaskCluster, course: Course, place: Homes, keys: Shown, step: int
) -> Tables:
    """Return copies of the tables; the state of their rules does not travel."""
    tasks: Tasks = {}
    for (table, instance), key in keys.items():
        name = (course.table_heads[table], step, instance, "value")
        tasks[name] = Task(name, show, TaskRef(key))
    found = cluster.fetch(tasks, place)
    return by_name(course.plan, dict(zip(keys, found, strict=True)))


def by_name(plan: Plan, found: Mapping[tuple[str, int], Flat | TableState]) -> Tables:
    """Return pytrees of private arrays, a list of the instances of each table."""
    return {
        t.name: [
            optree.tree_map(np.array, table_value(found[t.name, i]))
            for i in range(plan.instances(t.scope))
        ]
        for t in plan.tables
    }


def first_tables(plan: Plan, seed: int) -> Tables:
    """Return the tables as they stand before step 0, made in this process."""
    out: Tables = {}
    for table in plan.tables:
        made = [make_instance(plan, table, i, seed) for i in range(plan.instances(table.scope))]
        out[table.name] = [optree.tree_map(np.array, m.view(m.current)) for m in made]
    return out


def set_down(cluster: TaskCluster, carry: Carry, place: Homes, step: int) -> Carry:
    """Fetch the carried state and scatter it anew, so that Dask forgets how it was made.

    Returns
    -------
    Carry
        The same values under other keys.
    """
    loads = set(carry.loads.values())
    old = [key for key in carry.keys() - loads if key in cluster.futures]
    names: dict[Key, Key] = {}
    for number, (key, value) in enumerate(zip(old, cluster.values(old), strict=True)):
        assert isinstance(key, tuple)
        names[key] = (key[0], step, key[2], "fresh", number, step)
        cluster.put({names[key]: value}, place(key))
    return _renamed(carry, names)


def _renamed(carry: Carry, names: Mapping[Key, Key]) -> Carry:
    def new(key: Key) -> Key:
        return names.get(key, key)

    return Carry(
        {at: TableKeys(new(k.state), new(k.shown)) for at, k in carry.tables.items()},
        {at: new(k) for at, k in carry.kept.items()},
        {at: new(k) for at, k in carry.held.items()},
        carry.loads,
    )
