"""The steps of all replicas on one clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from flowml.history import History
from flowml.plan import Plan
from flowml.runtime.loose_plan import is_loose
from flowml.runtime.outcome import Outcome
from flowml.runtime.spans import as_spans
from flowml.thinning import FULL_STEPS
from flowml.timeline.chrome import Trace
from flowml.timeline.pace import Pace, paces
from flowml.types import Array

WAITING, BETWEEN = "waiting", "between"
"""Where the time of a step goes beside its operators: to waits, and to what lies between."""


class Timeline:
    """When each replica computed and waited.

    Attributes
    ----------
    steps : History
        ``replica``, ``step``, ``began``, ``seconds``, ``wait_seconds``, ``loss`` and
        ``staleness``; thinned as the history is.
    operators : History
        ``replica``, ``step``, ``operator`` (its name), ``began``, ``seconds`` of the operators in
        a sample of the steps; empty where they were not timed.
    workers : tuple of str
        Address of each replica's worker; empty where the run was in the driver.

    Notes
    -----
    Seconds since the first step; virtual ones in a simulated run. Each host has its own clock,
    which starts with the first step that runs there.
    """

    def __init__(self, outcome: Outcome) -> None:
        self.steps = History(outcome.history)
        self.operators = History(_named(outcome.plan, outcome.spans))
        self.workers = outcome.workers
        self._by_replica = self.steps.by_replica()
        self._plan = outcome.plan
        self._metrics = outcome.metrics
        # In one loop each row is the step of all replicas.
        self._rows_a_step = outcome.plan.replicas if outcome.executor == "serial" else 1

    def __repr__(self) -> str:
        """Show how much there is."""
        count = len(self.steps["step"])
        return f"<Timeline of {self._plan.replicas} replicas: {count} rows>"

    def finished(self, steps: Any) -> Array:
        """Return when all replicas had finished so many steps.

        Parameters
        ----------
        steps : int or array of int
            0 is the start. Between steps that the history keeps, times are interpolated.

        Returns
        -------
        ndarray of float64
            Seconds since the first step; NaN where no step is known.
        """
        wanted = np.atleast_1d(np.asarray(steps, np.float64))
        latest = np.zeros(len(wanted))
        for mine in self._by_replica.values():
            done = np.concatenate([[0.0], self.steps["step"][mine] + 1])
            ended = self.steps["began"][mine] + self.steps["seconds"][mine]
            latest = np.maximum(latest, np.interp(wanted, done, np.concatenate([[0.0], ended])))
        return latest if len(self.steps["step"]) else np.full(len(wanted), np.nan)

    def paces(self) -> tuple[Pace, ...]:
        """Return how fast each replica was, the slowest first."""
        return paces(self.steps, self.workers)

    @property
    def straggler(self) -> Pace | None:
        """The slowest replica, if it is much slower than the others."""
        slowest = next(iter(self.paces()), None)
        return slowest if slowest is not None and slowest.straggles else None

    def shares(self) -> dict[str, float]:
        """Return the part of the replicas' time that each operator takes, from 0 to 1.

        Returns
        -------
        dict of str to float
            In the order of the step; then ``"waiting"``, and ``"between"``: what lies between
            operators, such as the delivery of a contribution. Empty where no step was timed.

        Notes
        -----
        From the timed steps among those of which the history has all.
        """
        early = self.operators["step"] < FULL_STEPS
        names, spent = self.operators["operator"][early], self.operators["seconds"][early]
        if not len(names):
            return {}
        timed = np.isin(self.steps["step"], np.unique(self.operators["step"][early]))
        total = float(self.steps["seconds"][timed].sum()) / self._rows_a_step
        waited = float(self.steps["wait_seconds"][timed].sum())
        found = {o.name: float(spent[names == o.name].sum()) / total for o in self._plan.steps}
        found = {name: share for name, share in found.items() if share} | {WAITING: waited / total}
        return found | {BETWEEN: max(0.0, 1.0 - sum(found.values()))}

    def to_chrome(self, path: str | Path) -> Path:
        """Write a trace that ``chrome://tracing`` and Perfetto open.

        Returns
        -------
        Path
            Of the file.

        Notes
        -----
        A process a worker, two rows a replica: its steps with what they waited, and the operators
        of the steps that were timed. A wait is drawn where it mostly is: under sync edges at the
        end of a step, under stale and async ones at its start. Evaluations are marks.
        """
        trace = Trace(self.workers, waits_first=is_loose(self._plan))
        trace.add_replicas(self._plan.replicas)
        trace.add_steps(self.steps)
        trace.add_operators(self.operators)
        when = self.finished([metrics["step"] for metrics in self._metrics]).tolist()
        for seconds, metrics in zip(when, self._metrics, strict=True):
            trace.add_mark(metrics["name"], seconds, metrics)
        return trace.write(Path(path))


def _named(plan: Plan, spans: Array | None) -> dict[str, Array]:
    found = as_spans(()) if spans is None else spans
    names = np.array([o.name for o in plan.steps], np.str_)
    columns = {name: found[name] for name in ("replica", "step", "began", "seconds")}
    return columns | {"operator": names[found["operator"]]}
