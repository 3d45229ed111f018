"""The same model and rule as a plain NumPy loop in one process: what a graph has to beat.

Gather a batch, differentiate, apply the rule, and nothing else: no plan, no messages, no cluster.
The batches are shuffled anew in each epoch, as those of a load are; they are not the same ones.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from flowml.actions import Load
from flowml.appraisal import Subject, loss_over
from flowml.compare.rows import NUMPY
from flowml.compare.trial import Curve, Task, Trial, judged, points_of
from flowml.data.rows import Rows
from flowml.layout import layout_of
from flowml.rules import At
from flowml.runtime.blas import blas_threads
from flowml.runtime.tablestate import RuleState, whole
from flowml.types import Array, Pytree


class PlainLoop:
    """Minibatch steps on flat buffers.

    Parameters
    ----------
    subject : Subject
        With a rule for each table.
    init : sequence of pytree
        Of each table.
    rows : Rows
    seed : int
    """

    def __init__(self, subject: Subject, init: list[Pytree], rows: Rows, seed: int) -> None:
        self._rows, self._rng = rows, np.random.default_rng(seed)
        action = subject.load.action
        assert isinstance(action, Load)
        self.batch = min(action.batch_size or len(rows), len(rows))
        self._order: Array = np.arange(len(rows))
        self._shuffles = action.shuffle and action.batch_size is not None
        self._tables = [
            _Weights(value, rule) for value, rule in zip(init, subject.rules, strict=True)
        ]
        values = tuple(t.params for t in self._tables)
        self.params: Pytree = values if subject.packed else values[0]
        self._gradient = _in_place(subject, self._tables)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a pass over the rows, the last one shorter."""
        return -(-len(self._rows) // self.batch)

    def step(self, number: int) -> None:
        """Make a step."""
        at = number % self.steps_per_epoch
        if at == 0 and self._shuffles:
            self._order = self._rng.permutation(len(self._rows))
        chosen = self._order[at * self.batch : (at + 1) * self.batch]
        batch = (
            self._rows.value()
            if len(chosen) == len(self._rows)
            else self._rows.take(chosen).value()
        )
        self._gradient(self.params, batch)
        for table in self._tables:
            table.apply(number, len(chosen))


class _Weights:
    """A table, its gradient and the state of its rule."""

    def __init__(self, init: Pytree, rule: Any) -> None:
        layout = layout_of(init)
        self._flat, self._change = layout.allocate(), layout.allocate()
        layout.write(init, self._flat)
        self.layout = layout
        self.params = layout.views(self._flat, writeable=False)
        self.out = layout.views(self._change)
        self._state = RuleState(rule, layout, whole(layout))
        self._state.start(self._flat)

    def put(self, gradient: Pytree) -> None:
        self.layout.write(gradient, self._change)

    def apply(self, step: int, examples: int) -> None:
        at = At(step, step, examples=float(examples))
        self._state.apply(self._flat, self._change, at, self._flat)


def _in_place(subject: Subject, tables: list[_Weights]) -> Callable[[Pytree, Any], None]:
    """Return a function that writes the gradient of a batch into the tables' buffers."""
    differentiate = subject.model.value_and_grad
    if len(tables) == 1 and "out" in inspect.signature(differentiate).parameters:
        out = tables[0].out
        return lambda params, batch: differentiate(params, batch, out=out)

    def write(params: Pytree, batch: Any) -> None:
        _, found = differentiate(params, batch)
        for table, gradient in zip(tables, found if subject.packed else (found,), strict=True):
            table.put(gradient)

    return write


def fits(subject: Subject, init: list[Pytree]) -> bool:
    """Tell whether a graph is a loop of gradients and rules over rows in memory."""
    known = all(rule is not None and not rule.reads for rule in subject.rules)
    return known and subject.source.dealt and not any(map(callable, init))


def numpy_trial(subject: Subject, init: list[Pytree], task: Task, threads: int = 1) -> Trial:
    """Run the loop in this process; the time of looking at losses is not counted."""
    loop = PlainLoop(subject, init, subject.source.rows(), task.seed)
    limits = (task.steps, task.epochs and task.epochs * loop.steps_per_epoch)
    total = min(limit for limit in limits if limit)
    points = set(points_of(total, task.points))
    seen = [(0, 0.0, loss_over(subject.model, loop.params, task.judged))]
    spent = 0.0
    with blas_threads(threads):
        for number in range(total):
            began = perf_counter()
            loop.step(number)
            spent += perf_counter() - began
            over = task.max_seconds is not None and spent >= task.max_seconds
            if number + 1 in points or over:
                seen.append((number + 1, spent, loss_over(subject.model, loop.params, task.judged)))
            if over:
                break
    steps, seconds, losses = np.array(seen, np.float64).T
    each = len(subject.source.rows()) / loop.steps_per_epoch
    curve = Curve(steps, seconds, steps * each, losses)
    status = "done" if np.isfinite(losses[-1]) else "diverged"
    trial = Trial(NUMPY, 1, status, int(steps[-1]), spent, curve, 0.0)
    return judged(trial, subject, loop.params, task) if status == "done" else trial
