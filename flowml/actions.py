"""What an operator does, as data: the part of an operator that graph and plan share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from flowml.reductions import Reduction
from flowml.rules import Rule
from flowml.types import Function

Kind: TypeAlias = Literal[
    "load",
    "here",
    "map",
    "gradient",
    "aggregate",
    "update",
    "assign",
    "evaluate",
    "until",
    "rows",
    "receive",
]
"""The closed set of operator kinds; also the vocabulary of Dask task prefixes.

The last two are not declared: they stand where a replica looks up rows of a table of its own, and
where it receives rows of a shared one, or what its step's contribution came to.
"""

GLOBAL = "global"
REPLICA = "replica"


@dataclass(frozen=True)
class Load:
    """Batches of a source, one stream a replica."""

    source: Any
    batch_size: int | None
    """Examples a batch and replica; None is the replica's whole share each step."""
    shuffle: bool
    drop_last: bool
    seed: int
    scope: str


@dataclass(frozen=True)
class Here:
    """The place of an instance: replica, replicas, group, clock, and random numbers."""

    seed: int


@dataclass(frozen=True)
class Map:
    """A pure function of the inputs."""

    function: Function


@dataclass(frozen=True)
class Gradient:
    """A loss and its gradient with respect to one or several tables.

    The first ``tables`` inputs are the parameters, the rest are the examples. Outputs: one
    gradient a table, then, where ``aux``, what the loss returns beside.
    """

    model: Any
    """Anything with ``value_and_grad(params, *inputs)``."""
    tables: int
    packed: bool
    """The model takes a tuple of parameters (several tables) instead of one pytree."""
    aux: bool


@dataclass(frozen=True)
class Aggregate:
    """Values of finer instances combined into one of a coarser scope."""

    reduction: Reduction
    within: str | None
    weight: Literal["examples", "equal", "handle"]
    """``handle``: the last input holds the weight of each contribution."""


@dataclass(frozen=True)
class Update:
    """A rule applied to a table; the values are the only input."""

    table: str
    rule: Rule


@dataclass(frozen=True)
class Assign:
    """A table replaced by a value."""

    table: str


@dataclass(frozen=True)
class Evaluate:
    """Metrics of a table over a whole source, every so many steps or epochs."""

    function: Function
    source: Any
    every: int
    unit: Literal["steps", "epochs"]


@dataclass(frozen=True)
class Until:
    """An end of the run, after the first step whose value satisfies ``function``."""

    function: Function


@dataclass(frozen=True)
class LookUp:
    """Rows of a table by key: of a replica's own, or received from what all share."""

    table: str


@dataclass(frozen=True)
class Answer:
    """What the contributions of a step came to, received in the same step."""

    operator: str
    table: str | None = None
    """The table that is received, as it stands after the operator; None: a value."""


Action: TypeAlias = (
    Load | Here | Map | Gradient | Aggregate | Update | Assign | Evaluate | Until | LookUp | Answer
)

DEFAULT_CAPACITY = 1 << 20
"""Rows that a sparse table has room for where nothing is said."""


@dataclass(frozen=True)
class SparseRows:
    """Rows by integer key, made at first touch.

    Attributes
    ----------
    dim : int
        Items of a row.
    init : None, number, array, RandomRows, KeyedRows or callable
        What a row is at first.
    dtype : str
    rows : int or None
        Keys are below it; None: any key that is >= 0.
    capacity : int
        Rows that it has room for.
    """

    dim: int
    init: Any
    dtype: str = field(default="float32")
    rows: int | None = None
    capacity: int = DEFAULT_CAPACITY
