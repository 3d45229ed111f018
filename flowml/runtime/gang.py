"""One worker's part of a run: its ranks, their memory, and how they meet all the others.

Threads of one process meet at a RankBarrier; the last of them crosses to the other processes of
the host over a HostLink; the first process of each domain exchanges partial sums with the other
domains, between two barriers of its own host.

Once a run is over, for whatever reason, ranks leave at their next operator or barrier, and the
Dask tasks that wait for them do not wait for a rank that sits in an operator.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from flowml.actions import REPLICA
from flowml.data.rows import Rows
from flowml.data.source import Partition
from flowml.data.stream import BatchStream
from flowml.errors import (
    FlowmlError,
    StaleRunError,
    StalledError,
    WorkerLostError,
)
from flowml.plan import Plan
from flowml.protocol.failures import Aborted, PeerLost
from flowml.protocol.superstep import Verdict
from flowml.runtime.board import Board
from flowml.runtime.crew import Crew
from flowml.runtime.domain import DomainMemory, map_memory
from flowml.runtime.exchange import Exchange
from flowml.runtime.feeding import open_stream
from flowml.runtime.host_hello import HostListener
from flowml.runtime.host_link import HostLink
from flowml.runtime.local_barrier import RankBarrier
from flowml.runtime.meter import SCHEDULER
from flowml.runtime.moved import Moved
from flowml.runtime.outcome import history_block
from flowml.runtime.pace import name_waits
from flowml.runtime.program import Programs, WindowRecord, run_window
from flowml.runtime.rank import Rank, fill_shared, rank_tables, start_rules
from flowml.runtime.runspec import RunSpec
from flowml.runtime.segment import Segment
from flowml.runtime.spans import Span
from flowml.runtime.watch import WAITING, Watch
from flowml.types import Array, Pytree

FINISHING = ("aggregate", "update", "assign")
"""What a rank still does when the run is over: past the barrier before, its step is whole."""
WINDOW_ENTRIES = 400
"""Entries that each rank counts in a window for Dask's fine metrics: some dozens of steps."""
Committed = dict[int, dict[tuple[str, int], Pytree]]
"""By steps that are done: (table, instance) -> its value then."""


class Courier(Protocol):
    """Carries parcels to and from other domains."""

    def swap(self, parcels: Mapping[int, Array], stop: bool) -> tuple[dict[int, Array], bool]:
        """Send one parcel a domain; return what came from each, and whether any asked to stop."""

    def fail(self, error: BaseException) -> None:
        """Wake a waiting swap with an error."""

    def take_sent(self) -> Moved:
        """Return the messages that were sent since the last call."""

    def check(self, worker: str, waited: float) -> None:
        """Ask an awaited worker for a sign of life, if it is time for that; may raise."""

    on_silence: Callable[[str, float], None]
    """Called with a worker that does not answer and the seconds waited."""


@dataclass(frozen=True)
class Window:
    """What a finished window leaves: the records of the worker's ranks."""

    number: int
    records: tuple[tuple[int, WindowRecord], ...]
    """(rank, record)."""
    seconds: float = 0.0
    """Wall time."""
    began: float = 0.0
    """When it began, on the clock of its process (``perf_counter``)."""
    spans: tuple[Span, ...] = ()
    """Times of the operators in a sample of its steps."""
    moved: Moved = field(default_factory=Moved)
    """Between replicas, by all ranks of the worker."""

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
        self.watch: Watch | None = None
        self.board: Board | None = None
        self.swap_seconds = 0.0
        """Spent in exchanges with other hosts."""
        self._gone: list[BaseException] = []
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
        steps = enumerate(spec.plan.steps)
        self._finishing = {n for n, o in steps if o.kind in FINISHING and o.scope != REPLICA}
        self._next = 0
        self._ended: WindowRecord | None = None
        self._link: HostLink | None = None
        self._segment: Segment | None = None
        self._listener: HostListener | None = None
        self._crew = Crew(f"flowml {spec.plan.graph}", self._release)
        self._barrier = RankBarrier(len(self.ranks), self._across)
        self._barrier.on_silence = self._local_silence

    @property
    def error(self) -> BaseException | None:
        """Why the run is over for this worker, if it is: the first cause that it knows."""
        return self._gone[0] if self._gone else None

    def load(self, operator: str, rank: int, parts: Sequence[Rows | Partition]) -> None:
        """Take the data of one rank of one load operator."""
        self._parts[operator, rank] = parts

    def join(self, listener: HostListener | None) -> None:
        """Meet the other processes of this host, share memory with them, and make the ranks.

        Raises
        ------
        HostUnreachable
            If this host cannot share memory.
        StalledError, WorkerLostError
            If another process does not come, or has gone.
        """
        self._attend([partial(self._meet, listener)])

    def _attend(self, functions: Sequence[Any]) -> list[Any]:
        """Call functions in threads; raise the first cause if one failed or the run is over."""
        errands = self._crew.run(functions)
        errors = [e.error for e in errands if e.error is not None]
        if errors or not all(e.finished for e in errands):
            raise first_cause([*errors, *self._gone], self.spec.plan)
        return [e.result for e in errands]

    def _meet(self, listener: HostListener | None) -> None:
        spec = self.spec
        domain = spec.domain_of(self.worker)
        board_bytes = Board.nbytes(spec.plan.replicas, len(spec.roster.workers))
        nbytes, reserved = spec.shared_bytes(domain)
        if len(self._workers) > 1 and listener is not None:
            members = {spec.member(w): spec.addresses[w] for w in self._workers}
            self._link = HostLink.join(
                listener,
                spec.member(self.worker),
                members,
                spec.roster.run,
                spec.roster.incarnation,
                nbytes,
                spec.order.deadline_seconds,
                reserved,
            )
            self._link.on_silence = self._host_silence
            self._segment = self._link.segment
        else:
            self._segment = Segment.local(nbytes, reserved)
        block = self._segment.view(0, (nbytes,), np.uint8)
        board = Board(block[:board_bytes], spec.plan.replicas, len(spec.roster.workers))
        self._take_places(block, board)
        for rank in self._states:
            rank.enter(WAITING, 0)
        self.watch, self.board = Watch(spec, self.worker, board), board
        name_waits(self, board)
        if self._courier is not None:
            self._courier.on_silence = self.watch.silent

    def _take_places(self, block: Array, board: Board) -> None:
        """Fill the shared memory, once a domain, and make the ranks on it."""
        spec = self.spec
        domain = spec.domain_of(self.worker)
        reserved = Board.nbytes(spec.plan.replicas, len(spec.roster.workers))
        memory = DomainMemory(map_memory(spec.plan, spec.layouts, domain, reserved), block)
        if self._leads:
            fill_shared(spec.plan, domain, memory, spec.layouts, spec.order.seed)
        self._all_see()
        for number in self.ranks:
            self._states.append(self._rank(number, memory, board))
            self._programs.append(Programs(self._states[-1]))

    def _all_see(self) -> None:
        """Wait until what the first process has written is there for all of this host."""
        if self._link is not None:
            self._link.barrier()

    def _rank(self, number: int, memory: DomainMemory, board: Board) -> Rank:
        spec = self.spec
        rank = Rank(
            spec.plan,
            number,
            spec.domain_of(self.worker),
            memory,
            spec.layouts,
            spec.order,
            self._streams(number),
            rank_tables(spec.plan, number, memory, spec.layouts, spec.order.seed),
            self.worker,
            board.pen(number, self._gone, self._finishing),
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
                f"window {self._next} must be the next one on this worker",
                str(number),
                "A worker cannot repeat steps whose state has moved on: start the run again.",
            )
        self._next = -1
        self._meter(begins=True)
        began = perf_counter()
        records = (
            [self._ended] * len(self.ranks)
            if self._ended
            else self._run_ranks(start, stop, snapshot)
        )
        self._meter(begins=False)
        if records[0].stopped:
            nothing = history_block((), 0, *[np.zeros(0)] * 3)
            ended = replace(records[0], history=nothing, events=None, moved=Moved())
            self._ended = replace(ended, unsent=None)  # each rank has said its own
        paired = tuple(zip(self.ranks, records, strict=True))
        spans = tuple(span for rank in self._states for span in rank.times.take())
        moved = self._moved(records)
        window = Window(number, paired, perf_counter() - began, began, spans, moved)
        if snapshot:
            self._snapshots[window.stop] = self.tables()
        self._windows = {number: window}
        self._next = number + 1
        return window

    def _moved(self, records: Sequence[WindowRecord]) -> Moved:
        moved = Moved() if self._courier is None else self._courier.take_sent()
        for record in records:
            moved.add(record.moved)
        return moved

    def _meter(self, *, begins: bool) -> None:
        """Let the ranks count a little of each window, and what lies between two as Dask's."""
        board = self.board  # another thread may let go of it meanwhile
        for meter in [] if board is None else [board.meters[rank] for rank in self.ranks]:
            if begins:
                meter.allow(WINDOW_ENTRIES)
            else:
                meter.stand(SCHEDULER)

    def _run_ranks(self, start: int, stop: int, snapshot: bool) -> list[WindowRecord]:
        parties = range(len(self.ranks))
        return self._attend([partial(self._run_rank, p, start, stop) for p in parties])

    def _run_rank(self, party: int, start: int, end: int) -> WindowRecord:
        rank = self._states[party]

        def barrier(stop: bool, step: int, exchange: Exchange | None) -> bool:
            if party == 0:
                self._exchange = exchange
            rank.enter(WAITING, step)
            return self._barrier.wait(party, stop, step).stop

        try:
            record = run_window(rank, self._programs[party], start, end, barrier, self._stop.is_set)
            rank.enter(WAITING, record.steps)
        except BaseException as error:
            self.abort(error)
            raise
        return record

    def _across(self, stop: bool, flip: int) -> Verdict:
        """Meet the other processes, and between two barriers of the host the other domains."""
        exchange = self._exchange
        verdict = self._host_barrier(stop, flip)
        if exchange is None:
            return verdict
        stop = verdict.stop
        if self._leads and self._courier is not None:
            received, asked = self._swap(self._courier, exchange.send(), stop)
            exchange.take(received)
            stop = stop or asked
        return self._host_barrier(stop, flip)

    def _swap(
        self, courier: Courier, parcels: Mapping[int, Array], stop: bool
    ) -> tuple[dict[int, Array], bool]:
        began = perf_counter()
        try:
            return courier.swap(parcels, stop)
        except PeerLost as error:
            assert self.watch is not None
            raise self.watch.lost(error.worker) from error
        finally:
            self.swap_seconds += perf_counter() - began

    def _host_barrier(self, stop: bool, flip: int) -> Verdict:
        if self._link is None:
            return Verdict(0, stop, flip)
        try:
            return self._link.barrier(stop, flip)
        except PeerLost as error:
            assert self.watch is not None
            raise self.watch.lost(self.spec.roster.workers[error.member]) from error

    def _host_silence(self, missing: tuple[int, ...], waited: float) -> None:
        for member in missing:
            self._check_silence(self.spec.roster.workers[member], waited)

    def _local_silence(self, missing: tuple[int, ...], waited: float) -> None:
        self._check_silence(self.worker, waited)

    def _check_silence(self, worker: str, waited: float) -> None:
        if self.watch is not None:
            self.watch.check(worker, waited)

    def beat(self, paused_percent: int = 0) -> None:
        """Give a sign of life, and end the run if an operator of this process takes too long."""
        if self.watch is None:
            return
        self.watch.beat(paused_percent)
        overdue = self.watch.overdue()
        if overdue is not None:
            self.abort(overdue)

    def request_stop(self) -> None:
        """Let the run end at the next step in which its ranks meet."""
        self._stop.set()

    def abort(self, error: BaseException) -> None:
        """Leave the loop: wake this worker's ranks with ``error`` and tell the other processes."""
        self._gone.append(error)
        link, courier = self._link, self._courier
        if link is not None:
            link.abort(f"{type(error).__name__}: {error}")
            link.wake(error)
        if courier is not None:
            courier.fail(error)
        self._barrier.abort(error)
        self._crew.leave()

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

    def committed(self) -> Committed:
        """Return copies of the last committed tables of each rank here, by its committed steps.

        Notes
        -----
        Ranks of one worker may differ by the steps that they make between two barriers. Safe
        after ``abort``: a rank that is still inside sits in an operator and cannot write into the
        version that is copied, since it leaves before it begins another.
        """
        found: Committed = {}
        for rank in self._states:
            tables = found.setdefault(rank.committed, {})
            for table in self.spec.plan.tables:
                key = table.name, rank.instance(table.scope)
                if key not in tables:
                    tables[key] = rank.tables[table.name].copy()
        return found

    def take_snapshot(self, step: int) -> dict[tuple[str, int], Pytree]:
        """Return the tables kept after ``step`` steps, and forget them."""
        return self._snapshots.pop(step)

    def close(self, listener: HostListener | None = None) -> None:
        """End the run here; let go of sockets, memory and data when the last thread is out."""
        self._listener = listener
        self.abort(StaleRunError(f"graph {self.spec.plan.graph!r}", "the run has ended"))
        self._crew.close()

    def _release(self) -> None:
        if self._listener is not None:
            self._listener.close()
        if self._link is not None:
            self._link.close()
        elif self._segment is not None:
            self._segment.close()
        for rank in self._states:
            for stream in rank.streams.values():
                stream.close()
        self._states.clear()
        self._programs.clear()
        self._parts.clear()
        self._snapshots.clear()
        for meter in self.board.meters if self.board is not None else ():
            meter.close()
        self.watch = self.board = None


def first_cause(errors: Sequence[BaseException], plan: Plan) -> BaseException:
    """Return the error that the others followed from.

    Notes
    -----
    An operator's own error first, of several that of the earliest step, operator and replica;
    then stalls, lost workers, and what is not ours; a rank that was told to leave (Aborted,
    StaleRunError) only if nothing else is known.
    """
    names = [operator.name for operator in plan.operators]

    def order(error: BaseException) -> tuple[int, int, int, int]:
        fields = error.fields if isinstance(error, FlowmlError) else {}
        name = fields.get("operator")
        place = names.index(name) if name in names else len(names)
        return (_weight(error), int(fields.get("step", 0)), place, int(fields.get("replica", 0)))

    return min(errors, key=order)


def _weight(error: BaseException) -> int:
    if isinstance(error, Aborted | StaleRunError):
        return 4
    if not isinstance(error, FlowmlError):
        return 3
    if isinstance(error, WorkerLostError):
        return 2
    return 1 if isinstance(error, StalledError) else 0
