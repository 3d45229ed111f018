"""A worker's part of a calibration: its replicas are timed while those of all workers are busy.

Every replica runs the plan for one replica on its own data, in the thread and process in which it
would run; nothing is exchanged, but all of a host meet now and then. Before that they measure what
the host charges for meeting. Last, one of them runs alone on larger batches, while the rest idle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import partial

import cloudpickle
import numpy as np

from flowml.data.stream import BatchStream
from flowml.layout import Layout
from flowml.plan import Plan
from flowml.protocol.roster import Roster
from flowml.runtime.feeding import Feed, open_stream
from flowml.runtime.figures import Figures
from flowml.runtime.host_figures import measure_host, shared_bytes
from flowml.runtime.host_link import HostLink
from flowml.runtime.host_lock import HostLock
from flowml.runtime.local_barrier import RankBarrier
from flowml.runtime.outcome import Order
from flowml.runtime.probe import probe
from flowml.runtime.remote import plugin
from flowml.runtime.segment import Segment
from flowml.runtime.stopwatch import Timings, time_parts
from flowml.types import Array


@dataclass(frozen=True)
class Trial:
    """What the workers of a calibration are told.

    Attributes
    ----------
    plan : Plan
        For one replica, every edge delivering in every step, without sources.
    feeds : mapping of str to Feed
        Of all replicas, by load.
    roster : Roster
    addresses : mapping of str to str
        Where each worker listens for processes of its own host.
    order : Order
    seconds : float
        For the replicas together, and again for the one alone.
    factor : int
        Batches that the one alone takes as one; 1: it is not timed.
    steps_between : int
        Steps from one meeting of the replicas to the next; 0: they go at their own pace.
    """

    plan: Plan
    feeds: Mapping[str, Feed]
    roster: Roster
    addresses: Mapping[str, str]
    order: Order
    seconds: float
    factor: int
    steps_between: int


@dataclass(frozen=True)
class Tried:
    """What a worker found.

    Attributes
    ----------
    timings : tuple of (int, Timings)
        Of each rank that has data.
    figures : tuple of Figures
        What each rank saw of the host; empty where a host has one rank.
    layouts : mapping of (operator, output) to Layout
        Of the first rank that has data; empty without one.
    whole : Timings or None
        Of rank 0 alone on larger batches.
    """

    timings: tuple[tuple[int, Timings], ...]
    figures: tuple[Figures, ...]
    layouts: Mapping[tuple[str, int], Layout]
    whole: Timings | None


def run_trial(shipped: bytes) -> Tried:
    """Time the replicas of this worker; runs in a Dask task, at the same time on all workers."""
    trial: Trial = cloudpickle.loads(shipped)
    here = plugin()
    me, run = here.worker.address, trial.roster.run.hex()
    here.settings.begin(run, trial.plan.blas_threads)
    ranks = trial.roster.ranks(me)
    domain = trial.roster.domain(me)
    everyone = tuple(sorted(r for w in domain for r in trial.roster.ranks(w)))
    link, listener = None, here.listener(run)
    if len(domain) > 1 and listener is not None:
        members = {trial.roster.workers.index(w): trial.addresses[w] for w in domain}
        link = HostLink.join(
            listener,
            trial.roster.workers.index(me),
            members,
            trial.roster.run,
            trial.roster.incarnation,
            shared_bytes(len(everyone)),
            trial.order.deadline_seconds,
        )
    segment = link.segment if link else Segment.local(shared_bytes(len(everyone)))
    lock = HostLock(segment.fd if link else None, len(domain))
    try:
        block = segment.view(0, (segment.nbytes,), np.uint8)
        barrier = RankBarrier(len(ranks), link.barrier if link else None)
        jobs = [
            partial(_try_rank, trial, rank, party, everyone, block, lock, barrier)
            for party, rank in enumerate(ranks)
        ]
        found = _in_threads(jobs)
    except BaseException as error:
        if link is not None:
            link.abort(f"{type(error).__name__}: {error}")
        raise
    finally:
        lock.close()
        if link is None:
            segment.close()
        else:
            link.close()
    paired = zip(ranks, found, strict=True)
    return Tried(
        tuple((rank, one.timings) for rank, one in paired if one.timings is not None),
        tuple(one.figures for one in found if len(everyone) > 1),
        next((one.layouts for one in found if one.timings is not None), {}),
        _alone(trial) if 0 in ranks and trial.factor > 1 else None,
    )


@dataclass(frozen=True)
class _Rank:
    timings: Timings | None
    figures: Figures
    layouts: Mapping[tuple[str, int], Layout]


def _try_rank(
    trial: Trial,
    rank: int,
    party: int,
    everyone: tuple[int, ...],
    block: Array,
    lock: HostLock,
    barrier: RankBarrier,
) -> _Rank:
    def meet(enough: bool) -> bool:
        return barrier.wait(party, enough).stop

    try:
        streams = _streams(trial, rank)
        with_data = all(s.batch(0)[1] for s in streams.values())
        layouts = _layouts(trial, streams) if with_data else {}
        figures = measure_host(
            lambda: meet(False), everyone.index(rank), len(everyone), block, lock
        )
        if not with_data:  # more replicas than rows: it only keeps the others company
            meet(False)
            while not meet(False):
                pass
            return _Rank(None, figures, {})
        timings = time_parts(
            trial.plan, layouts, streams, trial.order, trial.seconds, meet, trial.steps_between
        )
        return _Rank(timings, figures, layouts)
    except BaseException as error:
        barrier.abort(error)
        raise


def _in_threads(jobs: Sequence[Callable[[], _Rank]]) -> list[_Rank]:
    """Run one job a rank, in threads of their own as ranks are when a worker has several."""
    if len(jobs) == 1:
        return [jobs[0]()]
    with ThreadPoolExecutor(len(jobs)) as pool:
        # In the context of the Dask task, so that operators find their worker.
        running = [pool.submit(copy_context().run, job) for job in jobs]
        return [future.result() for future in running]


def _alone(trial: Trial) -> Timings | None:
    """Time rank 0 on batches ``factor`` times as large, as far as its share goes.

    Notes
    -----
    A batch that is the whole share cannot be larger: it is only timed again, while nobody else is
    busy.
    """
    feeds = {}
    for name, feed in trial.feeds.items():
        order = feed.orders[0]
        if not order.batches():
            return None
        size = order.batch_size and min(order.batch_size * trial.factor, order.share.rows)
        larger = replace(order, batch_size=size)
        feeds[name] = replace(feed, orders=(larger,), steps_per_epoch=larger.batches())
    larger_trial = replace(trial, feeds=feeds)
    streams = _streams(larger_trial, 0)
    layouts = _layouts(larger_trial, streams)
    return time_parts(trial.plan, layouts, streams, trial.order, trial.seconds)


def _streams(trial: Trial, rank: int) -> dict[str, BatchStream]:
    run = trial.roster.run.hex()
    return {
        name: open_stream(feed, rank, plugin().parts(run, name, rank), prefetch=False)
        for name, feed in trial.feeds.items()
    }


def _layouts(trial: Trial, streams: Mapping[str, BatchStream]) -> Mapping[tuple[str, int], Layout]:
    batches = {name: stream.batch(0) for name, stream in streams.items()}
    return probe(trial.plan, batches, trial.order.seed)
