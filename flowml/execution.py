"""A run: started by a graph, waited for, stopped, and what it leaves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowml.aftermath import told
from flowml.cluster_run import PageLink, probe_here
from flowml.errors import FlowmlError, PlanError
from flowml.graph import LogicalGraph
from flowml.history import History
from flowml.interrupts import block_interrupts
from flowml.ledger import Ledger
from flowml.report import write_report
from flowml.runtime.interleaved import replay
from flowml.runtime.loose_plan import is_loose
from flowml.runtime.moved import Moved
from flowml.runtime.moved_loose import moved_of
from flowml.runtime.outcome import Order, Outcome
from flowml.timeline import Timeline
from flowml.types import Array, Pytree

Execute = Callable[[Callable[[], bool]], Outcome]
"""Runs the whole graph; asks its argument at every step or window whether to stop."""

STOP_SECONDS = 2.5
"""How long an interrupted run may take to end its step before it is left."""


class Run:
    """One execution of a graph.

    Attributes
    ----------
    graph : LogicalGraph
    status : str
        "running", then "done", "until" (an end of the graph), "stopped" (``max_seconds``,
        :meth:`stop` or Ctrl-C) or "failed".
    tables : dict
        Name to pytree; to a list by rank (or group) for tables that are not global. The last
        committed step, also of a run that failed.
    history : History
    timeline : Timeline
    metrics : list of dict
        One a evaluation: ``step``, ``name`` and the metrics.
    steps : int
        Committed steps.
    seconds : float
        Wall time of the steps.
    moved : Moved
        Bytes between replicas.
    error : FlowmlError or None
    dashboard : str
        Address of the page that shows the run in Dask's dashboard; "" until there is one, and
        where there is none.
    """

    def __init__(
        self,
        graph: LogicalGraph,
        execute: Execute,
        failures: str | Path | None = None,
        page: PageLink | None = None,
    ) -> None:
        self.graph = graph
        self._failures = None if failures is None else Path(failures)
        self._page = page or PageLink()
        self.status = "running"
        self.error: BaseException | None = None
        self._outcome: Outcome | None = None
        self._stop = threading.Event()
        self._finished = threading.Event()
        self._execute = execute
        # In the caller's context: inside a Dask task that says which cluster is the current one.
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._body,), name=f"flowml {graph.name}"
        )
        self._thread.daemon = True
        self._thread.start()

    def _body(self) -> None:
        block_interrupts()
        try:
            self._outcome = self._execute(self._stop.is_set)
            self.status = self._outcome.status
            self.error = self._outcome.error
        except BaseException as error:  # whatever it is, the waiting thread raises it
            self.status, self.error = "failed", error
        try:
            if self.error is not None:
                self.error = told(self.error, self.graph, self._outcome, self._failures)
        finally:
            self._finished.set()

    def wait(self, timeout: float | None = None) -> Run:
        """Wait for the end and return this run.

        Parameters
        ----------
        timeout : float, optional
            Seconds; the run goes on when they are over.

        Raises
        ------
        FlowmlError
            What ended the run; its ``run`` is this run, with the last committed tables.
        TimeoutError
            After ``timeout``.
        KeyboardInterrupt
            After Ctrl-C, when the step in progress has ended.
        """
        try:
            if not self._finished.wait(timeout):
                raise TimeoutError(f"graph {self.graph.name!r} is still running after {timeout} s")
        except KeyboardInterrupt:
            self.stop()
            self._finished.wait(STOP_SECONDS)
            raise
        self._thread.join()
        if self.error is not None:
            if isinstance(self.error, FlowmlError):
                self.error.run = self  # type: ignore[attr-defined]
            raise self.error
        return self

    def stop(self) -> None:
        """Ask for an end after the step in progress; :meth:`wait` waits for it."""
        self._stop.set()

    @property
    def dashboard(self) -> str:
        """Address of the page that shows the run in Dask's dashboard, or ""."""
        return self._page.link

    @property
    def outcome(self) -> Outcome:
        """What the executor gave back.

        Raises
        ------
        RuntimeError
            While the run goes on, or if it failed before its first step.
        """
        if self._outcome is None:
            raise RuntimeError(f"graph {self.graph.name!r} is {self.status}: nothing to read yet")
        return self._outcome

    @property
    def tables(self) -> dict[str, Pytree]:
        """The tables of the last committed step."""
        outcome = self.outcome
        return {
            t.name: values[0] if t.scope == "global" else values
            for t, values in (
                (t, outcome.tables[t.name]) for t in outcome.plan.tables if t.name in outcome.tables
            )
        }

    @property
    def history(self) -> History:
        """What each replica did in each step."""
        return History(self.outcome.history)

    @property
    def timeline(self) -> Timeline:
        """When each replica computed and waited; its ``to_chrome(path)`` writes a trace."""
        return Timeline(self.outcome)

    @property
    def ledger(self) -> Ledger:
        """Reads and deliveries of a run with stale, async or compressed edges, in their order.

        Its rows have the columns ``event``, ``kind``, ``edge``, ``replica``, ``clock``,
        ``version``, ``staleness`` (steps), ``wait_seconds``, ``bytes`` and ``fate``; ``counts()``
        says what they come to by edge, ``histogram(edge)`` how late its reads were, and
        ``to_pandas()`` makes a data frame of them.

        Raises
        ------
        PlanError
            If the run was not recorded: ``graph.run(..., record=True)``.
        """
        record, _ = self._recorded()
        return Ledger.of(self.outcome.plan, record)

    def report(self, path: str | Path) -> Path:
        """Write a report as one HTML file that opens without a network.

        It shows the graph with the time of its operators, losses and evaluations over steps and
        time, the replicas with who held up whom, staleness, bytes, the plan and the versions.

        Returns
        -------
        Path
            Of the file.
        """
        return write_report(path, self.graph, self.outcome)

    def replay(self) -> Run:
        """Repeat a recorded run in this process: the same reads and deliveries, in their order.

        Returns
        -------
        Run
            Finished, with the same tables to the byte.

        Raises
        ------
        PlanError
            If the run was not recorded, or its edges are all sync: the serial executor repeats
            those.
        """
        plan = self.outcome.plan
        record, order = self._recorded()
        quiet = replace(order, on_event=None)
        layouts = probe_here(plan, quiet)
        return Run(self.graph, lambda stop: replay(plan, quiet, layouts, record)).wait()

    def _recorded(self) -> tuple[Array, Order]:
        record, order = self.outcome.record, self.outcome.order
        if record is None or order is None:
            raise PlanError(
                f"run of graph {self.graph.name!r}",
                "has no record of reads and deliveries",
                "a run without record=True, or one whose edges are all sync",
                "graph.run(..., record=True) keeps it; a synchronous run is repeated by its seed.",
            )
        return record, order

    @property
    def moved(self) -> Moved:
        """Bytes between replicas, by edge, and messages between hosts.

        Of a run with stale, async or compressed edges: of the tables that replicas copied, and of
        what they delivered, as codecs and filters make it. Of a synchronous run in the executors
        serial and tasks, whose replicas share no memory, nothing.

        Raises
        ------
        PlanError
            If such a run was not recorded: ``graph.run(..., record=True)``.
        """
        outcome = self.outcome
        if not is_loose(outcome.plan):
            return outcome.moved
        record, _ = self._recorded()
        return moved_of(outcome.plan, record)

    @property
    def unsent(self) -> tuple[str, ...]:
        """Edges that keep values at the end of the run: of ``.every`` and ``.when``, never sent.

        Nothing is flushed at the end, so what the last steps made is in no table where a period
        had not come round, or a threshold was not passed. A number of steps that all periods
        divide leaves nothing on edges with periods alone. Residuals of codecs are not told here.
        """
        return self.outcome.unsent

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Evaluations, in the order of their steps."""
        return self.outcome.metrics

    @property
    def steps(self) -> int:
        """Committed steps."""
        return self.outcome.steps

    @property
    def seconds(self) -> float:
        """Wall time of the steps, loading not counted."""
        return self.outcome.seconds

    def __repr__(self) -> str:
        """Show the state in one line."""
        if self._outcome is None:
            return f"<Run of {self.graph.name!r}: {self.status}>"
        return f"<Run of {self.graph.name!r}: {self.status}, {self.steps} steps>"
