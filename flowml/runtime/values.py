"""A value on an edge and the number of examples that it stands for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import optree

from flowml.types import Pytree


class Value(NamedTuple):
    """What an instance made in a step.

    A value of 0 examples is present but empty: its content is None, nothing is computed from it
    and every sum leaves it out (semantics.md section 4).
    """

    content: Any
    examples: float | None
    """None: it stands for no examples (a table, a write, ``here``)."""

    @property
    def empty(self) -> bool:
        """Tell whether it stands for no example at all."""
        return self.examples == 0


EMPTY = Value(None, 0.0)


def agreed_examples(values: Iterable[Value]) -> float | None:
    """Return the number of examples that inputs stand for, which must agree.

    Raises
    ------
    ValueError
        With the numbers, when they differ. An empty input makes the result empty.
    """
    counts = {v.examples for v in values if v.examples is not None}
    if 0.0 in counts:
        return 0.0
    if len(counts) > 1:
        raise ValueError(
            f"its inputs stand for {' and '.join(f'{c:g}' for c in sorted(counts))} "
            "examples; they must agree"
        )
    return counts.pop() if counts else None


def copied(content: Pytree) -> Pytree:
    """Return a private, read-only copy of the arrays of a value that has to outlive its step."""
    return optree.tree_map(_copy, content)


def _copy(leaf: Any) -> Any:
    if isinstance(leaf, type) or not hasattr(leaf, "copy"):
        return leaf
    return _read_only(leaf.copy())


def read_only(content: Pytree) -> Pytree:
    """Return a value whose arrays are read-only views, since several operators may read it."""
    if isinstance(content, np.ndarray):
        return _read_only(content)
    return optree.tree_map(_read_only, content)


def _read_only(leaf: Any) -> Any:
    if not isinstance(leaf, np.ndarray) or not leaf.flags.writeable:
        return leaf
    view = leaf.view()
    view.flags.writeable = False
    return view


@dataclass
class Kept:
    """What the steps between two firings of an edge add up to.

    ``last`` keeps the newest value, ``sum`` adds values, ``mean`` adds them scaled by their
    examples (equally where they carry none) and divides when taken.
    """

    keep: str
    content: Pytree = None
    examples: float | None = None
    weight: float = 0.0
    seen: bool = False

    def put(self, value: Value) -> None:
        """Add the value of one step."""
        self.seen = True
        if value.examples is not None:
            self.examples = (self.examples or 0.0) + value.examples
        if value.empty:
            return
        if self.keep == "last" or self.weight == 0.0:
            factor = self._factor(value)
            self.content = copied(value.content)
            if self.keep == "mean":
                self.content = _scaled(self.content, factor)
            self.weight = factor
            return
        factor = self._factor(value)
        term = _scaled(value.content, factor) if self.keep == "mean" else value.content
        self.content = optree.tree_map(np.add, self.content, term)
        self.weight += factor

    def peek(self) -> Value:
        """Return what is kept so far."""
        content = self.content
        if content is None:
            return EMPTY
        if self.keep == "mean":
            content = optree.tree_map(lambda x: x / x.dtype.type(self.weight), content)
        return Value(read_only(content), self.examples)

    def take(self) -> Value:
        """Hand over what was kept and start anew."""
        found = self.peek()
        self.content, self.examples, self.weight, self.seen = None, None, 0.0, False
        return found

    def _factor(self, value: Value) -> float:
        return 1.0 if value.examples is None or self.keep != "mean" else value.examples


def _scaled(content: Pytree, factor: float) -> Pytree:
    return optree.tree_map(lambda x: np.multiply(x, np.asarray(x).dtype.type(factor)), content)
