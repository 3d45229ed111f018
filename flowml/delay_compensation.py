"""Delay compensation: a gradient of old parameters, corrected for how far they have gone since.

In a module of its own, since it is the one rule that asks what the writer of an update had read.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from flowml.rules import At, Rule, State, average, state_of
from flowml.schedules import Schedule, as_schedule, real
from flowml.types import Array


def _step(
    lr: Schedule, variance: float, decay: float | None, eps: float,
    params: Array, update: Array, state: State, at: At, out: Array,
) -> None:  # fmt: skip
    number = params.dtype.type
    bent = np.square(update)
    if decay is None:
        bent *= number(variance)
    else:
        squares = state["squares"]
        average(squares, bent, decay, np.empty_like(bent))
        bent *= number(variance)
        bent /= np.sqrt(squares + number(eps))
    bent *= params - at.read
    bent += update
    bent *= number(lr(at.step))
    np.subtract(params, bent, out=out)


def delay_compensated(
    lr: float | Schedule, variance: float = 0.04, decay: float | None = None, eps: float = 1e-7
) -> Rule:
    """Gradient descent that compensates for delay: ``p -= lr * (g + v * g * g * (p - read))``.

    ``read`` are the parameters that the writer had read, of which ``g`` is the gradient. The term
    beside it is the change that the gradient would have made from there to here, to first order,
    with the squares of the gradient in place of the diagonal of the Hessian matrix.

    Parameters
    ----------
    lr : float or schedule
        Rate, a function of the writer's step.
    variance : float
        ``v >= 0``, the paper's lambda; 0 is ``fl.sgd(lr)``. Its unit is that of one over a loss.
    decay : float, optional
        In [0, 1): ``v`` adapts to each parameter, ``v = variance / sqrt(s + eps)`` with
        ``s = decay * s + (1 - decay) * g * g`` (0 takes the last gradient alone). The state is
        then one array, ``squares``. Left out, ``v`` is constant.
    eps : float
        Keeps the division from 0 / 0; must not round to zero in the table's dtype.

    Notes
    -----
    For tables that are pushed to by those who have read them whole; a plan with another use of it
    is refused. Each contribution travels with what its writer had read: twice the bytes in a queue.

    References
    ----------
    Zheng, Meng, Wang, Chen, Yu, Ma and Liu, "Asynchronous Stochastic Gradient Descent with Delay
    Compensation", ICML 2017, algorithm 2: DC-ASGD-c without ``decay``, with their lambda for
    CIFAR-10, and DC-ASGD-a with it, for which they have ``variance=2.0, decay=0.95`` there. They
    keep what each worker read at the server; here it comes along with the gradient.

    Examples
    --------
    >>> rule, w = delay_compensated(0.5, variance=1.0), np.array([1.0, 2.0])
    >>> at = At(step=0, applied=1, read=np.array([1.0, 1.0]))
    >>> rule.step(w, np.array([1.0, 1.0]), rule.init(w), at, w)
    >>> w
    array([0.5, 1. ])
    """
    where = "fl.delay_compensated"
    schedule, variance = as_schedule(lr, where=where), real(where, "variance", variance)
    eps = real(where, "eps", eps)
    if decay is not None:
        decay = real(where, "decay", decay, below=1.0)
    names = () if decay is None else ("squares",)
    init = partial(state_of, where, names, 1.0 if decay is None else eps, 0.0)
    step = partial(_step, schedule, variance, decay, eps)
    return Rule(init, step, reads=True, name="delay_compensated")
