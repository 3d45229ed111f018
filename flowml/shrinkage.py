"""Rules that set small parameters to exactly zero: an L1 penalty met by its proximal step.

Both are elementwise, and use only IEEE-exact array operations as the rules of `flowml.rules` do.
On a table of rows a step touches the rows that an update names: the penalty of a row is due when
the row comes, once, however long it has not come.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from flowml.errors import GraphError
from flowml.rules import At, Rule, State
from flowml.schedules import Schedule, as_schedule, real
from flowml.types import Array


def _refuse_whole(where: str, params: Array) -> None:
    if params.dtype.kind != "f":
        raise GraphError(where, "the table must hold floats", str(params.dtype), "Use float32.")


def _shrink(values: Array, threshold: float) -> None:
    """Move values towards zero by ``threshold``, and those that are nearer to zero; in place."""
    limit = values.dtype.type(threshold)
    values -= np.clip(values, -limit, limit)


def _ftrl_init(where: str, alpha: float, beta: float, l1: float, l2: float, params: Array) -> State:
    _refuse_whole(where, params)
    number = params.dtype.type
    for name, value in (("alpha", alpha), ("beta", beta)):
        if number(value) == 0:
            required = f"{name} must be > 0 in {params.dtype}"
            raise GraphError(where, required, repr(value), "Try alpha=0.1, beta=1.0.")
    # What the closed form below turns into ``params``.
    gradients = np.multiply(params, -(number(beta) / number(alpha) + number(l2)))
    gradients -= np.sign(params) * number(l1)
    return {"gradients": gradients, "squares": np.zeros_like(params)}


def _ftrl_step(
    alpha: float, beta: float, l1: float, l2: float,
    params: Array, update: Array, state: State, at: At, out: Array,
) -> None:  # fmt: skip
    number = params.dtype.type
    gradients, squares = state["gradients"], state["squares"]
    before = np.sqrt(squares)
    squares += np.square(update)
    scale = np.sqrt(squares)
    gradients += update
    np.subtract(scale, before, out=before)
    before /= number(alpha)
    before *= params
    gradients -= before
    scale += number(beta)
    scale /= number(alpha)
    scale += number(l2)
    np.copyto(out, gradients)
    _shrink(out, l1)
    np.divide(out, scale, out=out)
    np.subtract(number(0), out, out=out)  # and no -0.0


def ftrl(alpha: float, beta: float = 1.0, l1: float = 0.0, l2: float = 0.0) -> Rule:
    """FTRL-proximal: a rate for each parameter, and exact zeros where evidence is thin.

    ``z += g - (sqrt(n + g * g) - sqrt(n)) / alpha * p``; ``n += g * g``; then ``p = 0`` where
    ``abs(z) <= l1``, elsewhere ``-(z - sign(z) * l1) / ((beta + sqrt(n)) / alpha + l2)``.

    Parameters
    ----------
    alpha, beta : float
        Both > 0, in the table's dtype too; a parameter's rate is ``alpha / (beta + sqrt(n))``.
    l1, l2 : float
        Penalties, >= 0.

    Raises
    ------
    GraphError
        If a number is none of these; when the run begins, if the table does not hold floats.

    Notes
    -----
    State: ``gradients`` (z) and ``squares`` (n). With ``l1 = l2 = 0`` it is Adagrad with
    ``beta`` for its ``eps``. The gradient may be an old one, as under stale and async edges: the
    ``p`` of the formula is then the parameter that the update meets, not the one it came from.

    References
    ----------
    McMahan et al., "Ad Click Prediction: a View from the Trenches", KDD 2013, algorithm 1. There
    parameters start at 0; here ``z`` starts where its ``p`` is the initial parameter.

    Examples
    --------
    >>> rule, w = ftrl(alpha=1.0, l1=1.5), np.zeros(2)
    >>> rule.step(w, np.array([1.0, -3.5]), rule.init(w), At(step=0, applied=0), w)
    >>> w.round(3)
    array([0.   , 0.444])
    """
    where = "fl.ftrl"
    alpha, beta = real(where, "alpha", alpha), real(where, "beta", beta)
    l1, l2 = real(where, "l1", l1), real(where, "l2", l2)
    for name, value in (("alpha", alpha), ("beta", beta)):
        if value == 0:
            raise GraphError(where, f"{name} must be > 0", "0", "Try alpha=0.1, beta=1.0.")
    init = partial(_ftrl_init, where, alpha, beta, l1, l2)
    return Rule(init, partial(_ftrl_step, alpha, beta, l1, l2), name="ftrl")


def _proximal_init(params: Array) -> State:
    _refuse_whole("fl.proximal", params)
    return {}


def _proximal_step(
    lr: Schedule, l1: float, l2: float,
    params: Array, update: Array, state: State, at: At, out: Array,
) -> None:  # fmt: skip
    number, rate = params.dtype.type, lr(at.step)
    step = np.multiply(update, number(rate))
    np.subtract(params, step, out=out)
    _shrink(out, rate * l1)
    if l2:
        out /= number(1.0 + rate * l2)


def proximal(lr: float | Schedule, l1: float = 0.0, l2: float = 0.0) -> Rule:
    """Forward-backward splitting: a plain step, then a soft threshold.

    ``q = p - lr * g``; ``p = sign(q) * max(abs(q) - lr * l1, 0) / (1 + lr * l2)``.

    Parameters
    ----------
    lr : float or schedule
    l1, l2 : float
        Penalties ``l1 * sum(abs(p)) + l2 / 2 * sum(p * p)``, each >= 0.

    Raises
    ------
    GraphError
        If a number is none of these; when the run begins, if the table does not hold floats.

    References
    ----------
    Duchi and Singer, "Efficient Online and Batch Learning Using Forward Backward Splitting", JMLR
    2009, section 5, for L1 and for squared L2; both at once here. They let the backward step have a
    rate of its own; here it has that of the forward step.

    Examples
    --------
    >>> rule, w = proximal(0.5, l1=1.0), np.array([1.0, 0.2])
    >>> rule.step(w, np.zeros(2), rule.init(w), At(step=0, applied=0), w)
    >>> w
    array([0.5, 0. ])
    """
    where = "fl.proximal"
    l1, l2 = real(where, "l1", l1), real(where, "l2", l2)
    step = partial(_proximal_step, as_schedule(lr, where=where), l1, l2)
    return Rule(_proximal_init, step, name="proximal")
