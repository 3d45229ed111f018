"""The logical graph: what is asked, as frozen values with names.

A graph is a set of operators, ordered so that each stands after those that it reads, and of
tables, the only state that survives a step. A step is acyclic; the loop goes through a table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import networkx as nx
from dask.base import tokenize

from flowml.actions import (
    GLOBAL,
    REPLICA,
    Action,
    Assign,
    Evaluate,
    Kind,
    Load,
    SparseRows,
    Update,
)
from flowml.edges import Edge
from flowml.types import UNKNOWN_SITE, Site


@dataclass(frozen=True)
class Port:
    """One input of an operator: where the value comes from and what the edge promises."""

    source: str
    """Name of an operator, or of a table read as it stood at the start of the step."""
    output: int
    edge: Edge
    table: bool
    """The source is a table. ``edge.ids`` is the (operator, output) that names the rows."""


@dataclass(frozen=True)
class Operator:
    """A named vertex of the graph."""

    name: str
    kind: Kind
    inputs: tuple[Port, ...]
    outputs: int
    action: Action
    site: Site
    scope: str = ""
    """``replica``, ``global`` or a group's name; empty until the graph was checked."""

    @property
    def writes(self) -> str | None:
        """Name of the table that it writes, or None."""
        return self.action.table if isinstance(self.action, Update | Assign) else None

    @property
    def label(self) -> str:
        """Name and place, for messages."""
        return f"operator {self.name!r} ({self.site})"


@dataclass(frozen=True)
class Table:
    """Named parameters: the state of the graph."""

    name: str
    init: Any
    """A pytree of arrays, a function of ``here``, or SparseRows."""
    scope: str
    site: Site
    on: int | None = None

    @property
    def sparse(self) -> bool:
        """Rows by key instead of a pytree."""
        return isinstance(self.init, SparseRows)


@dataclass(frozen=True)
class LogicalGraph:
    """What is asked: operators in an order that can be run, and tables."""

    name: str
    operators: tuple[Operator, ...]
    tables: tuple[Table, ...]
    site: Site = field(default=UNKNOWN_SITE, compare=False)
    _index: dict[str, Operator] = field(init=False, repr=False, compare=False)
    _tables: dict[str, Table] = field(init=False, repr=False, compare=False)
    _writers: dict[str, tuple[Operator, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Index operators and tables by name, and writers by table."""
        writers: dict[str, tuple[Operator, ...]] = {}
        for operator in self.operators:
            if operator.writes:
                writers[operator.writes] = (*writers.get(operator.writes, ()), operator)
        object.__setattr__(self, "_index", {o.name: o for o in self.operators})
        object.__setattr__(self, "_tables", {t.name: t for t in self.tables})
        object.__setattr__(self, "_writers", writers)

    @property
    def label(self) -> str:
        """Name and place, for messages."""
        return f"graph {self.name!r} ({self.site})"

    def operator(self, name: str) -> Operator:
        """Return the operator of that name."""
        return self._index[name]

    def table(self, name: str) -> Table:
        """Return the table of that name."""
        return self._tables[name]

    def edges(self) -> Iterator[tuple[Port, Operator]]:
        """Yield each input of each operator with the operator that reads it."""
        for operator in self.operators:
            for port in operator.inputs:
                yield port, operator

    def writers(self, table: str) -> tuple[Operator, ...]:
        """Return the updates and assigns of a table, in the order of the step."""
        return self._writers.get(table, ())

    def loads(self) -> tuple[Operator, ...]:
        """Return the load operators."""
        return tuple(o for o in self.operators if isinstance(o.action, Load))

    def to_networkx(self) -> nx.MultiDiGraph:
        """Return the graph with tables as vertices: reads and writes close the loop.

        Returns
        -------
        networkx.MultiDiGraph
            Vertices have ``kind``, ``scope`` and ``site``; edges have ``label`` and ``promise``.
        """
        out = nx.MultiDiGraph(name=self.name)
        for table in self.tables:
            out.add_node(table.name, kind="table", scope=table.scope, site=str(table.site))
        for operator in self.operators:
            out.add_node(
                operator.name, kind=operator.kind, scope=operator.scope, site=str(operator.site)
            )
        for port, operator in self.edges():
            kind = port.edge.promise.kind if port.edge.promise else "sync"
            out.add_edge(port.source, operator.name, label=port.edge.describe(), promise=kind)
        for operator in self.operators:
            if operator.writes:
                out.add_edge(operator.name, operator.writes, label="", promise="sync", write=True)
        return out

    @property
    def token(self) -> str:
        """A structural name: equal for graphs of equal operators, whatever they are called.

        Notes
        -----
        Kind, action and edges of each operator, by position; sites and names are left out. The
        data of a source enters through its own token, which reads all of them.
        """
        return str(tokenize(self.form, [_source_token(o.action) for o in self.operators]))

    @property
    def form(self) -> str:
        """A structural name like ``token`` that leaves the data out."""
        order = {o.name: str(i) for i, o in enumerate(self.operators)}
        tables = [self.table(name) for name in self._tables_by_use()]
        order |= {t.name: f"t{i}" for i, t in enumerate(tables)}
        parts = [
            (
                o.kind,
                o.outputs,
                _action_token(o.action, order),
                tuple(
                    (order[p.source], p.output, p.table, _edge_token(p.edge, order))
                    for p in o.inputs
                ),
            )
            for o in self.operators
        ]
        return str(tokenize([(t.scope, t.on, t.init) for t in tables], parts))

    def _tables_by_use(self) -> list[str]:
        """Return the names of the tables in an order that does not depend on the names."""
        used: dict[str, None] = {}
        for operator in self.operators:
            used |= {p.source: None for p in operator.inputs if p.table}
            if operator.writes:
                used[operator.writes] = None
        return [*used, *(t.name for t in self.tables if t.name not in used)]


def _edge_token(edge: Edge, order: dict[str, str]) -> object:
    if edge.ids is None:
        return edge.describe()
    source, output = edge.ids
    return edge.describe(), order[source], output


def _action_token(action: Action, order: dict[str, str]) -> object:
    if isinstance(action, Update):
        return ("update", order[action.table], action.rule)
    if isinstance(action, Assign):
        return ("assign", order[action.table])
    if isinstance(action, Load):
        options = (action.batch_size, action.shuffle, action.drop_last, action.seed)
        return ("load", *options, action.scope)
    if isinstance(action, Evaluate):
        return ("evaluate", action.function, action.every, action.unit)
    return action


def _source_token(action: Action) -> str | None:
    return action.source.token() if isinstance(action, Load | Evaluate) else None


def coarser(scope: str, than: str) -> bool:
    """Tell whether ``scope`` has fewer instances than ``than``.

    Examples
    --------
    >>> coarser("global", "replica"), coarser("host", "replica"), coarser("host", "global")
    (True, True, False)
    """
    return _rank(scope) > _rank(than)


def _rank(scope: str) -> int:
    return {REPLICA: 0, GLOBAL: 2}.get(scope, 1)
