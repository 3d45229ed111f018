"""What the windows of a run leave with its driver: history, recorded events, and times.

Each process has a clock of its own. Those of one host agree, so times are taken from the first
window of the host: a run begins at 0 on every host, which is right up to the moments that the first
tasks take to come there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from flowml.runtime.gang import Window
from flowml.runtime.loose_plan import is_loose
from flowml.runtime.outcome import HistoryBuilder, Order, Outcome
from flowml.runtime.spans import Span, as_spans
from flowml.runtime.unsent import kept_edges
from flowml.types import Array


class Gathered:
    """Collects windows.

    Parameters
    ----------
    hosts : mapping of str to str
        Host of each worker, by address.
    """

    def __init__(self, hosts: Mapping[str, str]) -> None:
        self._hosts = hosts
        self._history = HistoryBuilder()
        self._events: list[Array] = []
        self._spans: list[Span] = []
        self._origins: dict[str, float] = {}
        self._unsent: dict[int, tuple[str, ...]] = {}

    def take(self, windows: Sequence[Window], workers: Sequence[str]) -> None:
        """Add the window of each worker."""
        for window, worker in zip(windows, workers, strict=True):
            host = self._hosts[worker]
            if host not in self._origins:
                here = [w for w, a in zip(windows, workers, strict=True) if self._hosts[a] == host]
                self._origins[host] = min(w.began for w in here)
            origin = self._origins[host]
            for rank, record in window.records:
                began = window.began if record.began is None else record.began
                self._history.add(record.history, began - origin)
                if record.events is not None:
                    self._events.append(record.events)
                if record.unsent is not None:
                    self._unsent[rank] = record.unsent
            self._spans += [
                (replica, step, operator, began - origin, seconds)
                for replica, step, operator, began, seconds in window.spans
            ]

    def put_into(self, outcome: Outcome, order: Order) -> None:
        """Give an outcome all that was collected."""
        outcome.history = self._history.columns()
        outcome.spans = as_spans(self._spans)
        if is_loose(outcome.plan):
            outcome.unsent = tuple(sorted({e for edges in self._unsent.values() for e in edges}))
        else:
            outcome.unsent = kept_edges(outcome.plan, outcome.steps)
        if self._events:
            outcome.record = np.sort(np.concatenate(self._events), order=("event", "edge"))
            outcome.order = order
