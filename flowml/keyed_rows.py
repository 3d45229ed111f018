"""Rows by integer key: what travels to and from a sparse table, and what is left of one.

Keys are int64, from 0. Several rows of one key add up on the way to a table (semantics.md section
5), in the order in which they are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import optree
from scipy.sparse import csr_matrix

from flowml.types import Array

Initial: TypeAlias = Callable[[Array], Array]
"""Makes the rows of keys that nobody has written, shape (n, *row), from keys, shape (n,)."""


@dataclass(frozen=True)
class KeyedRows:
    """Rows and their keys.

    Attributes
    ----------
    keys : ndarray of int64, shape (n,)
        Ascending; each once.
    rows : ndarray, shape (n, *row)
    initial : callable, optional
        What other keys have, for those who look them up.

    Examples
    --------
    >>> found = KeyedRows(np.array([2, 5]), np.array([[1.0, 1.0], [2.0, 2.0]]))
    >>> found.at(np.array([5, 2, 7]))
    array([[2., 2.],
           [1., 1.],
           [0., 0.]])
    """

    keys: Array
    rows: Array
    initial: Initial | None = field(default=None, compare=False)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.keys)

    def at(self, ids: Any) -> Array:
        """Return the rows of some keys, aligned with ``ids``, of any shape.

        Returns
        -------
        ndarray, shape (*ids.shape, *row)
            Keys that are not there have what ``initial`` makes, or zeros.
        """
        wanted = np.asarray(ids, np.int64)
        flat = wanted.reshape(-1)
        place = np.minimum(np.searchsorted(self.keys, flat), max(len(self.keys) - 1, 0))
        there = np.zeros(len(flat), bool) if not len(self.keys) else self.keys[place] == flat
        found = np.zeros((len(flat), *self.rows.shape[1:]), self.rows.dtype)
        found[there] = self.rows[place[there]]
        if self.initial is not None and not there.all():
            found[~there] = self.initial(flat[~there])
        return found.reshape(wanted.shape + self.rows.shape[1:])


def _children(rows: KeyedRows) -> tuple[tuple[Array, Array], Initial | None]:
    return (rows.keys, rows.rows), rows.initial


def _rebuilt(initial: Initial | None, children: Sequence[Any]) -> KeyedRows:
    keys, rows = children
    return KeyedRows(keys, rows, initial)


_register: Any = optree.register_pytree_node  # typed for collections, which this is not
_register(KeyedRows, _children, _rebuilt, namespace=optree.registry.__GLOBAL_NAMESPACE)


def each_once(keys: Array) -> bool:
    """Tell whether keys, one axis of integers, are all different: a tenth of the time of coalesce.

    Examples
    --------
    >>> each_once(np.array([4, 1, 3])), each_once(np.array([4, 1, 4]))
    (True, False)
    """
    ordered = keys.copy()
    ordered.sort()
    return not np.logical_or.reduce(ordered[1:] == ordered[:-1])


def coalesce(ids: Array, rows: Array) -> tuple[Array, Array]:
    """Return each key once, ascending, with the sum of its rows.

    Parameters
    ----------
    ids : ndarray of integers, any shape
    rows : ndarray, shape (*ids.shape, *row)
        Of a float or integer dtype; rows of one key are added in the order of ``ids``.

    Returns
    -------
    keys : ndarray of int64, shape (n,)
    sums : ndarray, shape (n, *row)

    Examples
    --------
    >>> coalesce(np.array([4, 1, 4]), np.array([[1.0], [2.0], [3.0]]))
    (array([1, 4]), array([[2.],
           [4.]]))
    """
    row = rows.shape[ids.ndim :]
    keys, first, place = np.unique(
        np.asarray(ids, np.int64).reshape(-1), return_index=True, return_inverse=True
    )
    flat = rows.reshape(place.size, math.prod(row))
    if len(keys) == place.size:
        return keys, flat[first].reshape(len(keys), *row)
    # A product with zeros and ones adds the rows of a key one after another, ten times as fast
    # as numpy.add.at.
    order = np.argsort(place, kind="stable")
    starts = np.zeros(len(keys) + 1, np.int64)
    np.cumsum(np.bincount(place, minlength=len(keys)), out=starts[1:])
    ones = np.ones(len(order), flat.dtype)
    sums = csr_matrix((ones, order, starts), shape=(len(keys), len(flat))) @ flat
    return keys, np.asarray(sums).reshape(len(keys), *row)


def last_of_each(ids: Array, rows: Array) -> tuple[Array, Array]:
    """Return each key once, ascending, with the last of its rows: what an assignment leaves."""
    flat = np.asarray(ids, np.int64).reshape(-1)
    keys, first = np.unique(flat[::-1], return_index=True)
    row = rows.shape[ids.ndim :]
    return keys, rows.reshape(len(flat), *row)[len(flat) - 1 - first]
