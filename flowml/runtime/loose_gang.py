"""A worker's part of a run with stale or async edges: its replicas go at their own pace.

What they share lies in the memory of the host and is changed under one lock, by whichever replica
reads or delivers: no server, no queue of messages, and the work that a contribution sets off is
done by the replica that brought it, while its data are in the cache.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from flowml.actions import GLOBAL, REPLICA
from flowml.errors import FlowmlError
from flowml.protocol.promise_specs import Missing
from flowml.runtime.board import Board
from flowml.runtime.center import Center
from flowml.runtime.feeding import total_steps
from flowml.runtime.gang import Committed, Gang
from flowml.runtime.group_meeting import NO_TEAM, GroupMeeting
from flowml.runtime.host_lock import HostLock
from flowml.runtime.loose_loop import LooseLoop
from flowml.runtime.loose_memory import LooseMemory
from flowml.runtime.loose_rank import LooseRank
from flowml.runtime.program import WindowRecord
from flowml.runtime.watch import WAITING
from flowml.types import Array, Pytree


class LooseGang(Gang):
    """The replicas of one worker in one run with stale or async edges."""

    _center: Center | None = None
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
        memory = cut.center_memory(loose, spec.layouts, seed, block, self._segment.reserve)
        stops = spec.order.on_nonfinite == "stop"
        center = Center(loose, spec.layouts, memory, stops, self.worker, board.enter)
        if self._leads:
            memory.fill(loose, spec.layouts, seed)
            center.rule.begin()
        self._all_see()
        self._center = center
        lock = self._lock = HostLock(None if self._link is None else self._segment.fd)
        lock.on_silence = self._locked
        counts = cut.meetings(block, spec.plan.replicas)
        groups = cut.domain_memory(block)
        loops = []
        for number in self.ranks:
            replica = LooseRank.make(
                loose,
                number,
                spec.layouts,
                spec.order,
                self._streams(number),
                memory.specs,
                domain,
                groups,
                self.worker,
                board.pen(number, self._gone),
            )
            self._states.append(replica.rank)
            loops.append(self._loop(replica, center, lock, counts))
        self._loops = tuple(loops)

    def _loop(self, replica: LooseRank, center: Center, lock: HostLock, counts: Array) -> LooseLoop:
        spec, number = self.spec, replica.number
        ranks = spec.plan.groups[spec.plan.group_of[number]]
        return LooseLoop(
            replica,
            center,
            lock,
            total_steps(list(spec.feeds.values()), spec.order.steps, spec.order.epochs),
            self._stop.is_set,
            partial(self._missing, number),
            GroupMeeting(counts, number, ranks, lock),
            spec.order.record,
        )

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
        except BaseException as error:
            self.abort(error)
            raise
        return record

    def _missing(self, number: int, missing: Missing, waited: float) -> None:
        """Look after those that a replica waits for; leave if the run is over."""
        if self._gone:
            raise self._gone[0]
        for worker in self._awaited(missing):
            try:
                self._check_silence(worker, waited)
            except FlowmlError as error:
                raise _waiting(error, number, missing) from error

    def _awaited(self, missing: Missing) -> list[str]:
        """Return the workers of those who are missing."""
        plan, loose = self.spec.plan, self.spec.loose
        assert loose is not None
        kind = REPLICA if missing.team == NO_TEAM else loose.teams[missing.team].kind
        ranks = {rank for member in missing.members for rank in plan.ranks_of(kind, member)}
        return [w for w in self._workers if ranks.intersection(self.spec.roster.ranks(w))]

    def _locked(self, waited: float) -> None:
        """Look after all who may hold the lock; leave if the run is over."""
        if self._gone:
            raise self._gone[0]
        for worker in self._workers:
            self._check_silence(worker, waited)

    def abort(self, error: BaseException) -> None:
        """Leave the loop, as a gang does, and let the replicas of other processes leave at once."""
        super().abort(error)
        if self._center is not None:
            self._center.rule.request_stop(ended=False)

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
        assert self._center is not None
        found: dict[tuple[str, int], Pytree] = {}
        for table in self.spec.plan.tables:
            if table.scope == GLOBAL:
                found[table.name, 0] = self._center.copy_of(table.name)
                continue
            for rank in self._states:
                instance = rank.instance(table.scope)
                if (table.name, instance) not in found:
                    found[table.name, instance] = rank.tables[table.name].copy()
        return found

    def committed(self) -> Committed:
        """Return copies of the tables as they are, under the clock of the slowest replica."""
        if self._center is None:
            return {}
        rule = self._center.rule
        return {min(int(team.clocks.min()) for team in rule.teams): self._values()}

    def _release(self) -> None:
        super()._release()
        self._loops, self._center = (), None  # views of the shared memory keep it mapped
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
