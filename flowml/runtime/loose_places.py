"""Where a worker finds the tables of a loose run: in the memory of its own host, or on another.

One domain, that of rank 0, is their home: its processes work on them directly. The first worker of
it serves the replicas of all other domains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Protocol

from flowml.actions import GLOBAL
from flowml.protocol.promise_rule import PromiseRule
from flowml.protocol.promise_specs import Missing
from flowml.protocol.table_client import TableClient
from flowml.protocol.table_server import TableServer
from flowml.runtime.center import Center
from flowml.runtime.center_memory import CenterMemory
from flowml.runtime.center_seat import CenterSeat
from flowml.runtime.feeding import total_steps
from flowml.runtime.host_lock import HostLock
from flowml.runtime.line import HostLine, Line, Note
from flowml.runtime.loose_rank import LooseRank
from flowml.runtime.patience import Patience
from flowml.runtime.remote_line import RemoteLine
from flowml.runtime.row_tables import RowSpec
from flowml.runtime.runspec import RunSpec
from flowml.runtime.table_call import TableCall
from flowml.runtime.table_desk import CenterTables, TableDesk
from flowml.runtime.table_items import TableItems
from flowml.types import Pytree

ELSEWHERE = -1
"""Stands for the steps that are done, where the tables are on another host."""


class Place(Protocol):
    """One process's way to the tables."""

    @property
    def rule(self) -> PromiseRule | None:
        """Who may read and what fires, if that is known here."""

    @property
    def specs(self) -> Mapping[str, RowSpec]:
        """Of the shared tables that are kept as rows."""

    def line(self, replica: LooseRank, patience: Patience, note: Note) -> Line:
        """Return a replica's line."""

    def leave(self) -> None:
        """Let the replicas of other processes leave at once."""

    def tables(self) -> dict[tuple[str, int], Pytree]:
        """Return copies of the tables that all share, if they are here."""

    def clock(self) -> int:
        """Return the clock of the slowest replica, if it is known here."""

    def close(self) -> None:
        """Let go of threads; views of shared memory go with this object."""


class Home:
    """In the domain that holds the tables.

    Parameters
    ----------
    spec : RunSpec
    memory : CenterMemory
    center : Center
    lock : HostLock
    """

    def __init__(self, spec: RunSpec, memory: CenterMemory, center: Center, lock: HostLock) -> None:
        self.specs: Mapping[str, RowSpec] = memory.specs
        self._spec = spec
        self._center = center
        self._lock = lock
        self._desk: TableDesk | None = None

    @property
    def rule(self) -> PromiseRule:
        """Who may read and what fires."""
        return self._center.rule

    def line(self, replica: LooseRank, patience: Patience, note: Note) -> Line:
        """Return a replica's line."""
        return HostLine(CenterSeat(replica, self._center), self._lock, patience, note)

    def open_desk(
        self,
        on_error: Callable[[BaseException], None],
        on_silence: Callable[[int, Missing, float], None],
    ) -> None:
        """Begin to serve the replicas of other domains."""
        spec, roster = self._spec, self._spec.roster
        assert spec.loose is not None
        items = TableItems(spec.loose, spec.layouts, self.specs)
        last = total_steps(list(spec.feeds.values()), spec.order.steps, spec.order.epochs)
        tables = CenterTables(self._center, items, self._lock, last)
        guests = [rank for ranks in spec.domain_ranks()[1:] for rank in ranks]
        server = TableServer(roster.run, roster.incarnation, tables, guests)
        self._desk = TableDesk(server, tables, spec.order.longest_message, on_error, on_silence)

    def ask(self, content: Any) -> Future[bytes] | None:
        """Queue a request of another domain; None: this worker does not serve."""
        return None if self._desk is None else self._desk.ask(content)

    def leave(self) -> None:
        """Let the replicas of other processes leave at once."""
        self._center.rule.request_stop(ended=False)

    def tables(self) -> dict[tuple[str, int], Pytree]:
        """Return copies of the tables that all share."""
        shared = [table.name for table in self._spec.plan.tables if table.scope == GLOBAL]
        return {(name, 0): self._center.tables.copy_of(name) for name in shared}

    def clock(self) -> int:
        """Return the clock of the slowest replica."""
        return min(int(team.clocks.min()) for team in self._center.rule.teams)

    def close(self) -> None:
        """Let the desk's thread end."""
        if self._desk is not None:
            self._desk.close()


class Abroad:
    """In a domain that asks another one.

    Parameters
    ----------
    spec : RunSpec
    call : TableCall
    shared : memoryview of int64
        A word of this domain's memory: that somebody has asked to stop.
    """

    def __init__(self, spec: RunSpec, call: TableCall, shared: memoryview) -> None:
        assert spec.loose is not None
        self.rule = None
        counted = CenterMemory.over(spec.loose, spec.layouts, spec.order.seed)
        self.specs: Mapping[str, RowSpec] = counted.specs
        self._spec = spec
        self._call = call
        self._shared = shared
        self._items = TableItems(spec.loose, spec.layouts, self.specs)

    def line(self, replica: LooseRank, patience: Patience, note: Note) -> Line:
        """Return a replica's line."""
        roster = self._spec.roster
        client = TableClient(roster.run, roster.incarnation, replica.number)
        return RemoteLine(replica, client, self._call, self._items, self._shared, patience, note)

    def leave(self) -> None:
        """Do nothing: the home learns it from the scheduler."""

    def tables(self) -> dict[tuple[str, int], Pytree]:
        """Return nothing: they are not here."""
        return {}

    def clock(self) -> int:
        """Return that it is not known here."""
        return ELSEWHERE

    def close(self) -> None:
        """Do nothing."""
