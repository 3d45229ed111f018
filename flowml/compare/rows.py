"""A row for each graph and number of replicas: what its trials came to, as numbers and in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from dask.utils import format_bytes

from flowml.compare.trial import Trial
from flowml.compiler.shown import shown_seconds

NUMPY = "NumPy loop"
"""Name of the row that has no graph."""
LEAST_PART = 0.5
"""Where nobody names a target, all count that come this part of the way to the best loss."""
WELL = ("done", "until", "stopped")
"""How a run ends that did not fail."""


@dataclass(frozen=True)
class Row:
    """One graph on so many replicas; NaN where something is not known.

    Attributes
    ----------
    graph : str
    replicas : int
    status : str
    target_seconds, target_examples : float
        Until the training loss was down to the target; NaN: it never was.
    speedup : float
        Against the same graph on one replica, in the time to the target.
    efficiency : float
        Speed-up by replicas.
    against_numpy : float
        How many times as fast as the plain NumPy loop to the same loss.
    moved_bytes : float
        Between replicas, in the whole run.
    staleness, staleness_max : float
        Steps that reads were late, on average and at most.
    train_loss, test_loss, train_score, test_score : float
        Of the final parameters.
    gap : float
        ``train_score - test_score``; of models without a score ``test_loss - train_loss``.
    steps, seconds : int, float
        Of the whole run.
    """

    graph: str
    replicas: int
    status: str
    target_seconds: float
    target_examples: float
    speedup: float
    efficiency: float
    against_numpy: float
    moved_bytes: float
    staleness: float
    staleness_max: float
    train_loss: float
    test_loss: float
    train_score: float
    test_score: float
    gap: float
    steps: int
    seconds: float

    @property
    def name(self) -> str:
        """Graph and replicas, in a few words."""
        return named(self.graph, self.replicas)

    @property
    def reached(self) -> bool:
        """Whether the loss was down to the target."""
        return not math.isnan(self.target_seconds)


def named(graph: str, replicas: int) -> str:
    """Return what to call a trial.

    Examples
    --------
    >>> named("ssp", 2), named(NUMPY, 1)
    ('ssp, 2 replicas', 'NumPy loop')
    """
    if graph == NUMPY:
        return graph
    return f"{graph}, {replicas} replica{'' if replicas == 1 else 's'}"


def chosen_target(trials: Sequence[Trial]) -> float:
    """Return the lowest loss that all trials come to, but those that do not come half of the way.

    Notes
    -----
    The way is from the first loss of any trial to the best of all.
    """
    curves = [t.curve.losses[np.isfinite(t.curve.losses)] for t in trials]
    known = [losses for losses in curves if len(losses)]
    if not known:
        return math.nan
    first = max(float(losses[0]) for losses in known)
    best = min(float(losses.min()) for losses in known)
    enough = first + LEAST_PART * (best - first)
    return max(low for low in (float(losses.min()) for losses in known) if low <= enough)


def rows_of(trials: Sequence[Trial], target: float) -> tuple[Row, ...]:
    """Return a row for each graph and number of replicas; of repetitions the median in time."""
    places = dict.fromkeys((t.name, t.replicas) for t in trials)
    groups = {at: _by_time(trials, at, target) for at in places}
    middle = {at: group[(len(group) - 1) // 2] for at, group in groups.items()}
    times = {at: _median_time(group, target) for at, group in groups.items()}
    plain = times.get((NUMPY, 1), math.nan)
    return tuple(
        _row(middle[at], target, times[at], times.get((at[0], 1), math.nan), plain) for at in places
    )


def _by_time(trials: Sequence[Trial], place: tuple[str, int], target: float) -> list[Trial]:
    group = [t for t in trials if (t.name, t.replicas) == place]
    ends = {id(t): t.curve.reached(target)[0] for t in group}
    return sorted(group, key=lambda t: (math.isnan(ends[id(t)]), ends[id(t)]))


def _median_time(group: Sequence[Trial], target: float) -> float:
    reached = [t.curve.reached(target)[0] for t in group]
    known = [seconds for seconds in reached if not math.isnan(seconds)]
    return float(np.median(known)) if known else math.nan


def _row(trial: Trial, target: float, seconds: float, alone: float, plain: float) -> Row:
    speedup = math.nan if trial.name == NUMPY else _ratio(alone, seconds)
    gap = trial.train_score - trial.test_score
    return Row(
        trial.name,
        trial.replicas,
        trial.status,
        seconds,
        trial.curve.reached(target)[1],
        speedup,
        speedup / trial.replicas,
        _ratio(plain, seconds),
        math.nan if trial.moved_bytes is None else trial.moved_bytes,
        trial.staleness_mean,
        trial.staleness_max,
        trial.train_loss,
        trial.test_loss,
        trial.train_score,
        trial.test_score,
        trial.test_loss - trial.train_loss if math.isnan(gap) else gap,
        trial.steps,
        trial.seconds,
    )


def _ratio(before: float, after: float) -> float:
    return before / after if after else math.nan


# -- words ----------------------------------------------------------------------------------------


def header_of(score: str, *, virtual: bool) -> tuple[str, ...]:
    """Return the names of the columns of the table.

    Parameters
    ----------
    score : str
        What the model's score is; "" where it has none: then losses stand in its place.
    virtual : bool
        Times are those of a simulation.
    """
    measure = score or "loss"
    return (
        "graph",
        "replicas",
        "virtual time" if virtual else "time",
        "examples",
        "speed-up",
        "efficiency",
        "x NumPy",
        "bytes",
        "staleness",
        f"train {measure}",
        f"test {measure}",
        "gap",
    )


def cells_of(row: Row, score: str) -> tuple[str, ...]:
    """Return a row in words."""
    train, test = row.train_loss, row.test_loss
    if score:
        train, test = row.train_score, row.test_score
    stopped = "not reached" if row.status in WELL else row.status.partition(":")[0]
    return (
        row.graph,
        str(row.replicas),
        shown_seconds(row.target_seconds) if row.reached else stopped,
        f"{row.target_examples:,.0f}" if row.reached else "-",
        _number(row.speedup, "{:.2f}"),
        _number(row.efficiency, "{:.0%}"),
        _number(row.against_numpy, "{:.2f}"),
        "-" if math.isnan(row.moved_bytes) else format_bytes(round(row.moved_bytes)),
        f"{row.staleness:.1f} (max {row.staleness_max:.0f})" if row.staleness_max else "0",
        _number(train, "{:.4f}"),
        _number(test, "{:.4f}"),
        _number(row.gap, "{:+.4f}"),
    )


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else form.format(value)


def target_words(target: float, *, chosen: bool) -> str:
    """Say what the times are to."""
    how = ", which all come to that get half of the way to the best" if chosen else ""
    return f"time and examples to a training loss of {target:.4g}{how}"


def verdict_of(rows: Sequence[Row]) -> str:
    """Say which row was the first to the target, and whether plain NumPy was faster."""
    there = [row for row in rows if row.reached]
    if not there:
        return "Nothing came to the target."
    first = min(there, key=lambda row: row.target_seconds)
    words = f"First to the target: {first.name}, in {shown_seconds(first.target_seconds)}"
    if first.graph == NUMPY:
        return f"{words}. One process is enough for this."
    ratios = {"one replica": first.speedup if first.replicas > 1 else math.nan,
              f"the {NUMPY}": first.against_numpy}  # fmt: skip
    known = [f"{r:.2f} times as fast as {what}" for what, r in ratios.items() if not math.isnan(r)]
    return f"{words}{': ' if known else ''}{' and '.join(known)}."
