"""How a pytree lies in memory: one contiguous buffer a dtype, its leaves being views.

A dense table is such a set of buffers, and so is what travels between replicas. Rules and
reductions work on flat slices of the buffers; operators see the pytree of views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optree

from flowml.types import Array, Pytree, aligned_empty


@dataclass(frozen=True)
class Leaf:
    """One array of a pytree and where it lies."""

    path: str
    """Keys from the root, joined by "/"; empty for a bare array."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    buffer: int
    """Which of the layout's buffers holds it."""
    start: int
    """First item in that buffer. Unit: items."""

    @property
    def size(self) -> int:
        """Number of items."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Layout:
    """The structure of a pytree and the place of each leaf in flat buffers."""

    structure: optree.PyTreeSpec
    leaves: tuple[Leaf, ...]
    dtypes: tuple[np.dtype[Any], ...]
    sizes: tuple[int, ...]
    """Items of each buffer."""

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(s * d.itemsize for s, d in zip(self.sizes, self.dtypes, strict=True))

    def allocate(self) -> tuple[Array, ...]:
        """Return uninitialised buffers that start on cache lines."""
        return tuple(aligned_empty(s, d) for s, d in zip(self.sizes, self.dtypes, strict=True))

    def views(self, buffers: Sequence[Array], *, writeable: bool = True) -> Pytree:
        """Return the pytree whose leaves are views of ``buffers``."""
        return optree.tree_unflatten(
            self.structure, list(self.leaf_views(buffers, writeable=writeable).values())
        )

    def leaf_views(self, buffers: Sequence[Array], *, writeable: bool = True) -> dict[str, Array]:
        """Return the leaves by path, as views of ``buffers``."""
        out = {}
        for leaf in self.leaves:
            flat = buffers[leaf.buffer][leaf.start : leaf.start + leaf.size]
            view = flat.reshape(leaf.shape)
            view.flags.writeable = writeable and view.flags.writeable
            out[leaf.path] = view
        return out

    def mismatch(self, tree: Pytree, *, exact: bool = True) -> str | None:
        """Say how ``tree`` differs from this layout, or None if it fits.

        Parameters
        ----------
        tree : pytree of arrays
        exact : bool
            Require equal dtypes; otherwise only that NumPy may cast to this layout's dtypes
            without losing the kind or the precision.
        """
        if type(tree) is np.ndarray and self.structure.is_leaf():  # not worth flattening
            leaves = [tree]
        else:
            leaves, structure = optree.tree_flatten(tree)
            if structure != self.structure:
                return f"structure {structure} instead of {self.structure}"
        for leaf, got in zip(self.leaves, leaves, strict=True):
            if type(got) is np.ndarray and got.shape == leaf.shape and got.dtype == leaf.dtype:
                continue
            shape, dtype = np.shape(got), np.asarray(got).dtype
            at = f" for leaf {leaf.path!r}" if leaf.path else ""
            if shape != leaf.shape:
                return f"shape {shape}{at} instead of {leaf.shape}"
            if dtype != leaf.dtype and (exact or not np.can_cast(dtype, leaf.dtype, "safe")):
                return f"dtype {dtype}{at} instead of {leaf.dtype}"
        return None

    def flat(self, tree: Pytree) -> tuple[Array, ...]:
        """Return the flat buffers of a tree that fits: views where it is one array, else a copy."""
        if len(self.leaves) == 1:
            leaf = tree if type(tree) is np.ndarray else optree.tree_leaves(tree)[0]
            if isinstance(leaf, np.ndarray) and leaf.flags.c_contiguous:
                return (leaf.reshape(-1),)
        buffers = self.allocate()
        self.write(tree, buffers)
        return buffers

    def write(self, tree: Pytree, buffers: Sequence[Array]) -> None:
        """Copy the leaves of ``tree``, which fits this layout, into ``buffers``."""
        for leaf, got in zip(self.leaves, optree.tree_leaves(tree), strict=True):
            flat = buffers[leaf.buffer][leaf.start : leaf.start + leaf.size]
            flat[...] = np.asarray(got).reshape(-1)


def layout_of(tree: Pytree) -> Layout:
    """Return the layout of a pytree of arrays and scalars.

    Raises
    ------
    TypeError
        If a leaf is no array or scalar of a numeric dtype.

    Examples
    --------
    >>> layout = layout_of({"W": np.zeros((3, 2)), "b": np.zeros(2)})
    >>> [(leaf.path, leaf.start) for leaf in layout.leaves], layout.sizes
    ([('W', 0), ('b', 6)], (8,))
    """
    paths, found, structure = optree.tree_flatten_with_path(tree)
    dtypes: list[np.dtype[Any]] = []
    sizes: list[int] = []
    leaves = []
    for path, value in zip(paths, found, strict=True):
        name = "/".join(str(key) for key in path)
        array = np.asarray(value)
        if array.dtype.kind not in "biufc":
            kind = "None" if value is None else f"{type(value).__name__} of dtype {array.dtype}"
            raise TypeError(f"{kind}{f' at {name!r}' if name else ''}")
        if array.dtype not in dtypes:
            dtypes.append(array.dtype)
            sizes.append(0)
        buffer = dtypes.index(array.dtype)
        leaves.append(Leaf(name, array.shape, array.dtype, buffer, sizes[buffer]))
        sizes[buffer] += array.size
    return Layout(structure, tuple(leaves), tuple(dtypes), tuple(sizes))


def freeze(tree: Pytree) -> Pytree:
    """Return a copy of a pytree whose leaves are native, contiguous, read-only arrays."""

    def frozen(leaf: Any) -> Array:
        array = np.array(leaf, order="C")
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        array.flags.writeable = False
        return array

    return optree.tree_map(frozen, tree)


def slices(size: int, parts: int) -> tuple[slice, ...]:
    """Cut ``size`` items into ``parts`` runs that start on multiples of 16 items.

    Notes
    -----
    Sixteen float32 are one cache line: two owners never write to the same line.

    Examples
    --------
    >>> slices(100, 3)
    (slice(0, 48, None), slice(48, 80, None), slice(80, 100, None))
    """
    blocks, rest = divmod(-(-size // 16), parts)
    out = []
    start = 0
    for part in range(parts):
        stop = min(size, start + 16 * (blocks + (part < rest)))
        out.append(slice(start, stop))
        start = stop
    return tuple(out)
