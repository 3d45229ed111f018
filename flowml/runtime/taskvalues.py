"""What one task of the ``tasks`` executor hands to another: immutable values that know their size.

Arrays whose place in memory may decide the last bits of a product (tables, sums, batches) travel
as flat buffers or rows, and are put on a cache line again where they came over the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dask.sizeof import sizeof

from flowml.data.rows import Rows
from flowml.layout import Layout
from flowml.runtime.values import Value, read_only
from flowml.types import Array, Pytree, aligned_empty


@dataclass(frozen=True)
class Flat:
    """A pytree as its flat buffers: tables as operators read them, and sums.

    Attributes
    ----------
    layout : Layout
    buffers : tuple of ndarray
    examples : float or None
    blamed : (int, tuple of ndarray) or None
        Of a sum that is not finite: a member whose contribution was not, and that contribution.
    """

    layout: Layout
    buffers: tuple[Array, ...]
    examples: float | None = None
    blamed: tuple[int, tuple[Array, ...]] | None = None

    def __sizeof__(self) -> int:
        return 200 + self.layout.nbytes

    def tree(self) -> Pytree:
        """Return the pytree of read-only views, each buffer on a cache line."""
        return self.layout.views(aligned(self.buffers), writeable=False)


@dataclass(frozen=True)
class TableState:
    """A table instance between two writes.

    Attributes
    ----------
    layout : Layout
    buffers : tuple of ndarray
    rules : mapping of str to (state, int)
        By update operator: the state of its rule and how many updates it has applied.
    """

    layout: Layout
    buffers: tuple[Array, ...]
    rules: Mapping[str, tuple[Any, int]]

    def __sizeof__(self) -> int:
        return 200 + self.layout.nbytes + int(sizeof(dict(self.rules)))

    def shown(self) -> Flat:
        """Return the parameters alone, as operators read them."""
        return Flat(self.layout, self.buffers)


@dataclass(frozen=True)
class Batch:
    """The rows of one batch, and the number of examples that they stand for."""

    rows: Rows
    examples: float

    def __sizeof__(self) -> int:
        return 200 + self.rows.nbytes


class Made(NamedTuple):
    """All outputs of an operator that has several, or a loss beside."""

    values: tuple[Value, ...]
    loss: float | None


class Record(NamedTuple):
    """What the driver learns of some steps."""

    losses: Array
    """Shape (steps, replicas), float64; NaN where a replica had none."""
    ended: bool


Between = Value | Flat | TableState | Batch | Made
"""What one task hands to another."""


@sizeof.register(Rows)  # type: ignore[untyped-decorator]
def rows_nbytes(rows: Rows) -> int:
    """Tell Dask how large rows are. Bytes."""
    return 200 + rows.nbytes


def value_of(between: Between) -> Value:
    """Return what an operator gets for what another task made."""
    if isinstance(between, Value):
        return Value(read_only(between.content), between.examples)
    if isinstance(between, Flat):
        return Value(between.tree(), between.examples)
    if isinstance(between, TableState):
        return Value(between.shown().tree(), None)
    if isinstance(between, Batch):
        return Value(between.rows.aligned().value(), between.examples)
    return value_of(between.values[0])


def aligned(buffers: Sequence[Array]) -> tuple[Array, ...]:
    """Return buffers that start on a cache line; those that do are passed through."""
    return tuple(b if b.ctypes.data % 64 == 0 else _moved(b) for b in buffers)


def _moved(buffer: Array) -> Array:
    out = aligned_empty(len(buffer), buffer.dtype)
    out[...] = buffer
    return out
