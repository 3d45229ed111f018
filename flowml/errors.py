"""What can go wrong, as one tree.

::

    FlowmlError
    |-- GraphError       (ValueError)       the graph, as declared, cannot mean anything
    |-- DataError        (ValueError)       a source, its rows or its labels
    |-- PlanError        (ValueError)       the graph is right, but not for this cluster or executor
    |-- OperatorError    (RuntimeError)     an operator raised, returned the wrong thing or exited
    |-- DivergedError    (ArithmeticError)  a value that is not finite
    |-- StalledError     (TimeoutError)     a wait came to its deadline
    |-- WorkerLostError  (ConnectionError)  a worker or the scheduler died
    |-- StaleRunError    (RuntimeError)     a message or task of another run or incarnation
    `-- CheckpointError  (OSError)          a checkpoint that cannot be written or read

Each says where, what was required, what was got, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class FlowmlError(Exception):
    """An error with a place, a requirement, a finding and a remedy.

    Parameters
    ----------
    where : str
        The operator, edge, table, file or option, with ``file:line`` where one is known.
    required : str
        What had to hold, as the start of a sentence.
    got : str
        What was found instead; empty when ``required`` says it all.
    fix : str
        What to do about it, as a sentence.
    **fields
        Structured facts (``operator=``, ``replica=``, ``step=`` ...), also set as attributes.

    Examples
    --------
    >>> print(FlowmlError("edge w -> grads", "staleness must be an int >= 0", "-1", "0 is sync."))
    edge w -> grads: staleness must be an int >= 0, got -1. 0 is sync.
    """

    def __init__(
        self, where: str, required: str, got: str = "", fix: str = "", **fields: Any
    ) -> None:
        self.where = where
        self.required = required
        self.got = got
        self.fix = fix
        self.fields = fields
        for name, value in fields.items():
            setattr(self, name, value)
        super().__init__(self._sentence())

    def _sentence(self) -> str:
        finding = f", got {self.got}" if self.got else ""
        remedy = f". {self.fix}" if self.fix else ""
        return f"{self.where}: {self.required}{finding}{remedy}"

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = (type(self), self.where, self.required, self.got, self.fix, self.fields)
        return _rebuild, arguments


def _rebuild(
    cls: type[FlowmlError], where: str, required: str, got: str, fix: str, fields: dict[str, Any]
) -> FlowmlError:
    return cls(where, required, got, fix, **fields)


class GraphError(FlowmlError, ValueError):
    """The graph, as declared, cannot mean anything."""


class DataError(FlowmlError, ValueError):
    """A source cannot be read, or its rows or labels are not what the graph needs."""


class PlanError(FlowmlError, ValueError):
    """The graph is right, but not for this number of replicas, this executor or this cluster."""


class OperatorError(FlowmlError, RuntimeError):
    """An operator raised, exited or returned the wrong thing.

    Attributes
    ----------
    operator : str
    replica : int
    step : int
    worker : str
        Address of the worker, or ``"driver"``.
    kind : str
        ``"raised"``, ``"returned"``, ``"exited"`` or ``"memory"``.
    call : FailedCall or None
        The call of the user's function, with what it was given: ``error.call.again()``.
    """

    operator: str
    replica: int
    step: int
    worker: str
    kind: str
    call: Any = None


class DivergedError(FlowmlError, ArithmeticError):
    """A loss, an update or a table that is not finite; the table keeps its last finite value.

    Attributes
    ----------
    operator : str
    replica : int
    step : int
    last_good_step : int
        The last step that is in the tables; -1: none. Known once the run has ended.
    staleness : int
        Most steps that a read of the run was late.
    call : FailedCall or None
        As for :class:`OperatorError`, where a loss was not finite.
    """

    operator: str
    replica: int
    step: int
    last_good_step: int
    staleness: int
    call: Any = None


class StalledError(FlowmlError, TimeoutError):
    """A wait came to its deadline.

    Attributes
    ----------
    edge : str
        The edge whose reader waits.
    waiting_for : str
        The replica or the worker that it waits for.
    since_seconds : float
        How long nothing has come.
    clock : int
        Steps that the replica had finished.
    last_message : str
        What it said last of where it is.
    """

    edge: str
    waiting_for: str
    since_seconds: float
    clock: int
    last_message: str


class WorkerLostError(FlowmlError, ConnectionError):
    """A worker (``kind="worker"``) or the scheduler (``kind="scheduler"``) died."""

    kind: str
    worker: str
    operator: str


class StaleRunError(FlowmlError, RuntimeError):
    """A message or a task belongs to another run or to an earlier incarnation of this one."""


class CheckpointError(FlowmlError, OSError):
    """A checkpoint cannot be written, or what is on disk cannot be trusted."""


class ManyErrors(GraphError):
    """Several declaration errors at once; ``errors`` holds each of them."""

    errors: tuple[FlowmlError, ...]


def raise_all(where: str, found: Sequence[FlowmlError]) -> None:
    """Raise nothing, the only error found, or one error that lists them all.

    Examples
    --------
    >>> raise_all("graph 'ssgd'", [])
    """
    if not found:
        return
    if len(found) == 1:
        raise found[0]
    lines = "".join(f"\n  {i}. {error}" for i, error in enumerate(found, 1))
    raise ManyErrors(where, f"{len(found)} mistakes{lines}", errors=tuple(found))
