"""Calls into the user's functions, with everything that may come back wrong turned into one error.

All executors call operators through here, so that they compute the same and complain the same.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from flowml.errors import DivergedError, FlowmlError, OperatorError
from flowml.given import given_to
from flowml.layout import Layout
from flowml.plan import PlanOperator
from flowml.runtime.failed_call import CALLED, keep_call
from flowml.runtime.values import read_only
from flowml.types import Array, Pytree, is_flowml, is_users

COPY_FIRST = "Inputs are read-only, since others read them too: copy first, x = x.copy()."
"""What NumPy's "destination is read-only" means to an operator."""


@dataclass(frozen=True)
class Spot:
    """Where a call happens, for messages."""

    operator: PlanOperator
    replica: int
    step: int
    worker: str = "driver"

    @property
    def label(self) -> str:
        """Operator, file and line, replica and step; the driver adds the replica's worker."""
        return f"{self.operator.label} in {place_words(self.replica, self.step)}"

    def fields(self) -> dict[str, Any]:
        """Return the structured facts of an error."""
        return {
            "operator": self.operator.name,
            "replica": self.replica,
            "step": self.step,
            "worker": self.worker,
        }


def place_words(replica: int, step: int) -> str:
    """Return the words for a place in a run."""
    return f"replica {replica}, step {step}"


class placed_errors:
    """Turn whatever a block of the user's code raises into one error with its place.

    ``SystemExit`` too: an operator must not be able to kill a worker. A class and not a
    generator, because it stands in the step loop.
    """

    __slots__ = ("_spot",)

    def __init__(self, spot: Callable[[], Spot]) -> None:
        self._spot = spot

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        """Raise the error with its place."""
        if error is not None and not isinstance(error, KeyboardInterrupt):
            raise explained(self._spot(), error) from error


def raise_explained(
    spot: Spot, error: BaseException, inputs: Sequence[Any] | None = None
) -> NoReturn:
    """Raise the error that the user sees for what a call raised; for ``except`` in the step loop.

    Parameters
    ----------
    inputs : sequence, optional
        What the user's function was given: a copy stays with the error.

    Notes
    -----
    A ``try`` costs next to nothing where nothing is raised; ``placed_errors`` is two calls.
    """
    if isinstance(error, KeyboardInterrupt):
        raise error
    raise explained(spot, error, inputs) from error


def call(spot: Callable[[], Spot], function: Callable[..., Any], *inputs: Any) -> Any:
    """Call a function of the user.

    Raises
    ------
    OperatorError
        If it raises anything, ``SystemExit`` included.
    """
    try:
        return function(*inputs)
    except BaseException as error:
        raise_explained(spot(), error, inputs)


@contextmanager
def contained(operator: str) -> Iterator[None]:
    """Turn ``SystemExit`` of the user's code outside of a step into an error.

    Parameters
    ----------
    operator : str
        Whose code runs.
    """
    try:
        yield
    except SystemExit as error:
        raise exited(
            f"operator {operator!r}",
            error.code,
            {"operator": operator, "replica": -1, "step": 0, "worker": ""},
        ) from error


def exited(where: str, code: object, fields: dict[str, Any]) -> OperatorError:
    """Return the error for a call of ``sys.exit``."""
    return OperatorError(
        where,
        "an operator must return",
        f"a call of sys.exit({code!r})",
        "Raise an exception to stop the run.",
        kind="exited",
        **fields,
    )


def explained(spot: Spot, error: BaseException, inputs: Sequence[Any] | None = None) -> FlowmlError:
    """Return the error that the user sees for what a call raised."""
    noted: Sequence[Any] | None = given_to(error)
    if noted is None and spot.operator.kind in CALLED:
        noted = inputs
    return with_call(_explained(spot, error), spot, noted)


def with_call(error: FlowmlError, spot: Spot, inputs: Sequence[Any] | None) -> FlowmlError:
    """Return an error with a copy of what the user's function was given, and how to use it.

    Notes
    -----
    An error that comes from another operator's call is left as it is.
    """
    fields = error.fields
    if inputs is None or "call" in fields or fields.get("operator") != spot.operator.name:
        return error
    found, words = keep_call(spot.operator, spot.replica, spot.step, inputs)
    fix = f"{error.fix} {words}".lstrip()
    return type(error)(error.where, error.required, error.got, fix, **fields, call=found)


def _explained(spot: Spot, error: BaseException) -> FlowmlError:
    if isinstance(error, FlowmlError):
        return placed(error, spot)
    if isinstance(error, SystemExit):
        return exited(spot.label, error.code, spot.fields())
    if isinstance(error, MemoryError):
        return OperatorError(
            spot.label,
            "ran out of memory",
            str(error),
            "Use smaller batches, or workers with more memory.",
            kind="memory",
            **spot.fields(),
        )
    return raised(spot, error)


def placed(error: FlowmlError, spot: Spot) -> FlowmlError:
    """Return an error of flowml's own with the place of the call added."""
    if "operator" in error.fields:
        return error
    where = f"{spot.label}: {error.where}"
    fields = {"kind": "raised", **error.fields, **spot.fields()}
    return type(error)(where, error.required, error.got, error.fix, **fields)


def raised(spot: Spot, error: BaseException) -> OperatorError:
    """Return the error for an exception of the user's function, its own frames only.

    Notes
    -----
    Frames of installed packages are shown where there is none of the user's.
    """
    trace = [f for f in traceback.extract_tb(error.__traceback__) if not is_flowml(f.filename)]
    frames = [
        f"{Path(f.filename).name}:{f.lineno} in {f.name}"
        for f in [f for f in trace if is_users(f.filename)] or trace
    ]
    at = f" at {' <- '.join(reversed(frames[-4:]))}" if frames else ""
    in_place = isinstance(error, ValueError) and "read-only" in str(error)
    return OperatorError(
        spot.label,
        f"raised {type(error).__name__}: {error}{at}",
        fix=COPY_FIRST if in_place else "",
        kind="raised",
        cause=f"{type(error).__name__}: {error}",
        **spot.fields(),
    )


def returned(spot: Spot, required: str, got: str, fix: str = "") -> OperatorError:
    """Return the error for a result of the wrong kind."""
    return OperatorError(spot.label, required, got, fix, kind="returned", **spot.fields())


def call_map(
    spot: Callable[[], Spot], function: Callable[..., Any], inputs: Sequence[Any], outputs: int
) -> tuple[Any, ...]:
    """Call the function of a map; return its outputs, read-only.

    Raises
    ------
    OperatorError
        If it raises anything, or returns None or a wrong number of values.
    """
    result = call(spot, function, *inputs)
    try:
        return check_outputs(spot, result, outputs)
    except OperatorError as error:
        raise with_call(error, spot(), inputs) from error.__cause__


def check_outputs(spot: Callable[[], Spot], result: Any, outputs: int) -> tuple[Any, ...]:
    """Return the outputs of a map, read-only, refusing None and a wrong number of them."""
    if result is None:
        raise returned(spot(), "must return a value", "None", "Is a return missing?")
    if outputs == 1:
        return (read_only(result),)
    if not isinstance(result, tuple | list) or len(result) != outputs:
        got = f"{len(result)}" if isinstance(result, tuple | list) else type(result).__name__
        raise returned(
            spot(),
            f"must return a tuple of {outputs} values (outputs={outputs})",
            got,
            "Return as many values as outputs= says.",
        )
    return tuple(map(read_only, result))


def call_gradient(
    spot: Callable[[], Spot],
    action: Any,
    params: Sequence[Pytree],
    inputs: Sequence[Any],
    layouts: Sequence[Layout],
) -> tuple[float, tuple[Pytree, ...], tuple[Any, ...]]:
    """Differentiate; return the loss, one gradient a table, and what the loss returns beside.

    Raises
    ------
    OperatorError
        If the loss is no number, or a gradient does not have the table's shapes and dtypes.
    """
    given = gradient_inputs(action, [*params, *inputs])
    result = call(spot, action.model.value_and_grad, *given)
    try:
        loss, gradients, beside = _unpack(spot, action, result)
        _check_gradients(spot, gradients, layouts)
    except OperatorError as error:
        raise with_call(error, spot(), given) from error.__cause__
    return loss, tuple(map(read_only, gradients)), tuple(map(read_only, beside))


def gradient_inputs(action: Any, contents: Sequence[Any]) -> tuple[Any, ...]:
    """Return what ``value_and_grad`` is given: several tables are one argument."""
    if not action.packed:
        return tuple(contents)
    return (tuple(contents[: action.tables]), *contents[action.tables :])


def _check_gradients(
    spot: Callable[[], Spot], gradients: Sequence[Pytree], layouts: Sequence[Layout]
) -> None:
    for number, (gradient, layout) in enumerate(zip(gradients, layouts, strict=True)):
        wrong = mismatch(layout, gradient)
        if wrong is not None:
            table = spot().operator.inputs[number].source
            raise returned(
                spot(),
                f"the gradient must have the structure, shapes and dtypes of {table!r}",
                wrong,
                "Cast or reshape it in the loss.",
            )


def mismatch(layout: Layout, value: Pytree) -> str | None:
    """Say how a value differs from a layout, objects that are no numbers included."""
    try:
        return layout.mismatch(value)
    except (TypeError, ValueError) as error:  # a ragged list, or an object that is no array
        return str(error)


def _unpack(
    spot: Callable[[], Spot], action: Any, result: Any
) -> tuple[float, tuple[Pytree, ...], tuple[Any, ...]]:
    if not isinstance(result, tuple | list) or len(result) != 2:
        got = "None" if result is None else f"a {type(result).__name__}"
        raise returned(
            spot(),
            "value_and_grad must return (loss, gradients)",
            got,
            "Is a return missing?" if result is None else "",
        )
    loss, gradients = result
    beside: tuple[Any, ...] = ()
    if action.aux:
        if not isinstance(loss, tuple | list) or len(loss) != 2:
            raise returned(
                spot(),
                "with aux=True the loss must return (loss, something)",
                f"a {type(loss).__name__}",
            )
        loss, aux = loss
        beside = (aux,)
    number = number_of(spot, loss, "the loss must be one number", "Return the mean over the batch.")
    grads = tuple(gradients) if action.packed else (gradients,)
    if len(grads) != action.tables:
        raise returned(spot(), f"must return {action.tables} gradients", str(len(grads)))
    if any(g is None for g in grads):
        raise returned(spot(), "must return a gradient", "None", "Is a return missing?")
    return number, grads, beside


def number_of(spot: Callable[[], Spot], value: Any, required: str, fix: str = "") -> float:
    """Return a value as a float, refusing what is not one real number."""
    if np.ndim(value) != 0:
        raise returned(spot(), required, f"shape {np.shape(value)}", fix)
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        got = "None" if value is None else f"a {type(value).__name__}"
        raise returned(
            spot(), required, got, "Is a return missing?" if value is None else fix
        ) from error


def is_true(spot: Callable[[], Spot], function: Callable[..., Any], value: Any) -> bool:
    """Return the answer of a user's yes-or-no function."""
    try:
        return bool(function(value))
    except BaseException as error:
        raise_explained(spot(), error, (value,))


def check_finite_loss(
    spot: Callable[[], Spot], loss: float, inputs: Sequence[Any] | None = None
) -> None:
    """Refuse a loss that is not finite; ``inputs`` are what it was made of."""
    if not np.isfinite(loss):
        error = diverged(spot(), "the loss must be finite", str(loss))
        raise with_call(error, spot(), inputs)


def diverged(spot: Spot, what: str, got: str = "") -> DivergedError:
    """Return the error for a value that is not finite."""
    return DivergedError(
        spot.label,
        what,
        got,
        "Lower the learning rate, or clip the gradient (fl.clip_norm); "
        'on_nonfinite="ignore" goes on. The table keeps its last finite value.',
        **spot.fields(),
    )


def nonfinite(layout: Layout, flats: Sequence[Array]) -> str:
    """Say how many numbers of flat buffers are not finite, and which is the first.

    Examples
    --------
    >>> from flowml.layout import layout_of
    >>> nonfinite(layout_of({"W": np.zeros((2, 2))}), [np.array([0.0, 1.0, np.nan, np.inf])])
    '2 that are not, the first at W[1, 0] = nan'
    """
    count, first = 0, ""
    for path, leaf in layout.leaf_views(tuple(flats)).items():
        bad = np.argwhere(~np.isfinite(leaf))
        count += len(bad)
        if len(bad) and not first:
            at = tuple(int(i) for i in bad[0])
            first = f"{path}{list(at) if at else ''} = {leaf[at]}"
    return f"{count} that are not, the first at {first}"


def all_finite(flats: Sequence[np.ndarray[Any, Any]]) -> bool:
    """Tell whether flat arrays are finite: one dot product each unless that overflows."""
    with np.errstate(over="ignore", invalid="ignore"):  # an overflow is looked into, not warned of
        for flat in flats:
            if flat.dtype.kind in "fc" and not isfinite(abs(flat.dot(flat))):
                if not np.isfinite(flat).all():
                    return False
    return True
