"""The ledger of a run: each read and each delivery, and what they come to edge by edge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, overload

import numpy as np

from flowml.drawing.text import columns
from flowml.errors import PlanError
from flowml.plan import Plan
from flowml.runtime.fates import CARRIED, DROPPED, EMPTY, FATES, QUEUED, TAKEN, UNKNOWN, Fates
from flowml.runtime.loose_rank import DELIVER, KINDS, READ, SKIP
from flowml.runtime.moved_loose import edge_names
from flowml.types import Array


class Entry(NamedTuple):
    """One row of a ledger; its fields are the columns of `Ledger`."""

    event: int
    kind: str
    edge: str
    replica: int
    clock: int
    version: int
    staleness: int
    wait_seconds: float
    bytes: int
    fate: str


@dataclass(frozen=True)
class EdgeCounts:
    """What the rows of one edge come to.

    Attributes
    ----------
    edge : str
        ``source -> reader``.
    reads, deliveries : int
        Of an edge out of what all share, and of one into a sum or a push. One of them is 0.
    empty : int
        Deliveries with nothing in them: no example was left, or a filter kept the value back.
    taken : int
        Deliveries that the firing they were for took.
    carried : int
        Deliveries that missed their quorum and were taken by the next firing.
    dropped : int
        Deliveries that missed their quorum and were dropped, or had no firing after them.
    queued : int
        Deliveries that no firing had taken when the run ended.
    unknown : int
        Deliveries of a record in which events are missing: of a run that failed.
    skipped : int
        Contributions that were never made: their replica was moved over the step, since its quorum
        had gone on.
    most_stale : int
        The largest staleness of its rows; 65,535 and more count as that. Unit: steps.
    mean_staleness : float
        Unit: steps; NaN where it has no row.
    wait_seconds : float
        Waited before its events. What is read at once is waited for once, and counts for each.
    bytes : int
        Read anew or delivered, as a network would carry it.

    Notes
    -----
    ``deliveries == empty + taken + carried + dropped + queued + unknown``.
    """

    edge: str
    reads: int
    deliveries: int
    empty: int
    taken: int
    carried: int
    dropped: int
    queued: int
    unknown: int
    skipped: int
    most_stale: int
    mean_staleness: float
    wait_seconds: float
    bytes: int


@dataclass(frozen=True, eq=False, repr=False)
class Ledger:
    """Reads and deliveries of a run with stale, async or compressed edges, in their order.

    An event (a replica reads, delivers, or leaves) has a row for each of its edges. Index it as a
    structured array: ``ledger["bytes"]`` is a column, ``ledger[ledger["kind"] == "read"]`` a
    ledger of these rows, ``ledger[0]`` a row. ``len`` counts rows, and iterating gives them.

    Columns
    -------
    event : uint32
        Its number among all events of the run.
    kind : str
        "read"; "deliver"; "skip", a step that its replica was moved over; "leave".
    edge : str
        ``source -> reader``; "" where there is none.
    replica : uint16
        Who; of what a group brings, the lowest rank in it.
    clock : uint32
        Steps that it had delivered.
    version : uint32
        Of a read: of the table, or firings of the sum that it answers.
    staleness : uint16
        Of a read: how far the newest stamp that is complete over all writers is behind the step
        before the reader's. Of a delivery: the most of the reads of its step. Unit: steps.
    wait_seconds : float32
        Waited before the event.
    bytes : uint32
        Read anew or delivered, as its codec makes it.
    fate : str
        Of a delivery: "empty", "taken", "carried", "dropped", "queued" or "unknown", as
        `EdgeCounts` says; "" of other rows.

    Attributes
    ----------
    events : ndarray of loose_rank.EVENT, shape (rows,)
        The rows as they were recorded: numbers for edges (of ``edges``; 65,535: none) and kinds.
    edges : tuple of str
        Names of the edges.

    Notes
    -----
    What was taken, carried and dropped is not recorded: it follows from the order of the events,
    and is worked out when it is first asked for, in some 10 us an event.
    """

    events: Array
    edges: tuple[str, ...]
    _of_all: Fates
    _rows: Array
    """Numbers of these rows among all of the run."""

    @classmethod
    def of(cls, plan: Plan, record: Array) -> Ledger:
        """Return the ledger of a whole run.

        Parameters
        ----------
        record : ndarray of loose_rank.EVENT
        """
        fates = Fates(plan, record)
        return cls(record, edge_names(fates.loose), fates, np.arange(len(record)))

    # -- rows ----------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.events)

    @overload
    def __getitem__(self, key: str) -> Array: ...
    @overload
    def __getitem__(self, key: int) -> Entry: ...
    @overload
    def __getitem__(self, key: slice | Array) -> Ledger: ...
    def __getitem__(self, key: str | int | slice | Array) -> Array | Entry | Ledger:
        """Return a column by name, a row by number, or the ledger of some rows."""
        if isinstance(key, str):
            return self._column(key)
        if isinstance(key, int | np.integer):
            at = range(len(self))[key]
            return next(iter(self[at : at + 1]))
        return Ledger(self.events[key], self.edges, self._of_all, self._rows[key])

    def __iter__(self) -> Iterator[Entry]:
        """Give the rows, in their order."""
        yield from map(Entry, *(self._column(name).tolist() for name in Entry._fields))

    def _column(self, name: str) -> Array:
        if name == "kind":
            return _named(KINDS, self.events["kind"])
        if name == "edge":  # one more than the last says that there is none
            return _named((*self.edges, ""), np.minimum(self.events["edge"], len(self.edges)))
        if name == "fate":
            return _named(FATES, self._fates())
        if name not in Entry._fields:
            raise KeyError(f"a ledger has no column {name!r}: it has {', '.join(Entry._fields)}")
        found: Array = self.events[name]
        return found

    def _fates(self) -> Array:
        found: Array = self._of_all.fates[self._rows]
        return found

    # -- edges ---------------------------------------------------------------------------------

    def edge(self, name: str) -> EdgeCounts:
        """Return what the rows of one edge come to.

        Raises
        ------
        PlanError
            If there is no such edge.
        """
        mine = self._rows_of(name)
        events, fates = self.events[mine], np.bincount(self._fates()[mine], minlength=len(FATES))
        kinds, late = np.bincount(events["kind"], minlength=len(KINDS)), events["staleness"]
        what = (EMPTY, TAKEN, CARRIED, DROPPED, QUEUED, UNKNOWN)
        return EdgeCounts(
            edge=name,
            reads=int(kinds[READ]),
            deliveries=int(kinds[DELIVER]),
            **{FATES[n]: int(fates[n]) for n in what},
            skipped=self._skipped(name),
            most_stale=int(late.max(initial=0)),
            mean_staleness=float(late.mean()) if len(late) else float("nan"),
            wait_seconds=float(events["wait_seconds"].sum(dtype=np.float64)),
            bytes=int(events["bytes"].sum(dtype=np.int64)),
        )

    def counts(self) -> dict[str, EdgeCounts]:
        """Return what the rows of each edge come to, by its name."""
        return {name: self.edge(name) for name in dict.fromkeys(self.edges)}

    def histogram(self, edge: str | None = None) -> dict[int, int]:
        """Return how often each staleness was seen.

        Parameters
        ----------
        edge : str, optional
            ``source -> reader``; all reads when left out.

        Returns
        -------
        dict of int to int
            Staleness, in steps, to rows; in the order of staleness, without those never seen.

        Raises
        ------
        PlanError
            If there is no such edge.
        """
        mine = self.events["kind"] == READ if edge is None else self._rows_of(edge)
        found, times = np.unique(self.events["staleness"][mine], return_counts=True)
        return dict(zip(found.tolist(), times.tolist(), strict=True))

    def _numbers(self, name: str) -> list[int]:
        """Return the numbers of an edge: some, where an operator reads rows of a table twice."""
        found = [number for number, edge in enumerate(self.edges) if edge == name]
        if not found:
            known = ", ".join(map(repr, dict.fromkeys(self.edges)))
            raise PlanError("ledger", f"an edge is one of {known}", repr(name))
        return found

    def _rows_of(self, name: str) -> Array:
        return np.isin(self.events["edge"], self._numbers(name))

    def _skipped(self, name: str) -> int:
        """Return how many contributions an edge would have had of the steps moved over."""
        skips = self.events["kind"] == SKIP
        if not skips.any():
            return 0
        clocks, teams = self.events["clock"][skips], self._of_all.teams[self._rows][skips]
        reads = len(self._of_all.loose.reads)
        gates = [self._of_all.gates[n - reads] for n in self._numbers(name) if n >= reads]
        missed = ((teams == g.team) & ((clocks + 1) % g.every == 0) for g in gates)
        return sum(int(m.sum()) for m in missed)

    # -- for the eye ---------------------------------------------------------------------------

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame: a row a row, names for kinds, edges and fates.

        Raises
        ------
        ImportError
            Without pandas.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError('to_pandas needs pandas: pip install "flowml[dataframe]"') from error
        return pd.DataFrame({name: self._column(name) for name in Entry._fields})

    def __repr__(self) -> str:
        """Show what the rows of each edge come to, without the columns that are 0 in all."""
        head = f"<Ledger of {len(self):,} rows: {len(np.unique(self.events['event'])):,} events>"
        found = list(self.counts().values())
        names = [f.name for f in fields(EdgeCounts)[1:]]
        shown = [name for name in names if any(getattr(counts, name) > 0 for counts in found)]
        lines = [(c.edge, *(_shown(getattr(c, name)) for name in shown)) for c in found]
        header = ("edge", *(name.replace("_", " ") for name in shown))
        return f"{head}\n{columns(header, lines)}" if lines else head


def _named(names: tuple[str, ...], numbers: Array) -> Array:
    found: Array = np.array(names)[numbers]
    return found


def _shown(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return "" if np.isnan(value) else f"{value:.3g}"
