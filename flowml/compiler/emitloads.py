"""The load tasks of a window: a batch a step and rank, from partitions read once an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from dask.task_spec import Task, TaskRef
from dask.typing import Key

from flowml.plan import PlanOperator
from flowml.runtime import taskloads
from flowml.runtime.taskwindow import Carry, Course, Tasks

At = tuple[str, int, int, int]
"""(load, rank, epoch, position of the partition in the share)."""


class Loads:
    """Emits load tasks into ``tasks`` and remembers which partitions are read already."""

    def __init__(self, course: Course, carry: Carry, tasks: Tasks) -> None:
        self._course = course
        self._tasks = tasks
        self._read: dict[At, Key] = dict(carry.loads)

    def batches(self, operator: PlanOperator, step: int) -> Iterator[Key]:
        """Yield the key of the batch of each rank in a step."""
        feed, head = self._course.feeds[operator.name], self._course.heads[operator.name]
        epoch, number = divmod(step, feed.steps_per_epoch)
        for rank, order in enumerate(feed.orders):
            if order.batch_size is None:
                yield self._share(operator.name, head, rank)
                continue
            share = self._course.shares[operator.name][rank]
            parts = [
                self._part(operator.name, head, rank, epoch, position)
                for position in order.positions(epoch, number)
            ]
            yield self._add(
                (head, step, rank),
                taskloads.load_batch,
                TaskRef(share.order),
                step,
                feed.steps_per_epoch,
                *parts,
            )

    def open_at(self, step: int) -> dict[At, Key]:
        """Return whole shares, and the partitions that the batch of ``step`` is taken from."""
        found = {at: key for at, key in self._read.items() if at[2:] == (-1, -1)}
        for name, feed in self._course.feeds.items():
            epoch, number = divmod(step, feed.steps_per_epoch)
            for rank, order in enumerate(feed.orders):
                for position in order.positions(epoch, number):
                    at = (name, rank, epoch, position)
                    if at in self._read:
                        found[at] = self._read[at]
        return found

    def _share(self, name: str, head: str, rank: int) -> Key:
        """Return the key of a rank's whole share, which is the same in every step."""
        at = (name, rank, -1, -1)
        if at not in self._read:
            counts = self._course.feeds[name].orders[rank].share.counts
            parts = [self._part(name, head, rank, -1, n) for n, rows in enumerate(counts) if rows]
            self._read[at] = self._add((head, -1, rank), taskloads.load_share, *parts)
        return self._read[at]

    def _part(self, name: str, head: str, rank: int, epoch: int, position: int) -> TaskRef:
        """Return the rows of a partition; one that is not in memory is read once an epoch."""
        share = self._course.shares[name][rank]
        if not share.read:
            return TaskRef(share.parts[position])
        at = (name, rank, epoch, position)
        if at not in self._read:
            rows = self._course.feeds[name].orders[rank].share.counts[position]
            self._read[at] = self._add(
                (head, epoch, rank, "part", position),
                taskloads.read_partition,
                TaskRef(share.parts[position]),
                rows,
            )
        return TaskRef(self._read[at])

    def _add(self, key: Key, function: Callable[..., Any], *inputs: Any) -> Key:
        self._tasks[key] = Task(key, function, *inputs)
        return key
