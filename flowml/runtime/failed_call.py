"""The call of a user's function that failed, with a copy of what it was given.

It travels with the error to whoever waits for the run, and can be made once more there, where a
debugger can follow it. The input is pickled where it failed: what cannot travel is found out there,
and must not hide the error itself. On disk it is numbers and names only (npz_tree.py).
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
from dask.utils import format_bytes
from scipy.sparse import issparse

from flowml.actions import Aggregate, Evaluate, Gradient, Map, Until, Update
from flowml.errors import PlanError
from flowml.plan import PlanOperator
from flowml.runtime.npz_tree import read_tree, write_tree
from flowml.runtime.values import read_only

CALLED = ("map", "gradient", "until", "evaluate")
"""Operators that are one call of the user's function; the others note what they gave to theirs."""
LARGEST_INPUT = 64 * 2**20
"""Bytes; a larger input is not copied into the error."""
KEPT = "Its input is kept: error.call.again() repeats the call."


@dataclass(frozen=True)
class FailedCall:
    """One call of a user's function, to be made again.

    Attributes
    ----------
    operator : str
    kind : str
        Kind of the operator.
    replica, step : int
    function : callable or None
        The model's ``value_and_grad``, the function of a map, the ``step`` of a rule; None where
        it has not been found yet.
    """

    operator: str
    kind: str
    replica: int
    step: int
    packed: bytes = field(repr=False)
    function: Callable[..., Any] | None = field(default=None, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the function at home: who waits for the run has it."""
        return FailedCall, (self.operator, self.kind, self.replica, self.step, self.packed)

    @property
    def inputs(self) -> tuple[Any, ...]:
        """Its arguments, a fresh copy; arrays that it may not change are read-only here too."""
        return tuple(pickle.loads(self.packed))

    def of(self, operator: Any) -> FailedCall:
        """Return the call with the function of its operator, of a graph or of a plan."""
        return replace(self, function=function_of(operator.action))

    def again(self) -> Any:
        """Make the call once more, in this process.

        Returns
        -------
        object
            What the function returns, if it does not raise here.

        Raises
        ------
        PlanError
            If the function is not known: the call was read from a file without its graph.
        Exception
            What the function raises, with its own traceback.

        Notes
        -----
        A rule gets its state as the call that failed has left it, and a spare array for its result.
        """
        if self.function is None:
            raise PlanError(
                f"call of operator {self.operator!r}",
                "needs the operator's function",
                "none",
                "graph.failed_call(path) knows it.",
            )
        return self.function(*self.inputs)

    def save(self, path: str | Path) -> Path:
        """Write operator, replica, step and input into an ``.npz`` file; nothing is pickled in it.

        Raises
        ------
        PlanError
            If the input holds anything but arrays, sparse rows, numbers and words.
        """
        facts = {
            "operator": self.operator,
            "kind": self.kind,
            "replica": self.replica,
            "step": self.step,
        }
        return write_tree(Path(path), self.inputs, facts)

    @classmethod
    def load(cls, path: str | Path) -> FailedCall:
        """Read what :meth:`save` wrote."""
        inputs, facts = read_tree(Path(path))
        given = [read_only(part) for part in inputs] if facts["kind"] in CALLED else inputs
        return cls(**facts, packed=cloudpickle.dumps(list(given)))


def function_of(action: Any) -> Callable[..., Any] | None:
    """Return the user's function that an operator calls, or None if it calls none."""
    found: Any = None
    if isinstance(action, Map | Until | Evaluate):
        found = action.function
    elif isinstance(action, Gradient):
        found = action.model.value_and_grad
    elif isinstance(action, Update):
        found = action.rule.step
    elif isinstance(action, Aggregate):
        found = action.reduction.combine
    return found if callable(found) else None


def keep_call(
    operator: PlanOperator, replica: int, step: int, inputs: Sequence[Any]
) -> tuple[FailedCall | None, str]:
    """Return a call that failed, or None where it cannot be kept, and what to say about it."""
    size = sum(_nbytes(part) for part in inputs)
    if size > LARGEST_INPUT:
        return None, f"Its input of {format_bytes(size)} is too large to be kept."
    try:
        packed = cloudpickle.dumps(list(inputs))  # which copies, and keeps what is read-only so
    except Exception as error:  # the user's own objects; the error that brought us here counts
        return None, f"Its input cannot be kept: {type(error).__name__}: {error}."
    call = FailedCall(operator.name, operator.kind, replica, step, packed)
    return call.of(operator), KEPT


def _nbytes(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(_nbytes, value.values()))
    if isinstance(value, tuple | list):
        return sum(map(_nbytes, value))
    if issparse(value):
        return _nbytes([value.data, value.indices, value.indptr])
    return value.nbytes if isinstance(value, np.ndarray) else 0
