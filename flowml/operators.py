"""The words of a graph: load, table, map, gradient, aggregate, update, assign, evaluate, until.

Each word declares an operator and returns a handle; handles are passed to other words. There is
no hidden global graph: :class:`flowml.Graph` collects what its sinks depend on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from flowml.actions import (
    DEFAULT_CAPACITY,
    GLOBAL,
    REPLICA,
    Aggregate,
    Assign,
    Evaluate,
    Gradient,
    Here,
    Load,
    Map,
    SparseRows,
    Until,
    Update,
)
from flowml.arguments import (
    check_arity,
    check_callable,
    check_differentiable,
    check_handles,
    check_rows_init,
    check_rule,
    check_scope,
    frequency,
    source_of,
    table_label,
    target_of,
    whole,
)
from flowml.differentiate import loss_gradient
from flowml.edges import Edge
from flowml.errors import GraphError
from flowml.graph import coarser
from flowml.handles import Declared, DeclaredTable, Handle
from flowml.layout import freeze, layout_of
from flowml.reductions import Reduction, reduction
from flowml.rules import Rule
from flowml.types import Function, Pytree, Site, calling_site


def load(
    source: Any,
    *,
    batch_size: int | None,
    shuffle: bool = True,
    drop_last: bool = False,
    seed: int = 0,
    scope: str = REPLICA,
    name: str | None = None,
) -> Handle:
    """Load batches of a source, one stream a replica.

    Parameters
    ----------
    source : Source, ndarray, scipy CSR, tuple of them, or Dask collection
    batch_size : int or None
        Examples a batch and replica; None is the replica's whole share each step, unshuffled.
    shuffle : bool
        New order each epoch, from (run seed, ``seed``, epoch, rank).
    drop_last : bool
        Leave out a last batch that is not full; the rows dropped are counted.
    scope : str
        Only "replica" has a meaning today.

    Raises
    ------
    GraphError
        If ``batch_size`` is no integer >= 1, or ``source`` is a generator.
    """
    site = calling_site()
    where = f"load {name or 'load'!r} ({site})"
    if batch_size is not None:
        batch_size = whole(
            where,
            "batch_size",
            batch_size,
            1,
            "It counts examples a replica; None is the whole share.",
        )
    if scope != REPLICA:
        raise GraphError(
            where,
            "scope must be 'replica'",
            repr(scope),
            "Aggregate what the replicas load instead.",
        )
    action = Load(
        source_of(where, source),
        batch_size,
        bool(shuffle),
        bool(drop_last),
        whole(where, "seed", seed, 0, "It chooses the order of the rows."),
        scope,
    )
    return Handle(Declared("load", action, (), 1, name, "load", site))


def table(
    name: str, init: Pytree | Function, *, scope: str = GLOBAL, on: int | None = None
) -> Handle:
    """Declare parameters: the state that survives a step.

    Parameters
    ----------
    name : str
    init : array, pytree of arrays, or function of ``here``
        Copied at the declaration. A function is called once an instance.
    scope : str
        "global" (one), "host" or a group's name (one a group), "replica" (one each).
    on : int, optional
        Pin the only instance to this replica.

    Raises
    ------
    GraphError
        If a leaf is no numeric array.
    """
    site = calling_site()
    where = table_label(name, scope, site)
    if on is not None:
        on = whole(where, "on", on, 0, "It is the rank of a replica.")
    if not callable(init):
        try:
            layout_of(init)
        except TypeError as error:
            raise GraphError(
                where,
                "init must be an array or a pytree of numeric arrays",
                str(error),
                "Cast it, for example with np.asarray(x, 'float32').",
            ) from error
        init = freeze(init)
    return Handle(DeclaredTable(name, init, scope, on, site))


def sparse_table(
    name: str,
    dim: int,
    init: Any = None,
    dtype: str = "float32",
    *,
    rows: int | None = None,
    capacity: int = DEFAULT_CAPACITY,
    scope: str = GLOBAL,
) -> Handle:
    """Declare rows by integer key, made at first touch; read and written by ``.at(ids)``.

    Parameters
    ----------
    dim : int
        Length of a row.
    init : number, array of shape (dim,), fl.init.uniform, fl.init.normal, function or KeyedRows
        What a row is before anybody has written it; zeros when left out. A function makes the
        rows of some keys, ``init(keys) -> (n, dim)``, each from its key alone. What another run
        left, ``run.tables[name]``, begins where that one ended.
    dtype : str
        A float or integer dtype.
    rows : int, optional
        Keys are from 0 to ``rows - 1``, and are found faster; any key >= 0 when left out.
    capacity : int
        Rows that the table has room for. Memory is taken as rows come.

    Raises
    ------
    GraphError
        If a number is not >= 1, or ``init`` or ``dtype`` has no meaning.

    Notes
    -----
    ``run.tables[name]`` is a `flowml.KeyedRows` of the rows that were written.
    """
    site = calling_site()
    where = table_label(name, scope, site)
    dim = whole(where, "dim", dim, 1, "It is the length of a row.")
    if rows is not None:
        rows = whole(where, "rows", rows, 1, "It is the number of keys.")
    capacity = whole(where, "capacity", capacity, 1, "It is the number of rows with room.")
    check_rows_init(where, dim, init, dtype)
    sparse = SparseRows(dim, init, str(np.dtype(dtype)), rows, capacity)
    return Handle(DeclaredTable(name, sparse, scope, None, site))


def here(seed: int = 0) -> Handle:
    """Return the place of an instance: ``replica, replicas, group, clock`` and ``.rng()``."""
    site = calling_site()
    number = whole(f"here ({site})", "seed", seed, 0, "It chooses the random stream.")
    return Handle(Declared("here", Here(number), (), 1, None, "here", site))


def map(fn: Function, *inputs: Handle, outputs: int = 1, name: str | None = None) -> Any:
    """Apply a pure function.

    Parameters
    ----------
    fn : callable
        Gets the values of ``inputs``, read-only and good until its step ends (the next one may
        use their memory: what is to be kept is copied); returns a new value.
    outputs : int
        With n > 1, ``fn`` returns a tuple of n and n handles come back.

    Returns
    -------
    Handle, or a tuple of ``outputs`` handles
    """
    site = calling_site()
    suggested = getattr(fn, "__name__", "map")
    suggested = suggested if suggested.isidentifier() else "map"
    where = f"map {name or suggested!r} ({site})"
    check_callable(where, fn)
    handles = check_handles(where, inputs)
    outputs = whole(where, "outputs", outputs, 1, "It says how many values fn returns.")
    check_arity(where, fn, len(handles))
    return _handles(Declared("map", Map(fn), handles, outputs, name, suggested, site))


def gradient(
    f: Any,
    tables: Handle | Sequence[Handle],
    *inputs: Handle,
    aux: bool = False,
    name: str | None = None,
) -> Any:
    """Differentiate a loss with respect to one or several tables.

    Parameters
    ----------
    f : model, callable
        A model with ``value_and_grad(params, *inputs)``; a function marked with
        :func:`flowml.value_and_grad`; or ``loss(params, *inputs) -> scalar`` in NumPy,
        differentiated by autograd.
    tables : Handle or tuple of Handles
        Where the parameters come from; ``f`` gets a tuple of pytrees for a tuple.
    aux : bool
        ``f`` returns (loss, something) and a handle for that something is added.

    Returns
    -------
    Handle, or a tuple of them
        One gradient a table, and the aux handle.
    """
    site = calling_site()
    where = f"gradient {name or 'gradient'!r} ({site})"
    packed = isinstance(tables, tuple | list)
    sources = tuple(tables) if isinstance(tables, tuple | list) else (tables,)
    handles = check_handles(where, (*sources, *inputs))
    check_differentiable(where, sources)
    if hasattr(f, "value_and_grad"):
        model = f
        check_arity(where, f.value_and_grad, 1 + len(inputs))
    else:
        check_callable(where, f)
        check_arity(where, f, 1 + len(inputs))
        model = loss_gradient(f, aux=aux)
    action = Gradient(model, len(sources), packed, aux)
    declared = Declared("gradient", action, handles, len(sources) + aux, name, "gradient", site)
    return _handles(declared)


def aggregate(
    how: str | Reduction,
    values: Handle,
    *,
    within: str | None = None,
    weight: Literal["examples", "equal"] | Handle | None = None,
    name: str | None = None,
) -> Handle:
    """Combine the values of replicas (or groups) into one.

    Parameters
    ----------
    how : str or Reduction
        "mean", "sum", "median", ``fl.trimmed_mean(f)``.
    within : str, optional
        "host" or a group's name: one result a group instead of one for all.
    weight : str or Handle
        "examples" (default): by the number of examples that each value stands for; "equal"; or
        a handle to a scalar.
    """
    site = calling_site()
    try:
        chosen = reduction(how)
    except GraphError as error:
        where = f"aggregate {name or 'aggregate'!r} ({site})"
        raise GraphError(where, error.required, error.got, error.fix) from error
    where = f"aggregate {name or chosen.name!r} ({site})"
    if within is not None:
        check_scope(where, "within", within)
    handles = check_handles(where, (_each(values, GLOBAL, site),))
    weighing: Literal["examples", "equal", "handle"] = "examples"
    if isinstance(weight, Handle):
        handles, weighing = (*handles, weight), "handle"
        chosen = replace(chosen, weighted=chosen.tree)
    elif weight in ("examples", "equal"):
        weighing = weight
    elif weight is not None:
        raise GraphError(
            where,
            'weight must be "examples", "equal" or a handle',
            repr(weight),
            "Leave it out to weigh by examples.",
        )
    action = Aggregate(chosen, within, weighing)
    return Handle(Declared("aggregate", action, handles, 1, name, chosen.name, site))


def update(table: Handle, values: Handle, rule: Rule, *, name: str | None = None) -> Handle:
    """Change a table by a rule; returns the table after it, in the same step."""
    site = calling_site()
    target = target_of("update", table, site)
    where = f"update of {target.name!r} ({site})"
    check_rule(where, rule)
    handles = check_handles(where, (_each(values, target.scope, site),)) + _ids(table)
    action = Update(target.name, rule)
    suggested = f"update_{target.name}"
    return Handle(Declared("update", action, handles, 1, name, suggested, site, target))


def assign(table: Handle, values: Handle, *, name: str | None = None) -> Handle:
    """Replace a table by a value; returns the table after it, in the same step."""
    site = calling_site()
    target = target_of("assign", table, site)
    handles = check_handles(f"assign of {target.name!r} ({site})", (values,)) + _ids(table)
    suggested = f"assign_{target.name}"
    return Handle(
        Declared("assign", Assign(target.name), handles, 1, name, suggested, site, target)
    )


def evaluate(
    fn: Function,
    table: Handle,
    source: Any,
    *,
    every: int | str = "1 epoch",
    name: str | None = None,
) -> Handle:
    """Measure a table over a whole source every so often.

    Parameters
    ----------
    fn : callable
        ``fn(params, batch) -> float or dict of floats``, averaged over the source by examples.
    every : int or str
        Steps, or "1 epoch", "5 epochs", "100 steps".
    """
    site = calling_site()
    suggested = getattr(fn, "__name__", "evaluate")
    where = f"evaluate {name or suggested!r} ({site})"
    check_callable(where, fn)
    check_arity(where, fn, 2)
    handles = check_handles(where, (table,))
    count, unit = frequency(where, every)
    action = Evaluate(fn, source_of(where, source), count, unit)
    return Handle(Declared("evaluate", action, handles, 1, name, suggested, site))


def until(fn: Function, value: Handle, *, name: str | None = None) -> Handle:
    """End the run after the first step where ``fn(value)`` is true."""
    site = calling_site()
    where = f"until {name or 'until'!r} ({site})"
    check_callable(where, fn)
    check_arity(where, fn, 1)
    handles = check_handles(where, (value,))
    return Handle(Declared("until", Until(fn), handles, 1, name, "until", site))


def _handles(declared: Declared) -> Handle | tuple[Handle, ...]:
    if declared.outputs == 1:
        return Handle(declared)
    return tuple(Handle(declared, i) for i in range(declared.outputs))


def _each(values: Handle, scope: str, site: Site) -> Handle:
    """Return the value that each instance of a table of a finer scope holds.

    Notes
    -----
    What replicas combine is what their operators make; a table of theirs is read by one.
    """
    if not isinstance(values, Handle) or not isinstance(values.of, DeclaredTable):
        return values
    if not coarser(scope, values.of.scope):
        return values
    source = replace(values, edge=replace(values.edge, members=None))
    read = Declared("map", Map(as_read), (source,), 1, None, f"read_{values.of.name}", site)
    return Handle(read, edge=Edge(members=values.edge.members))


def as_read(value: Pytree) -> Pytree:
    """Return a table as it was read."""
    return value


def _ids(target: Handle) -> tuple[Handle, ...]:
    return (target.edge.ids,) if target.edge.ids is not None else ()
