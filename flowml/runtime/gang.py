"""One worker's part of a run: its ranks, their memory, and how they meet all the others.

Threads of one process meet at a RankBarrier; the last of them crosses to the other processes of
the host over a HostLink; the first process of each domain exchanges partial sums with the other
domains, between two barriers of its own host.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Protocol

import numpy as np

from flowml.actions import REPLICA
from flowml.data.rows import Rows
from flowml.data.source import Partition
from flowml.data.stream import BatchStream
from flowml.errors import FlowmlError, StalledError, StaleRunError
from flowml.protocol.failures import Aborted, PeerLost
from flowml.protocol.superstep import Verdict
from flowml.runtime.board import Board
from flowml.runtime.domain import DomainMemory, map_memory
from flowml.runtime.exchange import Exchange
from flowml.runtime.feeding import open_stream
from flowml.runtime.host_hello import HostListener
from flowml.runtime.host_link import HostLink
from flowml.runtime.local_barrier import RankBarrier
from flowml.runtime.outcome import history_block
from flowml.runtime.program import Programs, WindowRecord, run_window
from flowml.runtime.rank import Rank, fill_shared, rank_tables, start_rules
from flowml.runtime.runspec import RunSpec
from flowml.runtime.segment import Segment
from flowml.types import Array, Pytree

WAITING = 65535
"""Index on the board of a rank that stands at a barrier."""


class Courier(Protocol):
    """Carries parcels to and from other domains."""

    def swap(self, parcels: Mapping[int, Array], stop: bool) -> tuple[dict[int, Array], bool]:
        """Send one parcel a domain; return what came from each, and whether any asked to stop."""

    def fail(self, error: BaseException) -> None:
        """Wake a waiting swap with an error."""


@dataclass(frozen=True)
class Window:
    """What a finished window leaves: the records of the worker's ranks."""

    number: int
    records: tuple[tuple[int, WindowRecord], ...]
    """(rank, record)."""
    seconds: float = 0.0
    """Wall time."""

    @property
    def stop(self) -> int:
        """Steps that are done."""
        return self.records[0][1].steps


class Gang:
    """The ranks of one worker in one run."""

    def __init__(
        self, spec: RunSpec, worker: str, courier: Courier | None, resident_bytes: int
    ) -> None:
        self.spec = spec
        self.worker = worker
        self.ranks = spec.roster.ranks(worker)
        self.error: BaseException | None = None
        self._courier = courier
        self._resident_bytes = resident_bytes
        self._parts: dict[tuple[str, int], Sequence[Rows | Partition]] = {}
        self._workers = spec.roster.domain(worker)
        self._leads = self._workers[0] == worker
        self._exchange: Exchange | None = None
        self._stop = threading.Event()
        self._states: list[Rank] = []
        self._programs: list[Programs] = []
        self._snapshots: dict[int, dict[tuple[str, int], Pytree]] = {}
        self._windows: dict[int, Window] = {}
        self._next = 0
        self._ended: WindowRecord | None = None
        self._link: HostLink | None = None
        self._segment: Segment | None = None
        self._board: Board | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._barrier = RankBarrier(len(self.ranks), self._across)
        self._barrier.on_silence = self._local_silence

    def load(self, operator: str, rank: int, parts: Sequence[Rows | Partition]) -> None:
        """Take the data of one rank of one load operator."""
        self._parts[operator, rank] = parts

    def join(self, listener: HostListener | None) -> None:
        """Meet the other processes of this host, share memory with them, and make the ranks."""
        spec = self.spec
        domain = spec.domain_of(self.worker)
        board_bytes = Board.nbytes(spec.plan.replicas, len(spec.roster.workers))
        memory_map = map_memory(spec.plan, spec.layouts, domain, board_bytes)
        nbytes = max(memory_map.nbytes, 64)
        if len(self._workers) > 1 and listener is not None:
            members = {spec.member(w): spec.addresses[w] for w in self._workers}
            self._link = HostLink.join(
                listener, spec.member(self.worker), members, spec.roster.run,
                spec.roster.incarnation, nbytes, spec.order.deadline_seconds,
            )
            self._link.on_silence = self._host_silence
            self._segment = self._link.segment
        else:
            self._segment = Segment.local(nbytes)
        block = self._segment.view(0, (nbytes,), np.uint8)
        self._board = Board(block[:board_bytes], spec.plan.replicas, len(spec.roster.workers))
        memory = DomainMemory(memory_map, block)
        if self._leads:
            fill_shared(spec.plan, domain, memory, spec.layouts, spec.order.seed)
        if self._link is not None:
            self._link.barrier()
        for number in self.ranks:
            self._states.append(self._rank(number, memory))
            self._programs.append(Programs(self._states[-1]))
        if len(self.ranks) > 1:
            self._pool = ThreadPoolExecutor(len(self.ranks), f"flowml-{spec.name[:8]}")

    def _rank(self, number: int, memory: DomainMemory) -> Rank:
        spec = self.spec
        assert self._board is not None
        rank = Rank(
            spec.plan, number, spec.domain_of(self.worker), memory, spec.layouts, spec.order,
            self._streams(number), rank_tables(spec.plan, number, memory, spec.layouts,
                                               spec.order.seed),
            self.worker, self._board.pen(number),
        )
        start_rules(rank)
        return rank

    def _streams(self, number: int) -> dict[str, BatchStream]:
        return {
            name: open_stream(
                feed, number, self._parts.pop((name, number)), resident_bytes=self._resident_bytes
            )
            for name, feed in self.spec.feeds.items()
        }

    def run_window(self, number: int, start: int, stop: int, snapshot: bool) -> Window:
        """Run one window of all ranks of this worker.

        Parameters
        ----------
        number : int
            Only the next one is run; a repeat gets what the first run of it left.
        snapshot : bool
            Keep the tables for the driver at the end.

        Raises
        ------
        StaleRunError
            If it is not the next window: the state of this run has moved on, or was lost.
        """
        if number in self._windows:
            return self._windows[number]
        if number != self._next or self.error is not None:
            raise self.error or StaleRunError(
                f"window {number} of graph {self.spec.plan.graph!r}",
                f"window {self._next} must be the next one on this worker", str(number),
                "A worker cannot repeat steps whose state has moved on: start the run again.",
            )
        self._next = -1
        began = perf_counter()
        records = [self._ended] * len(self.ranks) if self._ended else self._run_ranks(start, stop)
        if records[0].stopped:
            self._ended = replace(records[0], history=history_block((), 0, *[np.zeros(0)] * 3))
        paired = tuple(zip(self.ranks, records, strict=True))
        window = Window(number, paired, perf_counter() - began)
        if snapshot:
            self._snapshots[window.stop] = self.tables()
        self._windows = {number: window}
        self._next = number + 1
        return window

    def _run_ranks(self, start: int, stop: int) -> list[WindowRecord]:
        if self._pool is None:
            return [self._run_rank(0, start, stop)]
        futures = [
            self._pool.submit(self._run_rank, party, start, stop)
            for party in range(len(self.ranks))
        ]
        wait(futures)
        errors = [e for e in (f.exception() for f in futures) if e is not None]
        for error in sorted(errors, key=lambda e: isinstance(e, Aborted)):
            raise error
        return [f.result() for f in futures]

    def _run_rank(self, party: int, start: int, stop: int) -> WindowRecord:
        rank = self._states[party]

        def barrier(asked: bool, step: int, exchange: Exchange | None) -> bool:
            if party == 0:
                self._exchange = exchange
            rank.enter(WAITING, step)
            return self._barrier.wait(party, asked, step).stop

        try:
            return run_window(
                rank, self._programs[party], start, stop, barrier, self._stop.is_set
            )
        except BaseException as error:
            self.abort(error)
            raise

    def _across(self, stop: bool, flip: int) -> Verdict:
        """Meet the other processes, and between two barriers of the host the other domains."""
        exchange = self._exchange
        verdict = self._host_barrier(stop, flip)
        if exchange is None:
            return verdict
        stop = verdict.stop
        if self._leads and self._courier is not None:
            received, asked = self._courier.swap(exchange.send(), stop)
            exchange.take(received)
            stop = stop or asked
        return self._host_barrier(stop, flip)

    def _host_barrier(self, stop: bool, flip: int) -> Verdict:
        if self._link is None:
            return Verdict(0, stop, flip)
        try:
            return self._link.barrier(stop, flip)
        except PeerLost as error:
            raise self.describe_lost(error) from error

    def describe_lost(self, error: PeerLost) -> PeerLost:
        """Return the error of a lost peer with its address and the operator it was in."""
        worker = self.spec.roster.workers[error.member]
        operator, step = self.last_report(worker)
        return PeerLost(
            f"worker {worker}", f"was lost in {operator!r}, step {step}", member=error.member,
            kind="worker", worker=worker, operator=operator, step=step,
        )

    def last_report(self, worker: str) -> tuple[str, int]:
        """Return the operator and step that a worker of this host was last seen in."""
        assert self._board is not None
        reports = [self._board.read(r) for r in self.spec.roster.ranks(worker)]
        busy = [r for r in reports if r.operator_index != WAITING] or reports
        first = busy[0]
        if first.operator_index == WAITING:
            return "barrier", first.step
        return self.spec.plan.steps[first.operator_index].name, first.step

    def _host_silence(self, missing: tuple[int, ...], waited: float) -> None:
        for member in missing:
            self._check_silence(self.spec.roster.workers[member], waited)

    def _local_silence(self, missing: tuple[int, ...], waited: float) -> None:
        self._check_silence(self.worker, waited)

    def _check_silence(self, worker: str, waited: float) -> None:
        """Raise when an awaited worker has been silent, or one operator busy, for too long."""
        assert self._board is not None
        order = self.spec.order
        silence = 0.0 if worker == self.worker else self._board.silence(self.spec.member(worker))
        reports = [self._board.read(r) for r in self.spec.roster.ranks(worker)]
        busy = [r for r in reports if r.operator_index != WAITING]
        if not busy or waited < min(order.deadline_seconds, order.step_seconds or waited + 1):
            return
        slowest = max(busy, key=lambda r: r.since_seconds)
        operator = self.spec.plan.steps[slowest.operator_index]
        limit = order.step_seconds
        if limit is not None and slowest.since_seconds > limit:
            what = f"must end within {limit:g} s (step_seconds)"
        elif silence > order.deadline_seconds:
            what = f"must give a sign of life within {order.deadline_seconds:g} s (deadline)"
        else:
            return
        paused = self._board.paused(self.spec.member(worker))
        got = f"replica {slowest.rank} in step {slowest.step} for {slowest.since_seconds:.1f} s"
        if paused:
            got += f"; worker paused at {paused} % memory"
        raise StalledError(
            f"{operator.label} on worker {worker}", what, got,
            "See what it computes, or raise the limit.", edge=f"{operator.name} -> barrier",
            waiting_for=f"replica {slowest.rank}", since_seconds=slowest.since_seconds,
        )

    def beat(self, paused_percent: int = 0) -> None:
        """Tell the other processes of this host that this one is alive."""
        if self._board is not None:
            member = self.spec.member(self.worker)
            self._board.beat(member)
            self._board.pause(member, paused_percent)

    def request_stop(self) -> None:
        """Let the run end at the next step in which its ranks meet."""
        self._stop.set()

    def abort(self, error: BaseException) -> None:
        """Leave the loop: wake this worker's ranks with ``error`` and tell the other processes."""
        if self.error is None:
            self.error = error
        if self._link is not None:
            self._link.abort(f"{type(error).__name__}: {error}")
            self._link.wake(error)
        if self._courier is not None:
            self._courier.fail(error)
        self._barrier.abort(error)

    def tables(self) -> dict[tuple[str, int], Pytree]:
        """Return copies of the committed table instances whose first rank is here."""
        found = {}
        for rank in self._states:
            for table in self.spec.plan.tables:
                instance = rank.instance(table.scope)
                first = self.spec.plan.ranks_of(table.scope, instance)[0]
                if table.scope == REPLICA or first == rank.number:
                    found[table.name, instance] = rank.tables[table.name].copy()
        return found

    def committed(self) -> tuple[int, dict[tuple[str, int], Pytree]]:
        """Return the committed step of this worker and every table instance it can see."""
        found = {}
        for rank in self._states:
            for table in self.spec.plan.tables:
                found[table.name, rank.instance(table.scope)] = rank.tables[table.name].copy()
        return max((r.committed for r in self._states), default=0), found

    def take_snapshot(self, step: int) -> dict[tuple[str, int], Pytree]:
        """Return the tables kept after ``step`` steps, and forget them."""
        return self._snapshots.pop(step)

    def close(self) -> None:
        """Let go of threads, sockets, memory and data."""
        closed = StaleRunError(f"graph {self.spec.plan.graph!r}", "the run has ended")
        self._barrier.abort(closed)
        if self._courier is not None:
            self._courier.fail(closed)
        if self._link is not None:
            self._link.close()
        if self._pool is not None:
            self._pool.shutdown(wait=True)
        for rank in self._states:
            for stream in rank.streams.values():
                stream.close()
        self._states.clear()
        self._programs.clear()
        self._parts.clear()
        if self._segment is not None and self._link is None:
            self._segment.close()


def first_cause(errors: Sequence[BaseException]) -> BaseException:
    """Return the error that the others followed from.

    Notes
    -----
    An operator's own error first, then the loss of a worker, then stalls; a rank that was told
    to leave (Aborted, StaleRunError) only if nothing else is known.
    """
    def weight(error: BaseException) -> int:
        if isinstance(error, Aborted | StaleRunError):
            return 3
        if isinstance(error, PeerLost):
            return 1
        return 0 if isinstance(error, FlowmlError) else 2

    return min(errors, key=weight)

