"""How good the parameters of a graph are: its loss and its score over a source, away from any run.

A graph says by itself what to judge: the model of its first gradient, the examples that go into it,
and the table for all replicas that has the parameters.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optree

from flowml.actions import GLOBAL, Gradient, Load, Update
from flowml.data.blocks import evaluation_blocks
from flowml.data.rows import Rows
from flowml.data.source import Source, count_rows
from flowml.errors import PlanError
from flowml.graph import LogicalGraph, Operator, Port
from flowml.layout import layout_of
from flowml.rules import Rule
from flowml.types import Pytree

R2, ACCURACY = "R2", "accuracy"


@dataclass(frozen=True)
class Subject:
    """What of a graph is judged.

    Attributes
    ----------
    model : object
        Of the first gradient.
    load : Operator
        Brings its batches.
    tables : tuple of str
        The tables that have its parameters for all replicas, or one a replica.
    packed : bool
        The model takes a tuple of tables.
    rules : tuple of Rule or None
        What the gradient with respect to each table is applied with, at the end of its way.
    """

    model: Any
    load: Operator
    tables: tuple[str, ...]
    packed: bool
    rules: tuple[Rule | None, ...]

    @property
    def source(self) -> Source:
        """Its training examples."""
        assert isinstance(self.load.action, Load)
        found: Source = self.load.action.source
        return found

    def params(self, tables: Mapping[str, Sequence[Pytree]]) -> Pytree:
        """Return the parameters in the tables of an outcome: the mean where replicas differ."""
        found = [_mean([v for v in tables[name] if v is not None]) for name in self.tables]
        return tuple(found) if self.packed else found[0]


def subject_of(graph: LogicalGraph) -> Subject:
    """Return what of a graph is judged.

    Raises
    ------
    PlanError
        If it has no gradient, or one that takes anything beside tables and one load.
    """
    where = f"graph {graph.name!r}"
    gradient = next((o for o in graph.operators if isinstance(o.action, Gradient)), None)
    if gradient is None:
        raise PlanError(where, "needs a gradient, whose loss is what is compared", "none")
    action = gradient.action
    assert isinstance(action, Gradient)
    tables, beside = gradient.inputs[: action.tables], gradient.inputs[action.tables :]
    loads = [o for o in map(_maker(graph), beside) if o is not None and o.kind == "load"]
    if len(loads) != 1 or len(beside) != 1:
        raise PlanError(
            gradient.label,
            "must take tables and the batch of one load, to be judged on other examples",
            ", ".join(p.source for p in beside),
            "Judge it with fl.evaluate instead.",
        )
    return Subject(
        action.model,
        loads[0],
        tuple(_judged(graph, port) for port in tables),
        action.packed,
        tuple(_rule(graph, gradient, number) for number in range(action.tables)),
    )


def _maker(graph: LogicalGraph) -> Callable[[Port], Operator | None]:
    return lambda port: None if port.table else graph.operator(port.source)


def _judged(graph: LogicalGraph, port: Port) -> str:
    """Return the table for all replicas with the parameters that a gradient reads."""
    made = _maker(graph)(port)
    name = port.source if made is None else str(made.writes)
    table = graph.table(name)
    if table.scope == GLOBAL or callable(table.init):
        return name
    layout = layout_of(table.init)
    alike = (
        t.name
        for t in graph.tables
        if t.scope == GLOBAL and not t.sparse and not callable(t.init) and t.name != name
        if layout.mismatch(t.init) is None
    )
    return next(alike, name)


def _rule(graph: LogicalGraph, gradient: Operator, output: int) -> Rule | None:
    """Return the rule of the first update that a gradient's output comes to."""
    pending, seen = deque([(gradient.name, output)]), {gradient.name}
    while pending:
        source, number = pending.popleft()
        for reader in graph.operators:
            reads = any(not p.table and p.source == source and p.output == number
                        for p in reader.inputs)  # fmt: skip
            if not reads or reader.name in seen:
                continue
            if isinstance(reader.action, Update):
                return reader.action.rule
            seen.add(reader.name)
            pending += [(reader.name, n) for n in range(reader.outputs)]
    return None


def _mean(values: Sequence[Pytree]) -> Pytree:
    if len(values) == 1:
        return values[0]
    return optree.tree_map(lambda *leaves: np.mean(leaves, axis=0, dtype=leaves[0].dtype), *values)


# -- measures over examples ---------------------------------------------------------------------


def over(blocks: Source | Iterable[Rows], measure: Callable[[Any], float]) -> float:
    """Return the mean of a measure over a source or over blocks of rows, weighed by examples."""
    total = weight = 0.0
    for rows in evaluation_blocks(blocks):
        total += rows.examples() * measure(rows.value())
        weight += rows.examples()
    return total / weight if weight else math.nan


def loss_over(model: Any, params: Pytree, blocks: Source | Iterable[Rows]) -> float:
    """Return a model's mean loss; of one without ``loss`` what ``value_and_grad`` says."""
    own = getattr(model, "loss", None)

    def measure(batch: Any) -> float:
        found = own(params, batch) if callable(own) else model.value_and_grad(params, batch)[0]
        return float(found[0] if isinstance(found, tuple) else found)  # aux=True: (loss, beside)

    return over(blocks, measure)


def score_name(model: Any) -> str:
    """Return what a model's score is: a share of correct rows, or R^2; "" where it has none."""
    if not callable(getattr(model, "score", None)):
        return ""
    return R2 if type(model).__name__ == "Linear" else ACCURACY


def score_over(model: Any, params: Pytree, blocks: Source | Iterable[Rows]) -> float:
    """Return a model's score over a source."""
    if score_name(model) == ACCURACY:
        return over(blocks, lambda rows: model.score(params, *rows[:2]))
    found = [rows.value() for rows in evaluation_blocks(blocks)]
    truth = np.concatenate([rows[1] for rows in found]).astype(np.float64)
    guess = np.concatenate([model.predict(params, rows[0]) for rows in found])
    spread = float(np.sum((truth - truth.mean()) ** 2))
    return 1.0 - float(np.sum((truth - guess) ** 2)) / spread if spread else math.nan


def sampled(source: Source, most: int) -> tuple[Rows, ...]:
    """Return at most so many rows of a source, evenly spaced: the same in every call."""
    total = rows_of(source)
    stride = max(1, -(-total // most))
    found, before = [], 0
    for rows in evaluation_blocks(source):
        chosen = np.arange(-before % stride, len(rows), stride)
        before += len(rows)
        if len(chosen):
            found.append(rows.take(chosen))
    return tuple(found)


def rows_of(source: Source) -> int:
    """Return the number of rows of a source."""
    if source.dealt:
        return len(source.rows())
    return sum(count_rows(partition) for partition in source.partitions())
