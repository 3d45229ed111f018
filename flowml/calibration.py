"""Calibration: the parts of a graph's step, timed on the workers that would run it."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from distributed import Client

from flowml.compiler.gauge import LARGEST_FACTOR, one_replica, steps_between
from flowml.compiler.measured import Measured
from flowml.compiler.stages import compile_graph
from flowml.graph import LogicalGraph
from flowml.protocol.roster import Roster, Seat
from flowml.runtime import remote
from flowml.runtime.attach import Worker
from flowml.runtime.host_figures import together
from flowml.runtime.outcome import Order
from flowml.runtime.oversight import Oversight
from flowml.runtime.placing import Placement, place_data
from flowml.runtime.runspec import without_sources
from flowml.runtime.shipping import ship_plan
from flowml.runtime.stopwatch import Timings
from flowml.runtime.trial import Trial, Tried, run_trial

logger = logging.getLogger(__name__)

TRIAL_SECONDS = 0.5


def calibrate(
    graph: LogicalGraph,
    client: Client,
    workers: Sequence[Worker],
    cores: int,
    *,
    transport: str = "auto",
    threads: int = 1,
    seed: int = 0,
    seconds: float = TRIAL_SECONDS,
) -> Measured:
    """Time the parts of a step in all replicas at once, and what their hosts charge for meeting.

    Parameters
    ----------
    client : Client
    workers : sequence of Worker
        Of each rank.
    cores : int
        That the replicas share.
    transport : str
        As in the configuration.
    threads : int
        BLAS threads a replica.
    seconds : float
        For all replicas together, and again for one alone.

    Raises
    ------
    FlowmlError
        What the first step of a run would raise; a worker that is lost.

    Notes
    -----
    Waits for its turn as a run does. The shares of the data stay on the workers for the next run.
    """
    order = Order(1, None, seed=seed, on_nonfinite="ignore")
    plan = compile_graph(graph, len(workers), 1, blas_threads=threads)
    run = uuid.uuid4()
    placement = Placement(run.hex, tuple(w.address for w in workers), run.hex[:7] + "0")
    ranks = {
        worker: tuple(r for r, address in enumerate(placement.workers) if address == worker)
        for worker in placement.distinct
    }
    oversight = Oversight(
        client, plan, run.hex, ranks, order.deadline_seconds, should_stop=lambda: False
    )
    with client.as_current():
        try:
            oversight.admit(logger.warning)
            on_all = _OnAll(client, placement, oversight)
            answers = on_all("open", remote.open_worker, run.hex, transport)
            listening = dict(zip(placement.distinct, answers, strict=True))
            seats = (Seat(rank, w, listening[w][0]) for rank, w in enumerate(placement.workers))
            trial = Trial(
                without_sources(one_replica(graph, threads)),
                place_data(plan, order, client, placement, oversight.finish),
                Roster.seat(run.bytes, 0, seats),
                {worker: address for worker, (_, address) in listening.items()},
                order,
                seconds,
                min(len(workers), LARGEST_FACTOR),
                steps_between(plan),
            )
            shipped = client.scatter(ship_plan(trial, plan), hash=False, broadcast=True)
            return _summed_up(on_all("trial", run_trial, shipped), len(workers), cores)
        finally:
            oversight.close()


@dataclass(frozen=True)
class _OnAll:
    """Runs a task on each worker at the same time and waits for all of them."""

    client: Client
    placement: Placement
    oversight: Oversight

    def __call__(self, kind: str, function: Any, *inputs: Any) -> list[Any]:
        tasks = [
            self.client.submit(
                function,
                *inputs,
                key=self.placement.key("calibrate", kind, 0, worker),
                workers=[worker],
                pure=False,
            )
            for worker in self.placement.distinct
        ]
        return self.oversight.finish(tasks, kind)


def _summed_up(found: Sequence[Tried], replicas: int, cores: int) -> Measured:
    timed = [timings for tried in found for _, timings in sorted(tried.timings, key=lambda t: t[0])]
    means = [timings.means() for timings in timed]
    parts = timed[0].parts
    alone = next((tried.whole for tried in found if tried.whole is not None), None)
    whole, factor = ({}, 1.0) if alone is None else _all_examples(alone, timed[0], replicas)
    return Measured(
        {part: float(np.mean([m[part] for m in means])) for part in parts},
        whole,
        factor,
        tuple(timed),
        next(tried.layouts for tried in found if tried.layouts),
        timed[0].payloads,
        replicas,
        together([one for tried in found for one in tried.figures], cores),
    )


def _all_examples(alone: Timings, one: Timings, replicas: int) -> tuple[dict[str, float], float]:
    """Return what one replica takes for several batches as one, and how many these are.

    Notes
    -----
    A batch that could not be made larger takes so many times as long.
    """
    factor, means = alone.examples / one.examples, alone.means()
    if factor > 1:
        return means, factor
    return {part: replicas * seconds for part, seconds in means.items()}, float(replicas)
