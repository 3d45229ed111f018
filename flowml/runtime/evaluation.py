"""Metrics of a table over a whole source, averaged by examples."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from flowml.actions import Evaluate
from flowml.data.blocks import evaluation_blocks
from flowml.plan import PlanOperator
from flowml.runtime.calls import Spot, call, number_of
from flowml.types import Pytree


def evaluate_source(
    operator: PlanOperator, params: Pytree, step: int, blocks: Iterable[Any] | None = None
) -> dict[str, float]:
    """Return the metrics of ``params``.

    Parameters
    ----------
    blocks : iterable of Rows, optional
        The examples; read from the operator's own source when left out.

    Returns
    -------
    dict of float
        A function that returns a bare number is named ``value``.
    """
    action = operator.action
    assert isinstance(action, Evaluate)
    spot = partial(Spot, operator, 0, step)
    sums: dict[str, float] = {}
    total = 0.0
    for rows in blocks if blocks is not None else evaluation_blocks(action.source):
        weight = rows.examples()
        if not weight:
            continue
        found = call(spot, action.function, params, rows.value())
        named = found if isinstance(found, dict) else {"value": found}
        for name, metric in named.items():
            number = number_of(spot, metric, f"metric {name!r} must be one number")
            sums[name] = sums.get(name, 0.0) + weight * number
        total += weight
    return {name: value / total for name, value in sums.items()}
