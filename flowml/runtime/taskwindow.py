"""A window of unrolled steps: its tasks, what it carries on, and where its tasks run.

Keys are ``(f"flowml:{kind}-{name}.{suffix}", step, instance, ...)``: Dask takes the kind for the
prefix (colour and name in its dashboard, a fixed vocabulary) and the first item for the group, so
that its pages show operators.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any, TypeAlias

from dask.task_spec import GraphNode, Task, TaskRef
from dask.typing import Key

from flowml.actions import Aggregate, Update
from flowml.plan import Firing, Plan
from flowml.runtime.feeding import Feed
from flowml.runtime.taskcalls import make_table, show

Tasks: TypeAlias = dict[Key, GraphNode]

DaskClient: TypeAlias = Any
"""A ``distributed.Client``, whose methods are not typed."""

DaskFuture: TypeAlias = Any
"""A ``distributed.Future``, whose methods are not typed."""


@dataclass(frozen=True)
class RankShare:
    """Where one rank's data of one load are.

    Attributes
    ----------
    order : Key
        Of its BatchOrder.
    parts : tuple of Key
        Of its partitions.
    read : bool
        The partitions have to be read; otherwise they are Rows.
    """

    order: Key
    parts: tuple[Key, ...]
    read: bool


@dataclass(frozen=True)
class TableKeys:
    """A table instance at some moment: all of it, and what operators read of it."""

    state: Key
    shown: Key


@dataclass(frozen=True)
class Carry:
    """What one window leaves for the next: keys of values that must stay.

    Attributes
    ----------
    tables : mapping of (table, instance) to TableKeys
    kept : mapping of (reader, number of the input, instance of the source) to Key
        What an edge with a period keeps between its firings.
    held : mapping, as ``kept``
        Values that a reader will need again.
    loads : mapping of (load, rank, epoch, position) to Key
        Partitions that are read; epoch -1 is for the whole share.
    """

    tables: Mapping[tuple[str, int], TableKeys]
    kept: Mapping[tuple[str, int, int], Key] = field(default_factory=dict)
    held: Mapping[tuple[str, int, int], Key] = field(default_factory=dict)
    loads: Mapping[tuple[str, int, int, int], Key] = field(default_factory=dict)

    def keys(self) -> set[Key]:
        """Return all keys."""
        tables = chain.from_iterable((t.state, t.shown) for t in self.tables.values())
        rest = (self.kept, self.held, self.loads)
        return {*tables, *chain.from_iterable(found.values() for found in rest)}


@dataclass(frozen=True)
class Mark:
    """A step at which the driver looks at the run.

    Attributes
    ----------
    start, stop : int
        The steps that the record is about; the tables are those after ``stop`` steps.
    record : Key
    tables : mapping of (table, instance) to Key
    unsent : tuple of str
        Edges that keep values then.
    """

    start: int
    stop: int
    record: Key
    tables: Mapping[tuple[str, int], Key]
    unsent: tuple[str, ...]


@dataclass(frozen=True)
class Window:
    """Steps ``start`` to ``stop - 1`` as tasks."""

    start: int
    stop: int
    tasks: Tasks
    carry: Carry
    marks: tuple[Mark, ...]

    def outputs(self) -> set[Key]:
        """Return the keys of this window whose values must stay."""
        wanted = self.carry.keys()
        for mark in self.marks:
            wanted |= {mark.record, *mark.tables.values()}
        return {key for key in wanted if key in self.tasks}


@dataclass(frozen=True)
class Course:
    """What stays the same in all windows of a run.

    Attributes
    ----------
    plan : Plan
    feeds : mapping of str to Feed
        By load operator.
    shares : mapping of str to tuple of RankShare
        By load operator, one a rank.
    shipment : Key
        Of the `Shipment`.
    suffix : str
        Eight hexadecimal digits that end the names of this run.
    """

    plan: Plan
    feeds: Mapping[str, Feed]
    shares: Mapping[str, tuple[RankShare, ...]]
    shipment: Key
    suffix: str

    @cached_property
    def firing(self) -> Firing:
        """Which operators fire; it remembers, so all windows share it."""
        return Firing(self.plan)

    @cached_property
    def heads(self) -> dict[str, str]:
        """The first item of the keys of each operator, by its name."""
        return _heads(((o.kind, o.name) for o in self.plan.operators), self.suffix)

    @cached_property
    def table_heads(self) -> dict[str, str]:
        """The first item of the keys of each table, by its name."""
        return _heads((("table", t.name) for t in self.plan.tables), self.suffix)

    @cached_property
    def first_ranks(self) -> dict[str, tuple[int, ...]]:
        """The lowest rank of each instance, by scope."""
        plan = self.plan
        scopes = {o.scope for o in plan.operators} | {t.scope for t in plan.tables}
        return {
            scope: tuple(plan.ranks_of(scope, i)[0] for i in range(plan.instances(scope)))
            for scope in scopes
        }

    def splits(self, table: str) -> bool:
        """Tell whether readers get a table without the state of its rules.

        It costs a task a write, and saves sending that state to the workers of other ranks.
        """
        found = self.plan.table(table)
        writes = (self.plan.operator(name).action for name in found.writes)
        shared = self.plan.instances(found.scope) < self.plan.replicas
        return shared and any(isinstance(action, Update) for action in writes)


def shipment_key(suffix: str) -> Key:
    """Return the key of what the tasks of a run read of it."""
    return (f"flowml:table-plan.{suffix}", -1, 0)


def table_tasks(course: Course) -> tuple[Tasks, Carry]:
    """Return tasks that make the tables, and the carry with which a run begins."""
    tasks: Tasks = {}
    tables = {}
    for table in course.plan.tables:
        head, split = course.table_heads[table.name], course.splits(table.name)
        for instance in range(course.plan.instances(table.scope)):
            key = (head, 0, instance)
            tasks[key] = Task(key, make_table, TaskRef(course.shipment), table.name, instance)
            shown: Key = key
            if split:
                shown = (head, 0, instance, "read")
                tasks[shown] = Task(shown, show, TaskRef(key))
            tables[table.name, instance] = TableKeys(key, shown)
    return tasks, Carry(tables)


def _heads(named: Iterable[tuple[str, str]], suffix: str) -> dict[str, str]:
    """Name each operator; a hyphen would move part of the name into Dask's prefix."""
    out: dict[str, str] = {}
    taken: set[tuple[str, str]] = set()
    for kind, name in named:
        plain = name.replace("-", "_")
        while (kind, plain) in taken:
            plain += "_"
        taken.add((kind, plain))
        out[name] = f"flowml:{kind}-{plain}.{suffix}"
    return out


@dataclass(frozen=True)
class Homes:
    """Says on which worker a task runs; Dask's scheduler asks it for each key.

    Attributes
    ----------
    workers : tuple of str
        Address by rank.
    instances : mapping of str to tuple of int
        By the first item of a key: the rank of each instance.
    members : mapping of str to tuple of int
        By the first item of the keys of an aggregate: the rank of each member.
    """

    workers: tuple[str, ...]
    instances: Mapping[str, tuple[int, ...]]
    members: Mapping[str, tuple[int, ...]]

    def rank(self, key: tuple[object, ...]) -> int:
        """Return the rank on whose worker a key belongs."""
        head, _, instance, *node = key
        ranks = self.instances[str(head)]
        if len(node) == 2 and head in self.members:
            ranks, instance = self.members[str(head)], node[0]
        return ranks[instance]  # type: ignore[call-overload,no-any-return]

    def __call__(self, key: Key) -> list[str]:
        """Return the address of the worker, as the list that Dask wants."""
        assert isinstance(key, tuple)
        return [self.workers[self.rank(key)]]


def homes(course: Course, workers: tuple[str, ...]) -> Homes:
    """Return where the tasks of a run belong: sums at the lowest rank of their subtree."""
    plan, first = course.plan, course.first_ranks
    instances = {course.heads[o.name]: first[o.scope] for o in plan.operators}
    instances |= {course.table_heads[t.name]: first[t.scope] for t in plan.tables}
    members = {
        course.heads[o.name]: first[plan.scope_of(o.inputs[0])]
        for o in plan.operators
        if isinstance(o.action, Aggregate)
    }
    return Homes(workers, instances, members)
