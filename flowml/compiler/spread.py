"""How much longer the slowest of several replicas takes than their mean, from what was timed.

Who meets waits for the slowest. Replicas differ in two ways: from step to step, which evens out
over the steps between two meetings, and by their cores, which does not. Both are in the timings: of
each round, in which replicas were timed side by side, one stretch of as many steps as lie between
two meetings is taken for each replica, and the longest counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from flowml.runtime.cores import spin_seconds
from flowml.runtime.patience import LONGEST_SLEEP, SHORTEST_SLEEP
from flowml.runtime.patience import SPIN_SECONDS as LOOK_SECONDS
from flowml.runtime.stopwatch import Timings
from flowml.types import Array

DRAWS = 16
"""Stretches that are drawn of a round which has several."""
MOST_STEPS = 2000
"""Steps of a loose run that are gone through."""
NEIGHBOURS = 32
"""How far from its own round a replica that was not timed takes that of one which was."""

_SLEEPS = np.minimum(SHORTEST_SLEEP * 2.0 ** np.arange(12), LONGEST_SLEEP)
_LOOKS = LOOK_SECONDS + np.cumsum(_SLEEPS)
"""When a waiting replica looks again, in seconds since it began to wait."""


@dataclass(frozen=True)
class Spread:
    """The slowest of some replicas between two meetings.

    Attributes
    ----------
    slowest : float
        Its time over the mean of all, at least 1.
    asleep : float
        In which part of the meetings the first one waits so long that it goes to sleep.
    meeting : float or None
        Seconds of a meeting beside waiting for the slowest, where they were timed as they meet.
    """

    slowest: float = 1.0
    asleep: float = 0.0
    meeting: float | None = None


def spread(
    timings: Sequence[Timings], rates: Mapping[str, float], replicas: int, steps: float
) -> Spread:
    """Return how replicas differ.

    Parameters
    ----------
    timings : sequence of Timings
        Of replicas that were timed together; a further one is like one of these.
    rates : mapping of str to float
        How often a step has each part; others are left out.
    replicas : int
    steps : float
        From one meeting to the next; infinite: they never meet, and only the end is waited for.
    """
    if replicas < 2 or not timings:
        return Spread()
    rng = np.random.default_rng(0)
    count = min(len(one.cuts) for one in timings) - 1
    mean_rows = np.mean([one.cuts[count] for one in timings]) / count
    joined = 1 if np.isinf(steps) else min(count, max(1, round(steps / mean_rows)))
    rounds = [_stretches(one, rates, count, steps, joined) for one in timings]
    draws = 1 if all(len(s) == 1 for of in rounds for s in of) else DRAWS
    taken = np.stack([np.concatenate([_drawn(s, draws, rng) for s in of]) for of in rounds])
    drawn = np.stack([_like(taken[k % len(taken)], k < len(taken), rng) for k in range(replicas)])
    longest, mean = drawn.max(axis=0), drawn.mean()
    stretch = 1.0 if np.isinf(steps) else max(1.0, steps)
    slept = (longest - drawn.min(axis=0)) * stretch > spin_seconds(replicas)
    slowest = float(longest.mean() / mean) if mean > 0 else 1.0
    return Spread(max(1.0, slowest), float(slept.mean()), _meeting(timings, count, steps))


def held_back(timings: Sequence[Timings], replicas: int, slack: float) -> float:
    """Return how much longer steps take that may be ahead of the slowest by so many, at least 1.

    Parameters
    ----------
    timings : sequence of Timings
        As for :func:`spread`; all parts count.
    slack : float
        Steps; infinite: only the end is waited for.

    Notes
    -----
    Step c of a replica begins when its step c - 1 has ended, and step c - slack - 1 of everyone;
    whoever has to wait for that looks for it now and then, as patience.py does.
    """
    if replicas < 2 or not timings:
        return 1.0
    rng = np.random.default_rng(0)
    count = min(MOST_STEPS, min(len(one.rows) for one in timings))
    rows = [one.rows[:count].sum(axis=1) for one in timings]
    spent = np.stack([_like(rows[k % len(rows)], k < len(rows), rng) for k in range(replicas)])
    if not spent.any():
        return 1.0
    if np.isinf(slack):
        return float(spent.mean(axis=1).max() / spent.mean())
    ended = np.zeros((count + 1, replicas))
    for step in range(count):
        began = ended[step]
        if step > slack:
            began = began + _looked_for(ended[step - int(slack)].max() - began)
        ended[step + 1] = began + spent[:, step]
    return max(1.0, float(ended[count].max() / count / spent.mean()))


def _looked_for(seconds: Array) -> Array:
    """Return when what comes after some seconds is seen: at once, or after the next sleep."""
    late = np.searchsorted(_LOOKS, seconds)
    known = _LOOKS[np.minimum(late, len(_LOOKS) - 1)]
    found = np.where(late < len(_LOOKS), known, seconds + LONGEST_SLEEP / 2)
    return np.where(seconds < LOOK_SECONDS, np.maximum(seconds, 0.0), found)


def _meeting(timings: Sequence[Timings], count: int, steps: float) -> float | None:
    """Return what is left of the rounds without the slowest one's work; None if they were longer.

    Notes
    -----
    It holds the barrier, and waking up: a replica that slept is late for the next round.
    """
    if len(timings) < 2 or any(one.cuts[1] > max(1.0, steps) for one in timings):
        return None
    work = np.stack([np.add.reduceat(one.rows.sum(axis=1), one.cuts[:count]) for one in timings])
    met = np.stack([one.meetings[:count] for one in timings])
    return float((work + met).mean() - work.max(axis=0).mean())


def _stretches(
    timings: Timings, rates: Mapping[str, float], count: int, steps: float, joined: int
) -> list[Array]:
    """Return the mean of each stretch of so many steps, round by round.

    Parameters
    ----------
    steps : float
        All steps of a round are one stretch if there are no more; infinite: those of all rounds.
    joined : int
        Rounds that count as one, where they were shorter.
    """
    weights = np.array([rates.get(part, 0.0) for part in timings.parts])
    seconds: Array = timings.rows @ weights
    cuts = timings.cuts[: count + 1]
    if np.isinf(steps):
        return [seconds[: cuts[-1]].mean(keepdims=True)]
    found = []
    for start, stop in pairwise(cuts[::joined]):
        size = min(stop - start, max(1, round(steps)))
        whole = (stop - start) // size * size
        found.append(seconds[start : start + whole].reshape(-1, size).mean(axis=1))
    return found


def _drawn(stretches: Array, draws: int, rng: np.random.Generator) -> Array:
    return stretches if draws == 1 else rng.choice(stretches, draws)


def _like(taken: Array, itself: bool, rng: np.random.Generator) -> Array:
    """Return what a replica took, or one like it that was not timed at the same moments."""
    if itself:
        return taken
    places = np.arange(len(taken)) + rng.integers(-NEIGHBOURS, NEIGHBOURS + 1, len(taken))
    return np.asarray(taken[places.clip(0, len(taken) - 1)])
