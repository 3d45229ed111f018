"""The public Graph: a logical graph with the verbs run, start and plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import networkx as nx

from flowml import configuration
from flowml.calibration import calibrate
from flowml.cluster_run import Asked, seat_workers
from flowml.collect import collect
from flowml.compiled import CompiledPlan
from flowml.compiler.check import check
from flowml.compiler.explain import explain
from flowml.compiler.explained import Explanation
from flowml.compiler.gauge import measure
from flowml.compiler.measured import Measured
from flowml.compiler.place import Groups
from flowml.compiler.promises import resolve
from flowml.compiler.stages import compile_graph
from flowml.drawing import as_mermaid, as_svg, as_text, mimebundle
from flowml.drawing.text import counted
from flowml.errors import FlowmlError, PlanError
from flowml.events import Event
from flowml.execution import Run
from flowml.executors import dry_run_of, execution_of, heard_by_both, told
from flowml.graph import LogicalGraph
from flowml.handles import Handle
from flowml.options import executor_of, order_of, positive, refuse_other, seed_of
from flowml.progress import ProgressLine
from flowml.runtime.attach import Worker, attached, leave_pool
from flowml.runtime.cores import usable_cores
from flowml.runtime.equivalence import largest_difference
from flowml.runtime.failed_call import FailedCall
from flowml.simulate.models import Compute, Faults, Network, Timed


class Graph:
    """A graph, closed by its writes, evaluations and ends.

    Parameters
    ----------
    *sinks : Handle
        What ``fl.update``, ``fl.assign``, ``fl.evaluate`` and ``fl.until`` returned.
    name : str, optional

    Raises
    ------
    GraphError
        Everything that is wrong with it, with file and line.

    Examples
    --------
    >>> import numpy as np, flowml as fl
    >>> model = fl.models.linear(2)
    >>> w = fl.table("w", model.init(seed=0))
    >>> batch = fl.load((np.ones((8, 2), "float32"), np.ones(8, "float32")), batch_size=4)
    >>> mean = fl.aggregate("mean", fl.gradient(model, w, batch))
    >>> run = fl.Graph(fl.update(w, mean, fl.sgd(0.1))).run(steps=3, replicas=2, executor="serial")
    >>> run.status, run.steps
    ('done', 3)
    """

    def __init__(self, *sinks: Handle, name: str | None = None) -> None:
        self.logical: LogicalGraph = check(collect(sinks, name or "graph"))

    @property
    def name(self) -> str:
        """Name of the graph."""
        return self.logical.name

    def __str__(self) -> str:
        return as_text(self.logical, resolve(self.logical))

    def __repr__(self) -> str:
        """Show name and size; ``print`` shows all of it."""
        return (
            f"<Graph {self.name!r}: {counted(len(self.logical.operators), 'operator')}, "
            f"{counted(len(self.logical.tables), 'table')}>"
        )

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return mimebundle(self.logical, resolve(self.logical))

    def to_mermaid(self) -> str:
        """Return the text of a Mermaid flowchart: dotted is not sync, thick closes the loop."""
        return as_mermaid(self.logical, resolve(self.logical))

    def to_svg(self) -> str:
        """Return the drawing that a notebook shows; dashed is not sync."""
        return as_svg(self.logical, resolve(self.logical))

    def to_networkx(self) -> nx.MultiDiGraph:
        """Return the graph with tables as vertices; see :meth:`LogicalGraph.to_networkx`."""
        return self.logical.to_networkx()

    def run(self, **options: Any) -> Run:
        """Run the graph and wait for its end.

        Parameters
        ----------
        **options
            Those of :meth:`start`.

        Raises
        ------
        FlowmlError
            What ended the run; its attribute ``run`` holds the last committed tables.
        """
        return self.start(**options).wait()

    def start(
        self,
        *,
        steps: int | None = None,
        epochs: int | None = None,
        replicas: int | None = None,
        groups: Groups = None,
        executor: str | None = None,
        cluster: Any = None,
        seed: int = 0,
        max_seconds: float | None = None,
        on_nonfinite: Literal["stop", "ignore"] | None = None,
        on_event: Callable[[Event], None] | None = None,
        deadline: str | float | None = None,
        step_seconds: float | None = None,
        blas_threads: int | None = None,
        progress: bool | None = None,
        dry_run: bool = False,
        snapshots: Sequence[int] = (),
        record: bool = False,
        failures: str | Path | None = None,
        **later: Any,
    ) -> Run:
        """Start a run in the background.

        Parameters
        ----------
        steps, epochs : int, optional
            At least one of them; whichever comes first ends the run.
        replicas : int, optional
            Copies of the graph; one a worker when left out, 1 for the serial executor.
        groups : "host", int, or list of lists of ranks, optional
            What a named group of the graph means in this run.
        executor : "resident", "tasks" or "serial"
        cluster : Client, Cluster, str, optional
            None takes the current Dask client, else an embedded cluster on this machine.
        seed : int
            Of every random stream of the run.
        max_seconds, step_seconds : float, optional
            End the run after the step that exceeds it; longest time of one operator.
        on_nonfinite : "stop" or "ignore"
            What a NaN or infinite value does.
        on_event : callable, optional
            Gets each event of the run; see ``flowml.events``.
        deadline, blas_threads : str or float, int
            Longest silence of a replica that others wait for; threads of each (they change bits).
        progress, dry_run : bool, optional
            Show the progress line (None: on a terminal only); check types and one step, no more.
        snapshots : sequence of int
            Keep the tables after these numbers of steps in ``run.outcome.snapshots``.
        record, failures : bool, path
            Keep the order of loose reads and deliveries, for ``run.replay``; folder for the input
            of an operator that fails, for :meth:`failed_call`.

        Raises
        ------
        PlanError
            If an option has no meaning.
        """
        refuse_other(later, Graph.start.__kwdefaults__ or ())
        name, replicas = executor_of(executor), positive("replicas", replicas)
        order = order_of(
            steps=steps,
            epochs=epochs,
            seed=seed,
            snapshots=snapshots,
            max_seconds=max_seconds,
            deadline=deadline,
            step_seconds=step_seconds,
            on_nonfinite=on_nonfinite,
            record=record,
        )
        line = ProgressLine(configuration.read("progress") if progress is None else progress)
        order = replace(order, on_event=heard_by_both(line, on_event))
        threads = positive("blas_threads", blas_threads) or configuration.read("blas-threads")
        asked = Asked(self.logical, replicas, groups, threads, name, cluster, order)
        if dry_run:
            return Run(self.logical, dry_run_of(asked), failures)
        return Run(self.logical, told(line, order, execution_of(asked)), failures, asked.page)

    def simulate(
        self,
        *,
        replicas: int,
        groups: Groups = None,
        compute: Compute | Timed | None = None,
        network: Network | None = None,
        faults: Faults | None = None,
        steps: int | None = None,
        epochs: int | None = None,
        seed: int = 0,
        max_seconds: float | None = None,
        snapshots: Sequence[int] = (),
        record: bool = False,
    ) -> Run:
        """Run the graph in virtual time, on a cluster that is made up.

        The promises and the arithmetic are those of a real run; how long steps and messages take
        is drawn from ``seed``. The same call gives the same bytes and the same times.

        Parameters
        ----------
        replicas : int
        groups : int, or list of lists of ranks, optional
        compute, network, faults : Compute or Timed, Network, Faults, optional
            How long a step and a message take, and who is lost (``fl.simulate``).
        steps, epochs, seed, snapshots, record
            As in :meth:`start`.
        max_seconds : float, optional
            Virtual seconds.

        Returns
        -------
        Run
            Finished. ``run.seconds``, the history and the evaluations are in virtual seconds.

        Raises
        ------
        PlanError
            If the graph has something that does not run beside stale edges.
        """
        order = order_of(
            steps=steps,
            epochs=epochs,
            seed=seed,
            snapshots=snapshots,
            max_seconds=max_seconds,
            deadline=None,
            step_seconds=None,
            on_nonfinite=None,
            record=record,
        )
        asked = Asked(
            self.logical, positive("replicas", replicas), groups, 1, "simulated", None, order
        )
        made = compute or Compute(), network or Network(), faults or Faults()
        return Run(self.logical, execution_of(asked, made)).wait()

    def check_equivalent(
        self,
        replicas: int,
        groups: Groups = None,
        *,
        seed: int = 0,
        tolerance: float | None = None,
    ) -> float:
        """Show that one step of K replicas x b is one of a single replica x K * b.

        Both steps run in this process, on the same examples, with every edge delivering all of its
        value: without periods, thresholds and codecs, and with every replica in its quorum. Rows
        of sparse tables are compared by key.

        Parameters
        ----------
        replicas : int
        groups : "host", int, or list of lists of ranks, optional
        tolerance : float, optional
            Largest difference of a global table, relative to the largest change that the step
            makes in it. Left out: 1e-9 for float64 tables, 1e-3 for float32, 0.03 for float16.

        Returns
        -------
        float
            The largest difference found, roundings of the parameters themselves left out.

        Raises
        ------
        PlanError
            Naming the first table that differs, and what most likely makes it differ.
        """
        several = compile_graph(self.logical, replicas, groups)
        one = compile_graph(self.logical, 1, 1)
        return largest_difference(several, one, seed_of(seed), tolerance)

    def failed_call(self, path: str | Path) -> FailedCall:
        """Read the call of an operator that failed, from the folder ``failures=`` of its run.

        Returns
        -------
        FailedCall
            Its ``again()`` calls the operator's function once more, on the same input.

        Raises
        ------
        DataError
            If the file was not written by a run.
        PlanError
            If the graph has no such operator.
        """
        call = FailedCall.load(path)
        known = {o.name: o for o in self.logical.operators}
        if call.operator not in known:
            raise PlanError(
                str(path),
                f"must be a call of one of {', '.join(known)}",
                call.operator,
                "Was the graph changed since?",
            )
        return call.of(known[call.operator])

    def plan(self, replicas: int, groups: Groups = None) -> CompiledPlan:
        """Return the physical plan for a number of replicas; see :class:`CompiledPlan`."""
        return CompiledPlan(compile_graph(self.logical, replicas, groups))

    def measure(
        self,
        replicas: int = 2,
        cluster: Any = None,
        *,
        seed: int = 0,
        blas_threads: int | None = None,
    ) -> Measured:
        """Time the parts of a step where it would run, with all replicas busy at the same time.

        Parameters
        ----------
        replicas : int
        cluster : Client, Cluster, str, optional
            As in :meth:`start`: the current client when left out, else an embedded cluster.
        seed, blas_threads : int
            As in :meth:`start`.

        Returns
        -------
        Measured
            For :meth:`explain`; ``measured.with_figures(cores=64)`` asks of another machine.

        Raises
        ------
        FlowmlError
            What the first step of a run would raise.

        Notes
        -----
        Takes some seconds: the data go to the workers, where they stay for the next run, and the
        replicas are timed for half a second, without exchanging anything.
        """
        compile_graph(self.logical, positive("replicas", replicas) or 1, 1)
        threads = positive("blas_threads", blas_threads) or configuration.read("blas-threads")
        leave_pool()
        with attached(cluster, replicas) as found:
            workers = seat_workers(found, replicas)
            return calibrate(
                self.logical,
                found.client,
                workers,
                _cores_of(workers),
                transport=str(configuration.read("transport")),
                threads=int(threads),
                seed=seed_of(seed),
            )

    def explain(
        self,
        replicas: int = 2,
        groups: Groups = None,
        cluster: Any = None,
        measured: Measured | None = None,
    ) -> Explanation:
        """Explain how the graph would run: ``print(graph.explain(replicas=4))``.

        Parameters
        ----------
        replicas : int
        groups : "host", int, or list of lists of ranks, optional
        cluster : Client, Cluster, str, optional
            Whose hosts and cores to count with; this machine when left out. Nothing runs there.
        measured : Measured, optional
            What the parts of a step cost, from :meth:`measure`, or made up. Left out: one replica
            is timed in this process, alone, for about a second.

        Returns
        -------
        Explanation
            Stages, promises taken, fused groups, placements, summation trees, traffic, memory,
            a predicted step, the speed-up over replicas and what limits it, and advice.
        """
        hosts, cores = None, usable_cores()
        if cluster is not None:
            with attached(cluster, replicas) as found:
                workers = seat_workers(found, replicas)
            hosts, cores = [worker.host for worker in workers], _cores_of(workers)
        try:
            compile_graph(self.logical, replicas, groups, hosts=hosts)
        except FlowmlError:  # explain raises it again, or says what does not run yet
            return explain(self.logical, replicas, groups, probe=None, hosts=hosts)
        if measured is None:
            measured = measure(self.logical, replicas).with_figures(cores=cores)
        return explain(self.logical, replicas, groups, probe=measured, hosts=hosts)


def _cores_of(workers: Sequence[Worker]) -> int:
    """Return the cores that replicas share: the threads of their workers, as far as there are."""
    threads = sum({worker.address: worker.threads for worker in workers}.values())
    here = {worker.host for worker in workers} <= {"127.0.0.1"}
    return min(threads, usable_cores()) if here else threads
