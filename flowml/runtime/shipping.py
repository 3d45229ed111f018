"""Sending the user's functions to workers: by value, and refused by name if they cannot travel."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import cloudpickle

from flowml.actions import Evaluate, Gradient, Map, Until, Update
from flowml.errors import FlowmlError, PlanError, raise_all
from flowml.plan import Plan, PlanOperator


def check_ships(plan: Plan) -> None:
    """Refuse operators whose functions cannot be sent to workers, all of them at once.

    Raises
    ------
    PlanError
        Naming the operator and the variable that it closes over.
    """
    errors: list[FlowmlError] = []
    for operator in plan.operators:
        for part in _parts(operator):
            error = _failure(part)
            if error is not None:
                errors.append(_refusal(operator, part, error))
    for table in plan.tables:
        error = _failure(table.init)
        if error is not None:
            errors.append(PlanError(f"table {table.name!r} ({table.site})", "init must be able to "
                                    "travel to workers", str(error)))
    raise_all(f"graph {plan.graph!r}", errors)


def _parts(operator: PlanOperator) -> Iterator[Any]:
    action = operator.action
    if isinstance(action, Map | Until | Evaluate):
        yield action.function
    elif isinstance(action, Gradient):
        yield action.model
    elif isinstance(action, Update):
        yield action.rule


def _failure(thing: Any) -> Exception | None:
    try:
        cloudpickle.dumps(thing)
    except Exception as error:
        return error
    return None


def _refusal(operator: PlanOperator, part: Any, error: Exception) -> FlowmlError:
    found = [
        f"variable {name!r} ({_shown(value)})"
        for name, value in _variables(part)
        if _failure(value) is not None
    ]
    got = ", ".join(found) or f"{type(error).__name__}: {error}"
    return PlanError(
        operator.label, "its function must be able to travel to workers", f"one that uses {got}",
        "Open or create it inside the function.", operator=operator.name,
    )


def _variables(part: Any) -> Iterator[tuple[str, Any]]:
    """Yield the variables that a function, or the functions inside an object, closes over."""
    function = getattr(part, "loss", None) or getattr(part, "function", None) or part
    if inspect.ismethod(function):
        function = function.__func__
    if not inspect.isfunction(function):
        yield from vars(part).items() if hasattr(part, "__dict__") else ()
        return
    closed = inspect.getclosurevars(function)
    yield from (closed.nonlocals | closed.globals).items()


def _shown(value: Any) -> str:
    name = getattr(value, "name", None)
    if hasattr(value, "read") and isinstance(name, str):
        return f"open file {name!r}"
    return type(value).__name__
