"""Which operator a replica spent its time in: every so many-th step is timed, act by act.

A timed step runs the same acts, each between two looks at the clock; all others pay one comparison
of a number. So the times are a sample, and are there for every run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TypeAlias

import numpy as np

from flowml.thinning import FULL_STEPS
from flowml.types import Array

Span: TypeAlias = tuple[int, int, int, float, float]
Act: TypeAlias = Callable[[int], None]

SPAN = np.dtype(
    [
        ("replica", np.int32),
        ("step", np.int64),
        ("operator", np.int32),
        ("began", np.float64),
        ("seconds", np.float64),
    ]
)
"""One act of a timed step: the operator is its index among those of the plan's steps; times are
seconds, ``began`` of a clock of the process until the driver takes it from the run's first step."""

FIRST_TIMED = 3
"""The first steps fill caches."""
STRIDE = 17
"""Steps from one timed step to the next. A prime, and so are the strides that follow: whatever an
edge's period, all of its phases are met in turn."""


def stride_at(step: int) -> int:
    """Return the steps between timed steps, ten times as many for each digit from 1000 on.

    Examples
    --------
    >>> [stride_at(step) for step in (0, 999, 1000, 10_000, 100_000)]
    [17, 17, 173, 1733, 17333]
    """
    stride, limit = STRIDE, FULL_STEPS
    while step >= limit:
        stride, limit = 10 * stride + 3, 10 * limit
    return stride


@dataclass
class TimedSteps:
    """Chooses the timed steps of one replica; keeps what was timed.

    Attributes
    ----------
    following : int
        The next step to be timed.
    spans : list of Span
    """

    following: int = FIRST_TIMED
    spans: list[Span] = field(default_factory=list)

    def choose_after(self, step: int) -> None:
        """Choose the next step to be timed after this one."""
        self.following = step + stride_at(step)

    def due(self, step: int) -> bool:
        """Tell whether a step is timed; asked once for each step, in order."""
        if step < self.following:
            return False
        self.choose_after(step)
        return True

    def timed(self, act: Act, replica: int, operator: int) -> Act:
        """Return an act that notes how long it took."""

        def run(step: int) -> None:
            began = perf_counter()
            act(step)
            self.spans.append((replica, step, operator, began, perf_counter() - began))

        return run

    def take(self) -> list[Span]:
        """Hand over what was timed, and start anew."""
        found, self.spans[:] = list(self.spans), []
        return found


def as_spans(spans: Iterable[Span] | Sequence[Span]) -> Array:
    """Return spans as one array.

    Examples
    --------
    >>> as_spans([(1, 3, 0, 2.0, 0.5)])["seconds"]
    array([0.5])
    """
    return np.array(list(spans), SPAN)
