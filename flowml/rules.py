"""Update rules: how an update changes a table.

A rule is a pair of functions. ``init(params)`` makes the rule's state; ``step(params, update,
state, at, out)`` changes the state in place and writes the new parameters into ``out``. Nothing
else is kept anywhere, so that a rule can be snapshotted, moved to another owner and replayed.

The rules here are *elementwise*: parameter i after the step depends on item i of the parameters,
the update and the state alone. They are given flat slices of a table, and because they use only
IEEE-exact array operations (add, subtract, multiply, divide, square root) the result has the same
bits however the table is sliced. Rules that look at whole leaves are in `flowml.clipping`.

All arithmetic is done in the dtype of the parameters; hyper-parameters are rounded to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from flowml.errors import GraphError
from flowml.schedules import Schedule, as_schedule, real
from flowml.types import Array

State: TypeAlias = dict[str, Array]
"""Named arrays, each as long as the slice of the table that they belong to."""


class At(NamedTuple):
    """What a rule may know of the update that it applies.

    Attributes
    ----------
    step : int
        Stamp of the update: the writer's step, from 0. Schedules are given this.
    applied : int
        Updates applied to this table before this one. Bias corrections count this.
    staleness : int
        How many steps the read behind this update was late.
    writer : int
        Rank, or number of the group, that made the update.
    examples : float
        Number of examples that the update stands for.
    read : Any
        The parameters that the writer had read, in the layout of ``params``; None unless the rule
        has ``reads=True``.
    """

    step: int
    applied: int
    staleness: int = 0
    writer: int = 0
    examples: float = 0.0
    read: Any = None


@dataclass(frozen=True)
class Rule:
    """An update rule, as a pair of picklable functions without memory of their own.

    Attributes
    ----------
    init : callable
        ``init(params) -> state``.
    step : callable
        ``step(params, update, state, at, out) -> None``: writes the new parameters into ``out``
        and the new state into ``state``, in place. ``out`` may be ``params`` itself; otherwise
        ``params`` is not changed. ``update`` is never changed.
    elementwise : bool
        True: ``params``, ``update`` and ``out`` are equally long flat slices, ``state`` a dict of
        arrays of that length, and the result has the same bits for any slicing. False: they are
        dicts from the path of a leaf (``"W"``, ``"0/W"``; ``""`` for a table that is one array) to
        whole leaves, and ``state`` is a dict from paths to dicts of arrays.
    reads : bool
        True: the runtime keeps each writer's last read and passes it as ``at.read``.
    name : str
        For printing.
    """

    init: Callable[[Any], Any]
    step: Callable[[Any, Any, Any, At, Any], None]
    elementwise: bool = True
    reads: bool = False
    name: str = "rule"

    def __repr__(self) -> str:
        """Return the name; the functions inside say little."""
        return f"Rule({self.name!r})"


def state_of(where: str, names: tuple[str, ...], eps: float, fill: float, params: Array) -> State:
    """Return state arrays filled with ``fill``; refuse a dtype in which the rule cannot work.

    ``eps`` is what the rule divides by, which must not round to zero (1.0 if it has none).
    """
    if params.dtype.kind != "f":
        fix = "Make the table float, or use fl.add for counts."
        raise GraphError(where, "the table must hold floats", str(params.dtype), fix)
    if params.dtype.type(eps) == 0:
        fix = f"Use eps >= {np.finfo(params.dtype).tiny:.0e}."
        raise GraphError(where, f"eps must not be zero in {params.dtype}", repr(eps), fix)
    return {name: np.full(params.shape, fill, params.dtype) for name in names}


def _spare(params: Array, out: Array) -> Array:
    # `out` doubles as the temporary, unless it is (a view of) the parameters still to be read.
    return np.empty_like(params) if np.may_share_memory(params, out) else out


def _sgd_step(
    lr: Schedule, momentum: float, nesterov: bool, weight_decay: float,
    params: Array, update: Array, state: State, at: At, out: Array,
) -> None:  # fmt: skip
    number = params.dtype.type
    direction = update
    if weight_decay:
        direction = np.multiply(params, number(weight_decay))
        direction += update
    if momentum:
        direction = _accelerated(direction, state["velocity"], number(momentum), nesterov)
    spare = _spare(params, out)
    np.multiply(direction, number(lr(at.step)), out=spare)
    np.subtract(params, spare, out=out)


def _accelerated(gradient: Array, velocity: Array, momentum: Any, nesterov: bool) -> Array:
    velocity *= momentum
    velocity += gradient
    if not nesterov:
        return velocity
    ahead: Array = np.multiply(velocity, momentum)
    ahead += gradient
    return ahead


def sgd(
    lr: float | Schedule, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
) -> Rule:
    """Gradient descent: ``p -= lr * g``, with optional momentum and L2 decay.

    Parameters
    ----------
    lr : float or schedule
        Rate, a function of the writer's step.
    momentum : float
        ``m`` in [0, 1). The state is one array, ``velocity``, when it is not 0.
    nesterov : bool
        Look ahead along the velocity; needs ``momentum > 0``.
    weight_decay : float
        ``w >= 0``; adds ``w * p`` to the gradient (L2, before the momentum).

    Notes
    -----
    With momentum, PyTorch's convention: ``v = m * v + g``; ``p -= lr * v``, or with ``nesterov``
    ``p -= lr * (g + m * v)``. The rate stands outside the velocity, so a change of rate acts at
    once. Sutskever et al. keep ``v = m * v - lr * g``; ``p += v``: the same path for a constant
    rate, another one when the rate changes.

    References
    ----------
    Polyak, "Some methods of speeding up the convergence of iteration methods", 1964. Nesterov, "A
    method of solving a convex programming problem with convergence rate O(1/k^2)", 1983, in the
    form of Sutskever et al., "On the importance of initialization and momentum in deep learning",
    ICML 2013, section 2, rewritten at the point looked ahead to.

    Examples
    --------
    >>> rule, w = sgd(0.5), np.array([1.0, 2.0])
    >>> rule.step(w, np.array([1.0, 1.0]), rule.init(w), At(step=0, applied=0), w)
    >>> w
    array([0.5, 1.5])
    """
    where = "fl.sgd"
    momentum = real(where, "momentum", momentum, below=1.0)
    if nesterov and not momentum:
        raise GraphError(where, "nesterov needs momentum > 0", "0", "Try momentum=0.9.")
    decay = real(where, "weight_decay", weight_decay)
    names = ("velocity",) if momentum else ()
    step = partial(_sgd_step, as_schedule(lr, where=where), momentum, bool(nesterov), decay)
    return Rule(partial(state_of, where, names, 1.0, 0.0), step, name="sgd")


def _add_init(scale: float, params: Array) -> State:
    if params.dtype.kind not in "iufc":
        raise GraphError("fl.add", "the table must hold numbers", str(params.dtype))
    if params.dtype.kind in "iu" and not scale.is_integer():
        required = f"scale must be whole for a table of {params.dtype}"
        raise GraphError("fl.add", required, repr(scale))
    return {}


def _add_step(scale: float, params: Array, update: Array, state: State, at: At, out: Array) -> None:
    if scale == 1.0:
        np.add(params, update, out=out)
    elif scale == -1.0:
        np.subtract(params, update, out=out)
    else:
        spare = _spare(params, out)
        np.multiply(update, params.dtype.type(scale), out=spare)
        np.add(params, spare, out=out)


def add(scale: float = 1.0) -> Rule:
    """``p += scale * u``: counts, sums, and updates that are steps already.

    Works on tables of integers too, where ``scale`` must be whole.
    """
    scale = real("fl.add", "scale", scale, low=-math.inf)
    return Rule(partial(_add_init, scale), partial(_add_step, scale), name="add")


def _descend(
    params: Array, update: Array, squares: Array, eps: float, lr: float, out: Array
) -> None:
    """Write ``params - lr * update / (sqrt(squares) + eps)`` into ``out``."""
    number = params.dtype.type
    spare = _spare(params, out)
    np.sqrt(squares, out=spare)
    spare += number(eps)
    np.divide(update, spare, out=spare)
    spare *= number(lr)
    np.subtract(params, spare, out=out)


def average(mean: Array, fresh: Array, decay: float, spare: Array) -> None:
    """Move ``mean`` to ``decay * mean + (1 - decay) * fresh``; ``spare`` may be ``fresh``."""
    mean *= mean.dtype.type(decay)
    np.multiply(fresh, mean.dtype.type(1.0 - decay), out=spare)
    mean += spare


def _adagrad_step(
    lr: Schedule, eps: float, params: Array, update: Array, state: State, at: At, out: Array
) -> None:
    squares = state["squares"]
    squares += np.square(update)
    _descend(params, update, squares, eps, lr(at.step), out)


def adagrad(lr: float | Schedule, eps: float = 1e-10, initial: float = 0.0) -> Rule:
    """Adagrad: ``s += g * g``; ``p -= lr * g / (sqrt(s) + eps)``.

    Parameters
    ----------
    lr : float or schedule
    eps : float
        Keeps the division from 0 / 0; must not round to zero in the table's dtype.
    initial : float
        What ``squares``, the state, starts from.

    References
    ----------
    Duchi, Hazan and Singer, "Adaptive Subgradient Methods", JMLR 2011, figure 1, diagonal matrices,
    gradient descent form; ``delta`` there is ``eps`` here.
    """
    where = "fl.adagrad"
    eps, initial = real(where, "eps", eps), real(where, "initial", initial)
    init = partial(state_of, where, ("squares",), eps, initial)
    return Rule(init, partial(_adagrad_step, as_schedule(lr, where=where), eps), name="adagrad")


def _rmsprop_step(
    lr: Schedule, decay: float, eps: float,
    params: Array, update: Array, state: State, at: At, out: Array,
) -> None:  # fmt: skip
    fresh = np.square(update)
    average(state["squares"], fresh, decay, fresh)
    _descend(params, update, state["squares"], eps, lr(at.step), out)


def rmsprop(lr: float | Schedule, decay: float = 0.99, eps: float = 1e-8) -> Rule:
    """RMSprop: ``s = d * s + (1 - d) * g * g``; ``p -= lr * g / (sqrt(s) + eps)``.

    References
    ----------
    Tieleman and Hinton, "Lecture 6.5: RMSprop", Coursera, 2012. The lecture has ``d = 0.9`` and no
    ``eps``; the default and the place of ``eps`` are PyTorch's.
    """
    where = "fl.rmsprop"
    decay, eps = real(where, "decay", decay, below=1.0), real(where, "eps", eps)
    init = partial(state_of, where, ("squares",), eps, 0.0)
    step = partial(_rmsprop_step, as_schedule(lr, where=where), decay, eps)
    return Rule(init, step, name="rmsprop")


def _adam_step(
    lr: Schedule, b1: float, b2: float, eps: float, weight_decay: float,
    params: Array, update: Array, state: State, at: At, out: Array,
) -> None:  # fmt: skip
    number = params.dtype.type
    first, second = state["first"], state["second"]
    spare = _spare(params, out)
    average(first, update, b1, spare)
    average(second, np.square(update, out=spare), b2, spare)
    rate, t = lr(at.step), at.applied + 1
    np.sqrt(second, out=spare)
    spare *= number(1.0 / math.sqrt(1.0 - b2**t))
    spare += number(eps)
    np.divide(first, spare, out=spare)
    spare *= number(rate / (1.0 - b1**t))
    if weight_decay:
        spare += np.multiply(params, number(rate * weight_decay))
    np.subtract(params, spare, out=out)


def _adam(
    where: str, lr: float | Schedule, b1: float, b2: float, eps: float, weight_decay: float
) -> Rule:
    step = partial(
        _adam_step,
        as_schedule(lr, where=where),
        real(where, "b1", b1, below=1.0),
        real(where, "b2", b2, below=1.0),
        real(where, "eps", eps),
        real(where, "weight_decay", weight_decay),
    )
    init = partial(state_of, where, ("first", "second"), eps, 0.0)
    return Rule(init, step, name=where.removeprefix("fl."))


def adam(lr: float | Schedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Rule:
    """Adam: moving averages of the gradient and of its square, both corrected for their start at 0.

    Notes
    -----
    The bias correction at time t has ``t = at.applied + 1``, the updates that the averages have
    seen; the schedule is given the writer's step. State: ``first`` and ``second``.

    References
    ----------
    Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, algorithm 1. The same
    formula; the two corrections are applied as numbers, not to the arrays.
    """
    return _adam("fl.adam", lr, b1, b2, eps, 0.0)


def adamw(
    lr: float | Schedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Rule:
    """Adam with decoupled weight decay: ``p -= lr * (adam direction + weight_decay * p)``.

    References
    ----------
    Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, algorithm 2. There
    the decay is multiplied by the schedule's factor alone; here, as in PyTorch, by the whole rate:
    ``weight_decay`` is their lambda divided by their alpha.
    """
    return _adam("fl.adamw", lr, b1, b2, eps, weight_decay)
