"""Stage 5, emit: from the plan to a plain dict of Dask tasks, one for each operator and instance.

The steps of a window are unrolled. A step reads what earlier ones wrote because its tasks name
the keys of the tables that they made; a value that an edge holds or keeps is a key that is named
again. So the state of this compiler while it unrolls is the state of the serial executor with
keys in the place of values, and its loops are those of runtime/serial.py.

The work is linear in steps x operators x instances, and no task holds an array, the plan or a
function of the user: each refers to the one key that does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from dask.task_spec import GraphNode, List, Task, TaskRef
from dask.typing import Key

from flowml.actions import REPLICA, Aggregate, Assign, Load, Until, Update
from flowml.plan import PlanOperator, PlanPort, loss_operator
from flowml.reductions import Tree
from flowml.runtime import taskcalls
from flowml.runtime.tasksums import add_pair, finish_sum
from flowml.runtime.taskwindow import Carry, Course, Mark, TableKeys, Tasks, Window

Input = tuple[str, int, int]
"""(reader, number of the input, instance of the source)."""

LOOK_AHEAD_STEPS = 4096
"""How far to look for the next firing of a reader, to know if it needs a held value again."""


def emit(course: Course, start: int, stop: int, carry: Carry) -> Window:
    """Unroll steps ``start`` to ``stop - 1``.

    Parameters
    ----------
    course : Course
        The plan, and the keys of what does not change in the run.
    carry : Carry
        The keys of what the steps before left.

    Returns
    -------
    Window
        Its tasks name keys of ``course`` and ``carry`` that are not among them.
    """
    unrolling = _Unrolling(course, carry)
    marks = []
    ends = any(isinstance(o.action, Until) for o in course.plan.steps)
    last = start
    for step in range(start, stop):
        unrolling.step(step)
        if ends or step + 1 == stop:
            marks.append(unrolling.mark(last, step + 1))
            last = step + 1
    return Window(start, stop, unrolling.tasks, unrolling.carry(stop), tuple(marks))


def table_tasks(course: Course, start: int = 0) -> tuple[Tasks, Carry]:
    """Return tasks that make the tables, and the carry with which a run begins."""
    tasks: Tasks = {}
    tables = {}
    for table in course.plan.tables:
        head = course.table_heads[table.name]
        for instance in range(course.plan.instances(table.scope)):
            key = (head, start, instance)
            tasks[key] = Task(
                key, taskcalls.make_table, TaskRef(course.shipment), table.name, instance
            )
            shown: Key = key
            if _split(course, table.name):
                shown = (head, start, instance, "read")
                tasks[shown] = Task(shown, taskcalls.show, TaskRef(key))
            tables[table.name, instance] = TableKeys(key, shown)
    return tasks, Carry(tables)


def _split(course: Course, table: str) -> bool:
    """Tell whether readers get a table without the state of its rules.

    It costs a task a write, and saves sending that state to the workers of other ranks.
    """
    found = course.plan.table(table)
    writes = (course.plan.operator(name).action for name in found.writes)
    shared = course.plan.instances(found.scope) < course.plan.replicas
    return shared and any(isinstance(action, Update) for action in writes)


class _Unrolling:
    """The serial executor's state, with keys in the place of values."""

    def __init__(self, course: Course, carry: Carry) -> None:
        plan = course.plan
        self.tasks: Tasks = {}
        self._course, self._plan, self._firing = course, plan, course.firing
        self._steps = plan.steps
        self._ship = TaskRef(course.shipment)
        self._current, self._latest = dict(carry.tables), dict(carry.tables)
        self._kept, self._held = dict(carry.kept), dict(carry.held)
        self._loads = dict(carry.loads)
        self._arriving: dict[Input, Key] = {}
        self._now: dict[tuple[str, int, int], Key] = {}
        self._losses: list[tuple[int, int, Key]] = []
        self._ends: list[Key] = []
        self._scopes = {o.name: o.scope for o in plan.operators}
        self._table_scopes = {t.name: t.scope for t in plan.tables}
        self._is_split = {t.name: _split(course, t.name) for t in plan.tables}
        self._instances = {scope: plan.instances(scope) for scope in course.first_ranks}
        self._loss_name = loss_operator(plan)
        self._trees: dict[tuple[str, int], Tree] = {}
        self._members: dict[tuple[str, int], tuple[int, ...]] = {}
        self._periodic: dict[str, list[tuple[PlanOperator, int, PlanPort]]] = {}
        self._read: dict[str, set[int]] = {}
        for reader in self._steps:
            for number, port in enumerate(reader.inputs):
                if not port.table:
                    self._read.setdefault(port.source, set()).add(port.output)
                    if port.every > 1:
                        self._periodic.setdefault(port.source, []).append((reader, number, port))

    # --- one step -----------------------------------------------------------------------------

    def step(self, step: int) -> None:
        """Add the tasks of one superstep."""
        self._now.clear()
        before = self._current
        self._current = dict(self._latest)
        del before
        for operator in self._steps:
            self._deliver(operator, step)
            if self._firing.fires(operator, step):
                _EMIT.get(type(operator.action), _Unrolling._plain)(self, operator, step)
            for reader, number, port in self._periodic.get(operator.name, ()):
                self._keep(operator, reader, number, port, step)
