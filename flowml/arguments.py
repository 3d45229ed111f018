"""What the words of a graph may be given: each check refuses the rest, naming the place."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any, Literal

import numpy as np

from flowml.actions import GLOBAL, REPLICA
from flowml.data import Source, as_source
from flowml.edges import Edge
from flowml.errors import FlowmlError, GraphError
from flowml.handles import Declared, DeclaredTable, Handle
from flowml.initial_rows import RandomRows
from flowml.keyed_rows import KeyedRows
from flowml.rules import Rule
from flowml.types import Function, Site


def whole(where: str, word: str, value: Any, least: int, fix: str) -> int:
    """Return an integer that is at least ``least``."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise GraphError(where, f"{word} must be an integer >= {least}", repr(value), fix)
    return int(value)


def source_of(where: str, source: Any) -> Source:
    """Return a source for what was given, its refusal at the place of the operator."""
    try:
        return as_source(source)
    except GraphError as error:
        raise GraphError(where, error.required, error.got, error.fix) from error
    except FlowmlError as error:
        raise type(error)(
            f"{where}: {error.where}", error.required, error.got, error.fix, **error.fields
        ) from error


def check_handles(where: str, inputs: Sequence[Any]) -> tuple[Handle, ...]:
    """Return the inputs, which must be handles."""
    for number, value in enumerate(inputs, 1):
        if not isinstance(value, Handle):
            raise GraphError(
                where,
                f"input {number} must be a handle (from fl.load, fl.map, fl.table ...)",
                f"a {type(value).__name__}",
                "Close over constants, or load data with fl.load.",
            )
    return tuple(inputs)


def check_callable(where: str, fn: Any) -> None:
    """Refuse what cannot be called."""
    if not callable(fn):
        raise GraphError(
            where,
            "the first argument must be a function",
            f"a {type(fn).__name__}",
            "Pass the function itself, or a lambda.",
        )


def check_arity(where: str, fn: Function, count: int) -> None:
    """Refuse a function that cannot be called with ``count`` inputs."""
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # ufuncs and other builtins do not say what they take
        return
    try:
        signature.bind(*range(count))
    except TypeError as error:
        bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        raise GraphError(
            where,
            f"{getattr(fn, '__name__', 'the function')}{inspect.Signature(bare)} must take "
            f"its {count} input{'' if count == 1 else 's'}",
            str(error),
            "Add or remove inputs.",
        ) from error


def check_differentiable(where: str, sources: Sequence[Handle]) -> None:
    """Refuse to differentiate by nothing, or by data."""
    fix = "For example fl.gradient(model, fl.table('w', ...), batch)."
    if not sources:
        raise GraphError(where, "at least one table is needed", "an empty tuple", fix)
    for source in sources:
        if isinstance(source.of, Declared) and source.of.kind in ("load", "here"):
            raise GraphError(
                where,
                "the second argument must be a table, or what a write of one returned",
                source.of.label,
                fix,
            )


def check_rule(where: str, rule: Any) -> None:
    """Refuse what is no rule; a function that makes one is told apart."""
    if isinstance(rule, Rule):
        return
    got = getattr(rule, "__name__", "a function") if callable(rule) else repr(rule)
    raise GraphError(
        where,
        "the third argument must be a rule, made by a call",
        got,
        "For example fl.sgd(lr=0.1).",
    )


def table_label(name: Any, scope: Any, site: Site) -> str:
    """Return what messages call a table, refusing a name or a scope that is none."""
    where = f"table {name!r} ({site})"
    if not isinstance(name, str) or not name:
        raise GraphError(
            where, "a table needs a name", repr(name), "Call it like fl.table('w', ...)."
        )
    check_scope(where, "scope", scope)
    return where


def check_scope(where: str, word: str, scope: Any) -> None:
    """Refuse what is no name, and a misspelt one: any other word names a group."""
    if not isinstance(scope, str) or not scope:
        raise GraphError(
            where, f"{word} must be a name", repr(scope), 'Use "host" or a group\'s name.'
        )
    known = (GLOBAL, REPLICA)
    near = difflib.get_close_matches(scope.lower(), known, n=1, cutoff=0.8)
    if scope not in known and near:
        raise GraphError(
            where,
            f'{word} must be "global", "replica", "host" or a group\'s name',
            repr(scope),
            f"Did you mean {near[0]!r}?",
        )


def target_of(verb: str, table: Any, site: Site) -> DeclaredTable:
    """Return the table that a write names."""
    if not isinstance(table, Handle) or not isinstance(table.of, DeclaredTable):
        raise GraphError(
            f"{verb} ({site})",
            "the first argument must be a table",
            table.of.label if isinstance(table, Handle) else f"a {type(table).__name__}",
            f"Name the table that it writes: fl.{verb}(fl.table('w', ...), values, ...).",
        )
    if replace(table.edge, ids=None) != Edge():
        raise GraphError(
            f"{verb} of {table.of.name!r} ({site})",
            "the target of a write promises nothing",
            table.edge.describe(),
            "Mark the value that is written instead.",
        )
    return table.of


def frequency(where: str, every: int | str) -> tuple[int, Literal["steps", "epochs"]]:
    """Return how often: a number, and steps or epochs."""
    count: Any = every
    unit: Literal["steps", "epochs"] = "steps"
    if isinstance(every, str):
        number, _, word = every.strip().partition(" ")
        count = int(number) if number.isdigit() else 0
        if word in ("epoch", "epochs"):
            unit = "epochs"
        elif word not in ("step", "steps"):
            count = 0
    if not isinstance(count, Integral) or isinstance(count, bool) or count < 1:
        raise GraphError(
            where,
            'every must be steps >= 1, or like "1 epoch"',
            repr(every),
            'For example every=100 or every="1 epoch".',
        )
    return int(count), unit


def check_rows_init(where: str, dim: int, init: object, dtype: str) -> None:
    """Refuse what the rows of a sparse table cannot begin with."""
    try:
        kind: str = np.dtype(dtype).kind
    except TypeError:
        kind = "?"
    if kind not in "fiu":
        fix = "Use 'float32'."
        raise GraphError(where, "dtype must be a float or integer dtype", repr(dtype), fix)
    if init is None or callable(init) or isinstance(init, RandomRows):
        return
    shape = init.rows.shape[1:] if isinstance(init, KeyedRows) else np.shape(np.asarray(init))
    numbers = isinstance(init, KeyedRows) or np.asarray(init).dtype.kind in "biuf"
    if not numbers or shape not in ((), (dim,)):
        raise GraphError(
            where,
            f"init must be a number, an array of shape ({dim},), fl.init.uniform or normal, a "
            "function of keys or KeyedRows",
            f"shape {shape}" if numbers else f"a {type(init).__name__}",
            "Leave it out for zeros.",
        )
