"""Learning rates as functions of the step.

A schedule is a frozen value that is called with a step and returns a rate. The step is the *stamp*
of the update (the writer's own step, from 0), never the number of updates applied so far: with K
replicas pushing into one table a schedule counted in applications would run K times too fast
(semantics.md, section 5).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeAlias

from flowml.errors import GraphError

Schedule: TypeAlias = Callable[[int], float]
"""A step (from 0) to a rate, finite and not negative."""


def real(where: str, name: str, value: Any, *, low: float = 0.0, below: float = math.inf) -> float:
    """Return a hyper-parameter as a float, or say what it had to be.

    Parameters
    ----------
    where : str
        Who asks, such as ``"fl.sgd"``.
    name : str
        Name of the parameter, as the user wrote it.
    value : Any
        A Python or NumPy number with ``low <= value < below``; a bool is not a number here.

    Raises
    ------
    GraphError
        If it is not a number, not finite or out of the interval.
    """
    if isinstance(value, Real) and not isinstance(value, bool):
        number = float(value)
        if math.isfinite(number) and low <= number < below:
            return number
    floor = f" >= {low:g}" if math.isfinite(low) else ""
    ceiling = f" and < {below:g}" if math.isfinite(below) else ""
    raise GraphError(where, f"{name} must be a finite number{floor}{ceiling}", repr(value))


def count(where: str, name: str, value: Any, *, low: int = 1) -> int:
    """Return a parameter that counts something as an int, or say what it had to be.

    Raises
    ------
    GraphError
        If it is not an integer ``>= low``.
    """
    if isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= low:
        return int(value)
    raise GraphError(where, f"{name} must be an int >= {low}", repr(value))


@dataclass(frozen=True)
class Constant:
    """The same rate at every step."""

    value: float

    def __call__(self, step: int) -> float:
        """Return the rate at ``step``."""
        return self.value


@dataclass(frozen=True)
class Step:
    """``initial``, multiplied by ``factor`` after every ``every`` steps."""

    initial: float
    every: int
    factor: float

    def __call__(self, step: int) -> float:
        """Return the rate at ``step``."""
        return self.initial * self.factor ** (step // self.every)


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from ``initial`` down to ``final`` over ``steps`` steps, then ``final``."""

    initial: float
    steps: int
    final: float

    def __call__(self, step: int) -> float:
        """Return the rate at ``step``."""
        done = min(step, self.steps) / self.steps
        return self.final + 0.5 * (self.initial - self.final) * (1.0 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Warmup:
    """A straight line from ``start`` to what ``inner`` gives at step ``steps``, then ``inner``."""

    inner: Schedule
    steps: int
    start: float

    def __call__(self, step: int) -> float:
        """Return the rate at ``step``."""
        if step >= self.steps:
            return self.inner(step)
        return self.start + (self.inner(self.steps) - self.start) * (step / self.steps)


@dataclass(frozen=True)
class Scaled:
    """Another schedule, times ``factor``."""

    inner: Schedule
    factor: float

    def __call__(self, step: int) -> float:
        """Return the rate at ``step``."""
        return self.factor * self.inner(step)


def as_schedule(lr: float | Schedule, *, where: str = "lr") -> Schedule:
    """Return a schedule from a number or a schedule.

    Parameters
    ----------
    lr : float or callable
        A finite rate ``>= 0``, or anything that is called with a step and returns one.
    where : str
        Who asks, for the message.

    Raises
    ------
    GraphError
        If it is neither.

    Examples
    --------
    >>> as_schedule(0.1)(7)
    0.1
    """
    if callable(lr):
        return lr
    return Constant(real(where, "lr", lr))


def constant(value: float) -> Constant:
    """Return the schedule that gives ``value`` at every step."""
    return Constant(real("fl.schedules.constant", "value", value))


def step(initial: float, *, every: int, factor: float) -> Step:
    """Return a staircase: the rate is multiplied by ``factor`` after every ``every`` steps.

    Examples
    --------
    >>> [step(1.0, every=2, factor=0.5)(t) for t in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """
    where = "fl.schedules.step"
    return Step(
        real(where, "initial", initial), count(where, "every", every), real(where, "factor", factor)
    )


def cosine(initial: float, *, steps: int, final: float = 0.0) -> Cosine:
    """Return half a cosine from ``initial`` at step 0 to ``final`` at step ``steps`` and after.

    References
    ----------
    Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017,
    equation 5, one period; here without restarts and counted in steps.

    Examples
    --------
    >>> lr = cosine(1.0, steps=10)
    >>> lr(0), round(lr(5), 12), lr(10), lr(99)
    (1.0, 0.5, 0.0, 0.0)
    """
    where = "fl.schedules.cosine"
    return Cosine(
        real(where, "initial", initial), count(where, "steps", steps), real(where, "final", final)
    )


def warmup(lr: float | Schedule, *, steps: int, start: float = 0.0) -> Warmup:
    """Return a linear ramp over the first ``steps`` steps, then the inner schedule.

    Parameters
    ----------
    lr : float or schedule
        What follows the ramp. It counts from step 0 too, so the ramp does not shift it.
    steps : int
        Length of the ramp, >= 1. Unit: steps.
    start : float
        Rate at step 0.

    Notes
    -----
    The ramp ends at the rate that the inner schedule gives at step ``steps``: no jump.

    References
    ----------
    Goyal et al., "Accurate, Large Minibatch SGD", 2017, section 2.2 (gradual warm-up). They start
    at the rate of one worker: ``start=lr / replicas``.

    Examples
    --------
    >>> [warmup(1.0, steps=4)(t) for t in range(6)]
    [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """
    where = "fl.schedules.warmup"
    inner = as_schedule(lr, where=where)
    return Warmup(inner, count(where, "steps", steps), real(where, "start", start))


def linear_scaling(lr: float | Schedule, *, batch_size: int, reference: int = 256) -> Scaled:
    """Return ``lr`` times ``batch_size / reference``.

    Parameters
    ----------
    lr : float or schedule
        The rate that suits a total batch of ``reference`` examples.
    batch_size : int
        Total batch of a step: replicas times the batch of each. Unit: examples.
    reference : int
        Unit: examples.

    References
    ----------
    Goyal et al., "Accurate, Large Minibatch SGD", 2017, section 2.1 (linear scaling rule). It holds
    for a *mean* over the total batch; put it inside `warmup`, as they do.

    Examples
    --------
    >>> linear_scaling(0.1, batch_size=1024)(0)
    0.4
    """
    where = "fl.schedules.linear_scaling"
    total = count(where, "batch_size", batch_size)
    return Scaled(as_schedule(lr, where=where), total / count(where, "reference", reference))
