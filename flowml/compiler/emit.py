"""Stage 5, emit: from the plan to a plain dict of Dask tasks, one for each operator and instance.

The steps of a window are unrolled. A step reads what earlier ones wrote because its tasks name
the keys of the tables that they made; a value that an edge holds or keeps is a key that is named
again. So the state of this compiler while it unrolls is the state of the serial executor with
keys in the place of values, and its loops are those of runtime/serial.py.

The work is linear in steps x operators x instances, and no task holds an array, the plan or a
function of the user: each refers to the one key that does.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dask.task_spec import List, Task, TaskRef
from dask.typing import Key

from flowml.actions import Aggregate, Assign, Load, Until, Update
from flowml.compiler.emitloads import Loads
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
    with _no_collection():
        for step in range(start, stop):
            unrolling.step(step)
            if ends or step + 1 == stop:
                marks.append(unrolling.mark(last, step + 1))
                last = step + 1
        carried = unrolling.carry(stop)
    return Window(start, stop, unrolling.tasks, carried, tuple(marks))


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the cycle collector away.

    All that is made here stays, and would be walked again and again: a large window would cost
    more than its number of tasks.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Unrolling:
    """The serial executor's state, with keys in the place of values."""

    def __init__(self, course: Course, carry: Carry) -> None:
        plan = course.plan
        self.tasks: Tasks = {}
        self._course, self._plan, self._firing = course, plan, course.firing
        self._steps = plan.steps
        self._ship = TaskRef(course.shipment)
        self._current = dict(carry.tables)
        self._written: dict[tuple[str, int], TableKeys] = {}
        self._kept, self._held = dict(carry.kept), dict(carry.held)
        self._loads = Loads(course, carry, self.tasks)
        self._arriving: dict[Input, Key] = {}
        self._now: dict[tuple[str, int, int], Key] = {}
        self._losses: list[tuple[int, int, Key]] = []
        self._ends: list[Key] = []
        self._scopes = {o.name: o.scope for o in plan.operators}
        self._table_scopes = {t.name: t.scope for t in plan.tables}
        self._splits = {t.name: course.splits(t.name) for t in plan.tables}
        self._instances = {scope: plan.instances(scope) for scope in course.first_ranks}
        self._loss_name = loss_operator(plan)
        self._record_head = course.heads[self._loss_name or plan.steps[-1].name]
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
        for operator in self._steps:
            self._deliver(operator, step)
            if self._firing.fires(operator, step):
                _EMIT.get(type(operator.action), _Unrolling._plain)(self, operator, step)
            for reader, number, port in self._periodic.get(operator.name, ()):
                self._keep(operator, reader, number, port, step)
        self._current.update(self._written)
        self._written.clear()

    def _deliver(self, reader: PlanOperator, step: int) -> None:
        """Name each edge's value of this step for its reader, or leave the last one standing."""
        for number, port in enumerate(reader.inputs):
            if not self._firing.delivers(port, step):
                continue
            for source in range(self._sources(port)):
                at = (reader.name, number, source)
                if port.table:
                    self._held[at] = self._current[port.source, source].shown
                elif port.every > 1:
                    self._held[at] = self._taken(reader, number, port, source, step)
                else:
                    self._held[at] = self._now[port.source, port.output, source]

    def _keep(
        self, operator: PlanOperator, reader: PlanOperator, number: int, port: PlanPort, step: int
    ) -> None:
        """Add what was made in this step to what an edge with a period keeps."""
        delivers = self._firing.delivers(port, step)
        for source in range(self._instances[operator.scope]):
            key = self._now.get((operator.name, port.output, source))
            if key is None:
                continue
            at = (reader.name, number, source)
            if delivers:
                self._arriving[at] = key
            elif _newest_is_enough(operator, port):
                self._kept[at] = key
            else:
                name = self._key(operator, step, source, "keep", reader.name, number)
                self._add(name, taskcalls.keep_value, port.keep, self._kept_ref(at), TaskRef(key))
                self._kept[at] = name

    def _taken(
        self, reader: PlanOperator, number: int, port: PlanPort, source: int, step: int
    ) -> Key:
        at = (reader.name, number, source)
        arriving, operator = self._arriving.pop(at, None), self._plan.operator(port.source)
        if _newest_is_enough(operator, port):
            kept = self._kept.pop(at, None)
            newest = kept if arriving is None else arriving
            assert newest is not None  # an edge delivers only what was made
            return newest
        name: Key = self._key(operator, step, source, "take", reader.name, number)
        value = None if arriving is None else TaskRef(arriving)
        self._add(name, taskcalls.take_kept, port.keep, self._kept_ref(at), value)
        self._kept.pop(at, None)
        return name

    def _kept_ref(self, at: Input) -> TaskRef | None:
        return TaskRef(self._kept[at]) if at in self._kept else None

    # --- one operator -------------------------------------------------------------------------

    def _plain(self, operator: PlanOperator, step: int) -> None:
        """Emit a map, a gradient or a place: one task an instance, and one an output if several."""
        for instance in range(self._instances[operator.scope]):
            key = self._key(operator, step, instance)
            inputs = [
                self._input(operator, number, instance) for number in range(len(operator.inputs))
            ]
            self._add(
                key, taskcalls.run_operator, self._ship, operator.name, step, instance, *inputs
            )
            if operator.name == self._loss_name:
                loss = (*key, "loss")
                self._add(loss, taskcalls.loss_of, TaskRef(key))
                self._losses.append((step, instance, loss))
            if operator.outputs == 1:
                self._now[operator.name, 0, instance] = key
                continue
            for output in self._read.get(operator.name, ()):
                picked = (*key, "output", output)
                self._add(picked, taskcalls.pick, TaskRef(key), output)
                self._now[operator.name, output, instance] = picked

    def _load(self, operator: PlanOperator, step: int) -> None:
        for rank, key in enumerate(self._loads.batches(operator, step)):
            self._now[operator.name, 0, rank] = key

    def _aggregate(self, operator: PlanOperator, step: int) -> None:
        action = operator.action
        assert isinstance(action, Aggregate)
        for instance in range(self._instances[operator.scope]):
            key = self._key(operator, step, instance)
            if action.reduction.tree:
                tree = self._tree(operator, instance)
                halves = tree if isinstance(tree, tuple) else (tree,)
                children = [self._child(operator, step, instance, half) for half in halves]
                self._add(key, finish_sum, self._ship, operator.name, step, instance, *children)
            else:
                ports = [
                    List(*self._member_inputs(operator, number, instance))
                    for number in range(len(operator.inputs))
                ]
                self._add(key, taskcalls.combine, self._ship, operator.name, step, instance, *ports)
            self._now[operator.name, 0, instance] = key

    def _child(self, operator: PlanOperator, step: int, instance: int, tree: Tree) -> Any:
        """Return what a pair adds: a member's contribution, or the partial sum of a subtree."""
        if not isinstance(tree, tuple):
            held = [
                TaskRef(self._held[operator.name, number, tree])
                for number in range(len(operator.inputs))
            ]
            return List(tree, *held)
        left, right = (self._child(operator, step, instance, half) for half in tree)
        key = self._key(operator, step, instance, _first(tree), _last(tree))
        self._add(key, add_pair, self._ship, operator.name, step, instance, left, right)
        return TaskRef(key)

    def _write(self, operator: PlanOperator, step: int) -> None:
        table = str(operator.writes)
        combines = self._plan.combines(operator)
        for instance in range(self._instances[operator.scope]):
            values = (
                self._member_inputs(operator, 0, instance)
                if combines
                else [self._input(operator, 0, instance)]
            )
            before = self._written.get((table, instance)) or self._current[table, instance]
            key = self._key(operator, step, instance)
            self._add(
                key,
                taskcalls.write_table,
                self._ship,
                operator.name,
                step,
                instance,
                TaskRef(before.state),
                List(*values),
            )
            shown: Key = key
            if self._splits[table]:
                shown = (*key, "read")
                self._add(shown, taskcalls.show, TaskRef(key))
            self._written[table, instance] = TableKeys(key, shown)
            self._now[operator.name, 0, instance] = shown

    def _until(self, operator: PlanOperator, step: int) -> None:
        for instance in range(self._instances[operator.scope]):
            key = self._key(operator, step, instance)
            self._add(
                key,
                taskcalls.run_until,
                self._ship,
                operator.name,
                step,
                instance,
                self._input(operator, 0, instance),
            )
            self._ends.append(key)

    # --- the end of a window ------------------------------------------------------------------

    def mark(self, start: int, stop: int) -> Mark:
        """Let the driver look at the steps since the last mark."""
        record = (self._record_head, stop, 0, "record")
        places = tuple((step - start, rank) for step, rank, _ in self._losses)
        self._add(
            record,
            taskcalls.record,
            stop - start,
            self._plan.replicas,
            places,
            List(*(TaskRef(key) for _, _, key in self._losses)),
            List(*map(TaskRef, self._ends)),
        )
        self._losses, self._ends = [], []
        tables = {at: keys.shown for at, keys in self._current.items()}
        unsent = {
            self._plan.edge_name(self._plan.operator(reader), number)
            for reader, number, _ in self._kept
        }
        return Mark(start, stop, record, tables, tuple(sorted(unsent)))

    def carry(self, step: int) -> Carry:
        """Return the keys of what the steps from ``step`` on will need."""
        needed = {
            (reader.name, number)
            for reader in self._steps
            for number, port in enumerate(reader.inputs)
            if self._needed(reader, port, step)
        }
        held = {at: key for at, key in self._held.items() if at[:2] in needed}
        return Carry(dict(self._current), dict(self._kept), held, self._loads.open_at(step))

    def _needed(self, reader: PlanOperator, port: PlanPort, step: int) -> bool:
        """Tell whether a reader fires again before the edge delivers again."""
        for later in range(step, step + LOOK_AHEAD_STEPS):
            if self._firing.delivers(port, later):
                return False
            if self._firing.fires(reader, later):
                return True
        return True

    # --- small things -------------------------------------------------------------------------

    def _add(self, key: Key, function: Callable[..., Any], *inputs: Any) -> None:
        self.tasks[key] = Task(key, function, *inputs)

    def _key(self, operator: PlanOperator, step: int, instance: int, *node: int | str) -> Any:
        return (self._course.heads[operator.name], step, instance, *node)

    def _sources(self, port: PlanPort) -> int:
        scopes = self._table_scopes if port.table else self._scopes
        return self._instances[scopes[port.source]]

    def _input(self, operator: PlanOperator, number: int, instance: int) -> TaskRef:
        """Return an input of an instance, from its own or a coarser scope."""
        port = operator.inputs[number]
        scope = (self._table_scopes if port.table else self._scopes)[port.source]
        rank = self._course.first_ranks[operator.scope][instance]
        return TaskRef(self._held[operator.name, number, self._plan.instance_of(scope, rank)])

    def _member_inputs(self, operator: PlanOperator, number: int, instance: int) -> list[TaskRef]:
        at = (operator.name, instance)
        if at not in self._members:
            self._members[at] = self._plan.members(operator, instance)
        return [TaskRef(self._held[operator.name, number, m]) for m in self._members[at]]

    def _tree(self, operator: PlanOperator, instance: int) -> Tree:
        at = (operator.name, instance)
        if at not in self._trees:
            self._trees[at] = self._plan.tree(operator, instance)
        return self._trees[at]


def _newest_is_enough(source: PlanOperator, port: PlanPort) -> bool:
    """Tell whether an edge keeps nothing but the newest value: a table after a write."""
    return port.keep == "last" and source.writes is not None


def _first(tree: Tree) -> int:
    return _first(tree[0]) if isinstance(tree, tuple) else tree


def _last(tree: Tree) -> int:
    return _last(tree[1]) if isinstance(tree, tuple) else tree


_EMIT: dict[type, Callable[[_Unrolling, PlanOperator, int], None]] = {
    Load: _Unrolling._load,
    Aggregate: _Unrolling._aggregate,
    Update: _Unrolling._write,
    Assign: _Unrolling._write,
    Until: _Unrolling._until,
}
