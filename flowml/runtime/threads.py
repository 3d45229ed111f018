"""All replicas as threads of this process, on private memory: the resident loop without a cluster.

Used by ``processes=False`` tests and wherever one process is the whole run; the ranks run the
same programs as on a cluster and meet at the same barrier.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from flowml.data.stream import BatchStream
from flowml.plan import Plan
from flowml.runtime.domain import Domain, DomainMemory, Layouts, map_memory
from flowml.runtime.exchange import Exchange
from flowml.runtime.outcome import Order
from flowml.runtime.program import Programs, WindowRecord, run_window
from flowml.runtime.rank import Rank, fill_shared, rank_tables, start_rules
from flowml.types import aligned_empty


def thread_ranks(
    plan: Plan, layouts: Layouts, order: Order, streams: Sequence[dict[str, BatchStream]]
) -> list[Rank]:
    """Return all ranks of a plan over one private block of memory."""
    domain = Domain(0, (tuple(range(plan.replicas)),))
    memory_map = map_memory(plan, layouts, domain)
    memory = DomainMemory(memory_map, aligned_empty(memory_map.nbytes, np.uint8))
    fill_shared(plan, domain, memory, layouts, order.seed)
    ranks = [
        Rank(
            plan,
            n,
            domain,
            memory,
            layouts,
            order,
            streams[n],
            rank_tables(plan, n, memory, layouts, order.seed),
        )
        for n in range(plan.replicas)
    ]
    for rank in ranks:
        start_rules(rank)
    return ranks


def run_thread_window(
    ranks: Sequence[Rank], programs: Sequence[Programs], start: int, stop: int
) -> list[WindowRecord]:
    """Run one window of all ranks."""
    meeting = threading.Barrier(len(ranks))
    asked = [False] * len(ranks)

    def barrier_of(number: int):  # type: ignore[no-untyped-def]
        def barrier(stop: bool, step: int, exchange: Exchange | None) -> bool:
            asked[number] = stop
            meeting.wait(60)
            found = any(asked)
            meeting.wait(60)
            return found

        return barrier

    with ThreadPoolExecutor(len(ranks)) as pool:
        futures = [
            pool.submit(run_window, rank, program, start, stop, barrier_of(n), lambda: False)
            for n, (rank, program) in enumerate(zip(ranks, programs, strict=True))
        ]
        return [f.result() for f in futures]
