"""A worker's part of a run with stale or async edges: its replicas go at their own pace.

What they share lies in the memory of one host and is changed under one lock, by whichever replica
of that host reads or delivers: no server, no queue of messages, and the work that a contribution
sets off is done by the replica that brought it, while its data are in the cache. Replicas of other
hosts send requests (table_desk.py).
"""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial
from typing import Any

from flowml.actions import GLOBAL, REPLICA
from flowml.errors import FlowmlError
from flowml.protocol.failures import PeerLost
from flowml.protocol.promise_specs import Missing
from flowml.protocol.superstep import Verdict
from flowml.runtime.board import Board
from flowml.runtime.center import Center
from flowml.runtime.feeding import total_steps
from flowml.runtime.gang import Committed, Gang
from flowml.runtime.group_meeting import NO_TEAM, GroupMeeting, stop_word
from flowml.runtime.host_lock import HostLock
from flowml.runtime.loose_loop import LooseLoop, Record
from flowml.runtime.loose_memory import LooseMemory
from flowml.runtime.loose_places import Abroad, Home, Place
from flowml.runtime.loose_rank import LooseRank
from flowml.runtime.patience import Patience
from flowml.runtime.program import WindowRecord
from flowml.runtime.table_call import TableCall
from flowml.runtime.watch import WAITING
from flowml.types import Array, Pytree


class LooseGang(Gang):
    """The replicas of one worker in one run with stale or async edges."""

    tables_at: TableCall | None = None
    """The way to the tables, where another domain has them."""
    _place: Place | None = None
    _lock: HostLock | None = None
    _loops: tuple[LooseLoop, ...] = ()
    _meets_first = False
    """The window before ended in a snapshot: nobody goes on before all have taken it."""

    def _take_places(self, block: Array, board: Board) -> None:
        spec, loose = self.spec, self.spec.loose
        assert loose is not None
        assert self._segment is not None
        domain, seed = spec.domain_of(self.worker), spec.order.seed
        cut = LooseMemory.of(loose, spec.layouts, seed, domain, len(spec.roster.workers))
        fd = None if self._link is None else self._segment.fd
        lock = self._lock = HostLock(fd, len(spec.roster.domain(self.worker)))
        lock.on_silence = self._locked
        counts = cut.meetings(block, spec.plan.replicas)
        if self.tables_at is None:
            place: Place = self._home(cut, lock, block, board)
        else:
            place = Abroad(spec, self.tables_at, stop_word(counts))
        self._all_see()
        self._place = place
        groups = cut.domain_memory(block)
        loops = []
        for number in self.ranks:
            replica = LooseRank.make(
                loose,
                number,
                spec.layouts,
                spec.order,
                self._streams(number),
                place.specs,
                domain,
                groups,
                self.worker,
                board.pen(number, self._gone),
            )
            self._states.append(replica.rank)
            loops.append(self._loop(replica, place, lock, counts))
        self._loops = tuple(loops)

    def _home(self, cut: LooseMemory, lock: HostLock, block: Array, board: Board) -> Home:
        """Return the tables in this domain's memory; its first process fills and serves them."""
        spec, loose = self.spec, self.spec.loose
        assert loose is not None
        assert self._segment is not None
        seed, stops = spec.order.seed, spec.order.on_nonfinite == "stop"
        memory = cut.center_memory(loose, spec.layouts, seed, block, self._segment.reserve)
        center = Center(loose, spec.layouts, memory, stops, self.worker, board.enter)
        home = Home(spec, memory, center, lock)
        if self._leads:
            memory.fill(loose, spec.layouts, seed)
            center.rule.begin()
            if len(spec.roster.domains) > 1:
                home.open_desk(self.abort, self._missing)
        return home

    def _loop(self, replica: LooseRank, place: Place, lock: HostLock, counts: Array) -> LooseLoop:
        spec, number = self.spec, replica.number
        ranks = spec.plan.groups[spec.plan.group_of[number]]
        patience, record = Patience(partial(self._missing, number)), Record(spec.order.record)
        return LooseLoop(
            replica,
            place.line(replica, patience, record.note),
            patience,
            record,
            total_steps(list(spec.feeds.values()), spec.order.steps, spec.order.epochs),
            self._stop.is_set,
            GroupMeeting(counts, number, ranks, lock),
        )

    def ask_tables(self, content: Any) -> Future[bytes] | None:
        """Queue a request of a replica of another domain; None: they are not served here."""
        return self._place.ask(content) if isinstance(self._place, Home) else None

    def _run_ranks(self, start: int, stop: int, snapshot: bool) -> list[WindowRecord]:
        parties = range(len(self.ranks))
        found = self._attend([partial(self._run_loop, p, start, stop, snapshot) for p in parties])
        self._meets_first = snapshot
        return found

    def _run_loop(self, party: int, start: int, stop: int, snapshot: bool) -> WindowRecord:
        rank = self._states[party]
        try:
            if self._meets_first:
                self._barrier.wait(party, False, start)
            record = self._loops[party].run_window(start, stop)
            rank.enter(WAITING, record.steps)
            if snapshot:
                self._barrier.wait(party, False, stop)
        except PeerLost as error:
            found = self._lost_tables(error)
            self.abort(found)
            raise found from error
        except BaseException as error:
            self.abort(error)
            raise
        return record

    def _lost_tables(self, error: PeerLost) -> FlowmlError:
        """Return the error of a worker that holds the tables and does not answer."""
        assert self.watch is not None
        if error.kind != "silence":
            return self.watch.lost(error.worker)
        try:
            self.watch.silent(error.worker, self.spec.order.deadline_seconds)
        except FlowmlError as silence:
            return silence
        return error

    def _across(self, stop: bool, flip: int) -> Verdict:
        """Meet the other processes, and between two barriers of the host the other domains."""
        verdict = self._host_barrier(stop, flip)
        if self._courier is None:
            return verdict
        asked = self._swap(self._courier, {}, verdict.stop)[1] if self._leads else False
        return self._host_barrier(verdict.stop or asked, flip)

    def _missing(self, number: int, missing: Missing, waited: float) -> None:
        """Look after those that a replica waits for; leave if the run is over."""
        if self._gone:
            raise self._gone[0]
        for worker in self._awaited(missing):
            try:
                if worker in self._workers:
                    self._check_silence(worker, waited)
                elif self._courier is not None:
                    self._courier.check(worker, waited)
            except FlowmlError as error:
                raise _waiting(error, number, missing) from error

    def _awaited(self, missing: Missing) -> list[str]:
        """Return the workers of those who are missing."""
        plan, loose = self.spec.plan, self.spec.loose
        assert loose is not None
        kind = REPLICA if missing.team == NO_TEAM else loose.teams[missing.team].kind
        ranks = {rank for member in missing.members for rank in plan.ranks_of(kind, member)}
        roster = self.spec.roster
        return [w for w in roster.workers if ranks.intersection(roster.ranks(w))]

    def _locked(self, waited: float) -> None:
        """Look after all who may hold the lock; leave if the run is over."""
        if self._gone:
            raise self._gone[0]
        for worker in self._workers:
            self._check_silence(worker, waited)

    def abort(self, error: BaseException) -> None:
        """Leave the loop, as a gang does, and let the replicas of other processes leave at once."""
        super().abort(error)
        if self._place is not None:
            self._place.leave()

    def tables(self) -> dict[tuple[str, int], Pytree]:
        """Return copies of the tables whose first rank is here, as they are."""
        return {
            (name, instance): value
            for (name, instance), value in self._values().items()
            if self._tells(name, instance)
        }

    def _tells(self, name: str, instance: int) -> bool:
        plan = self.spec.plan
        return plan.ranks_of(plan.table(name).scope, instance)[0] in self.ranks

    def _values(self) -> dict[tuple[str, int], Pytree]:
        assert self._place is not None
        found = self._place.tables()
        for table in self.spec.plan.tables:
            for rank in self._states if table.scope != GLOBAL else ():
                instance = rank.instance(table.scope)
                if (table.name, instance) not in found:
                    found[table.name, instance] = rank.tables[table.name].copy()
        return found

    def committed(self) -> Committed:
        """Return copies of the tables as they are, under the clock of the slowest replica."""
        return {} if self._place is None else {self._place.clock(): self._values()}

    def _release(self) -> None:
        super()._release()
        if self._place is not None:
            self._place.close()
        self._loops, self._place = (), None  # views of the shared memory keep it mapped
        if self._lock is not None:
            self._lock.close()


def _waiting(error: FlowmlError, number: int, missing: Missing) -> FlowmlError:
    """Return an error of a wait with what was waited for."""
    found: Any = type(error)(
        error.where,
        error.required,
        f"{error.got}; replica {number} waits on edge {missing.edge} for clock {missing.clock}",
        error.fix,
        **error.fields,
    )
    assert isinstance(found, FlowmlError)
    return found
