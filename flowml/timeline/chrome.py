"""A trace in the form that chrome://tracing and Perfetto read.

References
----------
"Trace Event Format", the JSON form: complete events (X), instant events (i), metadata (M).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowml.history import History

MICROSECONDS = 1e6
STEPS, OPERATORS = 0, 1
"""Rows of a replica."""


class Trace:
    """Collects events.

    Parameters
    ----------
    workers : sequence of str
        Address of each replica's worker; empty where the run was in the driver.
    waits_first : bool
        Replicas wait at the start of a step and not at its end.
    """

    def __init__(self, workers: Sequence[str], *, waits_first: bool) -> None:
        self._workers = workers
        self._processes = tuple(dict.fromkeys(workers)) or ("driver",)
        self._waits_first = waits_first
        self._events: list[dict[str, Any]] = []

    def add_replicas(self, count: int) -> None:
        """Name processes and rows."""
        for number, process in enumerate(self._processes):
            self._add("M", "process_name", {"pid": number, "tid": 0}, args={"name": process})
        for replica in range(count):
            for row, words in ((STEPS, "steps"), (OPERATORS, "operators")):
                name = f"replica {replica} {words}"
                self._add("M", "thread_name", self._place(replica, row), args={"name": name})

    def add_steps(self, steps: History) -> None:
        """Add the steps of all replicas, and what they waited in each."""
        names = ("replica", "step", "began", "seconds", "wait_seconds", "loss", "staleness")
        for replica, step, began, seconds, waited, loss, late in _rows(steps, names):
            at = self._place(replica, STEPS)
            facts = {"loss": loss if np.isfinite(loss) else None, "staleness": late}
            self._lasting(f"step {step}", "step", at, began, seconds, facts)
            if waited:
                since = began if self._waits_first else began + seconds - waited
                self._lasting("waiting", "wait", at, since, waited, {})

    def add_operators(self, operators: History) -> None:
        """Add the operators that were timed."""
        names = ("replica", "step", "operator", "began", "seconds")
        for replica, step, operator, began, seconds in _rows(operators, names):
            at = self._place(replica, OPERATORS)
            self._lasting(operator, "operator", at, began, seconds, {"step": step})

    def add_mark(self, name: str, seconds: float, facts: Mapping[str, Any]) -> None:
        """Add something that happened at one moment."""
        at = {"pid": 0, "tid": 0}
        self._add("i", name, at, ts=seconds * MICROSECONDS, s="g", cat="mark", args=dict(facts))

    def write(self, path: Path) -> Path:
        """Write the file; return its path."""
        content = {"traceEvents": self._events, "displayTimeUnit": "ms"}
        path.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
        return path

    def _place(self, replica: int, row: int) -> dict[str, int]:
        number = self._processes.index(self._workers[replica]) if self._workers else 0
        return {"pid": number, "tid": 2 * replica + row}

    def _lasting(
        self,
        name: str,
        kind: str,
        at: Mapping[str, int],
        began: float,
        seconds: float,
        facts: Mapping[str, Any],
    ) -> None:
        times = {"ts": began * MICROSECONDS, "dur": seconds * MICROSECONDS}
        self._add("X", name, at, cat=kind, args=dict(facts), **times)

    def _add(self, phase: str, name: str, at: Mapping[str, int], **more: Any) -> None:
        self._events.append({"ph": phase, "name": name, **at, **more})


def _rows(columns: History, names: Sequence[str]) -> Any:
    return zip(*(columns[name].tolist() for name in names), strict=True)
