"""Sending the user's functions to workers: by value, and refused by name if they cannot travel."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import io
import sys
from collections import ChainMap
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any, ClassVar

import cloudpickle
import numpy as np
from cloudpickle import (
    list_registry_pickle_by_value,
    register_pickle_by_value,
    unregister_pickle_by_value,
)

from flowml.actions import Evaluate, Gradient, Map, Until, Update
from flowml.errors import FlowmlError, PlanError, raise_all
from flowml.plan import Plan, PlanOperator
from flowml.types import is_users

NO_FILE = "<dynamic-code>"
"""What cloudpickle writes for the file of a code object."""


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
            found = ", ".join(_culprits(table.init, set()))
            errors.append(
                PlanError(
                    f"table {table.name!r} ({table.site})",
                    "init must be able to travel to workers",
                    f"one that uses {found}" if found else str(error),
                    "Open or create it inside the function.",
                )
            )
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
        ship(thing, thing)
    except Exception as error:
        return error
    return None


def _refusal(operator: PlanOperator, part: Any, error: Exception) -> FlowmlError:
    found = ", ".join(_culprits(part, set()))
    got = f"one that uses {found}" if found else f"{type(error).__name__}: {error}"
    return PlanError(
        operator.label,
        "its function must be able to travel to workers",
        got,
        "Open or create it inside the function.",
        operator=operator.name,
    )


def _culprits(part: Any, seen: set[int]) -> Iterator[str]:
    """Yield the variables that cannot travel, those of functions that a function uses included."""
    seen.add(id(part))
    for name, value in _variables(part):
        if id(value) in seen or _failure(value) is None:
            continue
        inner = list(_culprits(value, seen)) if callable(value) else []
        yield from inner or [f"variable {name!r} ({_shown(value)})"]


def _variables(part: Any) -> Iterator[tuple[str, Any]]:
    """Yield the variables that a function closes over, or the parts of an object."""
    if isinstance(part, functools.partial):
        yield from (("func", part.func), *_arguments(part))
    elif inspect.ismethod(part):
        yield from (("self", part.__self__), *_variables(part.__func__))
    elif inspect.isfunction(part):
        closed = inspect.getclosurevars(part)
        yield from {**closed.nonlocals, **closed.globals}.items()
    elif hasattr(part, "__dict__"):
        yield from vars(part).items()


def _arguments(part: functools.partial[Any]) -> Iterator[tuple[str, Any]]:
    """Yield the arguments that a partial has bound, by position or name."""
    yield from ((f"argument {n}", value) for n, value in enumerate(part.args, 1))
    yield from part.keywords.items()


def _shown(value: Any) -> str:
    name = getattr(value, "name", None)
    if hasattr(value, "read") and isinstance(name, str):
        return f"open file {name!r}"
    return type(value).__name__


def _with_file(code: CodeType) -> tuple[Any, ...]:
    """Return how cloudpickle makes a code object again, with the name of its file put back."""
    make, parts, *rest = cloudpickle.Pickler.dispatch_table[CodeType](code)
    named = tuple(code.co_filename if part == NO_FILE else part for part in parts)
    return make, named, *rest


def _installed_ufunc(function: np.ufunc) -> tuple[Any, ...] | str:
    """Return where a ufunc is found again: pickle would take any module that has imported it."""
    name = function.__name__
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get(name) is function:
            if module.__name__ != "__main__" and not _is_users(module):
                return getattr, (module, name)
    return name


class ByValue(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's pickler, which leaves out the file of a function that it sends by value.

    Without it the frames of an error have no file.
    """

    dispatch_table: ClassVar[Any] = ChainMap(
        {CodeType: _with_file, np.ufunc: _installed_ufunc}, cloudpickle.Pickler.dispatch_table
    )


def ship(thing: Any, *owners: Any) -> bytes:
    """Pickle something with the user's functions by value.

    Parameters
    ----------
    owners : objects
        Functions and objects inside ``thing`` whose modules workers may not be able to import.

    Notes
    -----
    A function of an imported module is pickled by name otherwise, and the user's own files (a
    script's neighbours, a file of graphs) are not on the path of a worker. Installed packages
    still go by name.
    """
    modules = {m for owner in owners for m in _user_modules(owner)}
    fresh = [m for m in modules if m.__name__ not in list_registry_pickle_by_value()]
    for module in fresh:
        register_pickle_by_value(module)
    try:
        with io.BytesIO() as file:
            ByValue(file).dump(thing)
            return file.getvalue()
    finally:
        for module in fresh:
            unregister_pickle_by_value(module)


def ship_plan(thing: Any, plan: Plan) -> bytes:
    """Pickle something that holds a plan."""
    owners = [part for operator in plan.operators for part in _parts(operator)]
    return ship(thing, *owners, *(t.init for t in plan.tables if callable(t.init)))


def _user_modules(owner: Any) -> Iterator[ModuleType]:
    """Yield the modules outside installed packages that an object's code comes from."""
    pending, seen = [owner], set()
    while pending:
        found = pending.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, functools.partial):
            pending += [found.func, *found.args, *found.keywords.values()]
        elif dataclasses.is_dataclass(found) and not isinstance(found, type):
            pending += [getattr(found, f.name) for f in dataclasses.fields(found)]
        code = found if isinstance(found, type | FunctionType) else type(found)
        module = sys.modules.get(getattr(code, "__module__", ""))
        if module is None or not _is_users(module):
            continue
        yield module
        if isinstance(found, FunctionType):
            names = inspect.getclosurevars(found)
            pending += [*names.globals.values(), *names.nonlocals.values()]


def _is_users(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    if file is None or module.__name__ == "__main__":
        return False
    return is_users(file)
