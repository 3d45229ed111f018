"""Loose runs that stand before their first step, for tests of the parts of a replica."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import flowml as fl
from flowml.cluster_run import probe_here
from flowml.compiler.stages import compile_graph
from flowml.runtime.interleaved import Interleaved
from flowml.runtime.outcome import Order
from flowml.runtime.table_items import TableItems
from flowml.runtime.values import Value


@contextmanager
def standing(graph: fl.Graph, replicas: int = 2, groups: Any = None) -> Iterator[Interleaved]:
    """Give the replicas of a graph, and the center that they share."""
    plan = compile_graph(graph.logical, replicas, groups)
    order = Order(steps=100, epochs=None, record=True)
    state = Interleaved.start(plan, order, probe_here(plan, order))
    try:
        yield state
    finally:
        state.close()


def items_of(state: Interleaved) -> TableItems:
    """Return what makes frames of the values of a run."""
    center = state.center
    return TableItems(center.loose, center._layouts, center._memory.specs)


def put(state: Interleaved, replica: int, operator: str, content: Any, examples: Any = 4.0) -> None:
    """Let an operator of a replica have made something."""
    rank = state.cursors[replica].rank.rank
    rank.registers[rank.slots[operator, 0]] = Value(content, examples)
