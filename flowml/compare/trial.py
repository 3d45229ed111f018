"""One graph on so many replicas, and what it came to: its loss after every so many steps.

The loss is that of the tables for all replicas, over training examples that are the same for all
trials: so it means the same for a graph whose replicas see parameters of their own. It is taken
from snapshots. On a cluster replicas meet for a snapshot, and the driver fetches it, which takes
time; so there a trial is two runs, one that is timed and one that is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flowml.actions import Load
from flowml.appraisal import Subject, loss_over, rows_of, score_name, score_over
from flowml.compiler.stages import compile_graph
from flowml.data.rows import Rows
from flowml.data.source import Source
from flowml.errors import DivergedError, FlowmlError
from flowml.execution import Run
from flowml.moved import total_bytes
from flowml.plan import Plan
from flowml.run import Graph
from flowml.runtime.feeding import expected_steps, loads, local_feed, total_steps
from flowml.runtime.loose_plan import is_loose
from flowml.timeline import Timeline
from flowml.types import Array, Pytree

IN_PROCESS = ("serial", "simulated")
"""Executors that need no cluster, and where a snapshot takes no time of the steps."""
RECORDED_STEPS = 200_000
"""Steps of all replicas up to which reads and deliveries of loose edges are recorded."""


@dataclass(frozen=True)
class Task:
    """What all trials of a comparison have in common.

    Attributes
    ----------
    steps, epochs : int or None
        Whichever comes first.
    points : int
        Of a curve, its start not counted.
    judged : tuple of Rows
        Training examples that losses are taken over.
    test : Source or None
    """

    steps: int | None
    epochs: int | None
    max_seconds: float | None
    seed: int
    executor: str
    cluster: Any
    points: int
    judged: tuple[Rows, ...]
    test: Source | None


@dataclass(frozen=True)
class Curve:
    """The loss after so many steps, the start included; arrays of one length.

    Attributes
    ----------
    steps, seconds, examples, losses : ndarray of float64
        Examples are those of all replicas; seconds count from the first step.
    """

    steps: Array
    seconds: Array
    examples: Array
    losses: Array

    def reached(self, target: float) -> tuple[float, float]:
        """Return the seconds and the examples at which a loss is reached; NaN where it never is.

        Notes
        -----
        Between the last point above the target and the first one at or below it, on a straight
        line.
        """
        below = np.flatnonzero(self.losses <= target)
        if not len(below):
            return math.nan, math.nan
        at = int(below[0])
        if at == 0:
            return float(self.seconds[0]), float(self.examples[0])
        high, low = self.losses[at - 1], self.losses[at]
        part = float((high - target) / (high - low)) if np.isfinite(high) and high > low else 1.0
        seconds = self.seconds[at - 1] + part * (self.seconds[at] - self.seconds[at - 1])
        examples = self.examples[at - 1] + part * (self.examples[at] - self.examples[at - 1])
        return float(seconds), float(examples)


@dataclass(frozen=True)
class Trial:
    """What one run came to.

    Attributes
    ----------
    name : str
    replicas : int
    status : str
        How the run ended; "diverged", or "failed: " and the error.
    steps, seconds : int, float
    curve : Curve
    moved_bytes : float or None
        Between replicas, in the whole run.
    staleness_mean, staleness_max : float
        Steps that reads were late.
    train_loss, test_loss, train_score, test_score : float
        Of the final tables; NaN where there is no such thing.
    """

    name: str
    replicas: int
    status: str
    steps: int
    seconds: float
    curve: Curve
    moved_bytes: float | None = None
    staleness_mean: float = 0.0
    staleness_max: float = 0.0
    train_loss: float = math.nan
    test_loss: float = math.nan
    train_score: float = math.nan
    test_score: float = math.nan


def points_of(steps: int, points: int) -> tuple[int, ...]:
    """Return the steps after which a loss is taken: closer at the start, where it falls fast.

    Examples
    --------
    >>> points_of(100, 5), points_of(3, 5)
    ((4, 16, 36, 64, 100), (1, 2, 3))
    """
    return tuple(dict.fromkeys(-(-steps * n * n // points**2) for n in range(1, points + 1)))


def run_trial(name: str, graph: Graph, replicas: int, subject: Subject, task: Task) -> Trial:
    """Run a graph and take its curve; a run that fails is a trial with its error."""
    plan = compile_graph(graph.logical, replicas)
    total = _total_steps(plan, task)
    looks: dict[str, Any] = {
        "snapshots": points_of(total, task.points),
        "record": is_loose(plan) and total * replicas <= RECORDED_STEPS,
    }
    apart = task.executor not in IN_PROCESS
    timed = _ended(graph, replicas, task, {} if apart else looks)
    looked = _ended(graph, replicas, task, looks) if apart and timed.error is None else timed
    error = timed.error or looked.error
    if error is not None:
        return Trial(name, replicas, _status(error), 0, 0.0, Curve(*[np.zeros(0)] * 4))
    staleness = timed.history["staleness"]
    trial = Trial(
        name,
        replicas,
        timed.status,
        timed.steps,
        timed.seconds,
        curve_of(looked, timed.timeline, subject, task),
        total_bytes(looked.outcome) if replicas > 1 else 0.0,
        float(np.mean(staleness)) if len(staleness) else 0.0,
        float(np.max(staleness, initial=0)),
    )
    return judged(trial, subject, subject.params(timed.outcome.tables), task)


def _ended(graph: Graph, replicas: int, task: Task, looks: Mapping[str, Any]) -> Run:
    """Return a run that has ended, well or with an error of its graph."""
    run = graph.start(
        steps=task.steps,
        epochs=task.epochs,
        replicas=replicas,
        executor=task.executor,
        cluster=task.cluster,
        seed=task.seed,
        max_seconds=task.max_seconds,
        progress=False,
        **looks,
    )
    with suppress(FlowmlError):  # run.error has it
        run.wait()
    return run


def _status(error: BaseException) -> str:
    return "diverged" if isinstance(error, DivergedError) else f"failed: {error}"


def _total_steps(plan: Plan, task: Task) -> int:
    found = expected_steps(plan, task.seed, task.steps, task.epochs)
    if found is not None:
        return found
    feeds = [local_feed(o, plan.replicas, task.seed)[0] for o in loads(plan)]
    return total_steps(feeds, task.steps, task.epochs)


def judged(trial: Trial, subject: Subject, params: Pytree, task: Task) -> Trial:
    """Return a trial with losses and scores of its final parameters."""
    model, has_score = subject.model, bool(score_name(subject.model))
    test = task.test
    return replace(
        trial,
        train_loss=loss_over(model, params, subject.source),
        test_loss=math.nan if test is None else loss_over(model, params, test),
        train_score=score_over(model, params, subject.source) if has_score else math.nan,
        test_score=(
            score_over(model, params, test) if has_score and test is not None else math.nan
        ),
    )


def curve_of(run: Run, timeline: Timeline, subject: Subject, task: Task) -> Curve:
    """Return the losses of a run's snapshots over the judged examples.

    Parameters
    ----------
    timeline : Timeline
        Of the run that says when a step was finished; no longer than that.
    """
    outcome = run.outcome
    first = {t.name: [t.init] for t in outcome.plan.tables if t.name in subject.tables}
    last = int(timeline.steps["step"].max(initial=0)) + 1
    taken = {step: t for step, t in sorted(outcome.snapshots.items()) if step <= last}
    if not callable(first[subject.tables[0]][0]):  # made by init(here): not known here
        taken = {0: first, **taken}
    steps = np.array(list(taken), np.float64)
    losses = [loss_over(subject.model, subject.params(t), task.judged) for t in taken.values()]
    each = examples_a_step(subject, outcome.steps_per_epoch, outcome.plan.replicas)
    return Curve(steps, timeline.finished(steps), steps * each, np.array(losses, np.float64))


def examples_a_step(subject: Subject, steps_per_epoch: int, replicas: int) -> float:
    """Return the examples that all replicas take in a step, averaged over an epoch."""
    action = subject.load.action
    assert isinstance(action, Load)
    rows = rows_of(action.source)
    if steps_per_epoch:
        return rows / steps_per_epoch
    return float(rows if action.batch_size is None else action.batch_size * replicas)
