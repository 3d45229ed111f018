"""What a replica's step is made of, as it was measured or given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flowml.runtime.domain import Layouts
from flowml.runtime.figures import Figures
from flowml.runtime.stopwatch import Timings

CALL_SECONDS = 15e-6
"""What one operator costs a replica however little there is to do."""


@dataclass(frozen=True)
class Measured:
    """The parts of a step of one replica, and what the machine charges beside them.

    Attributes
    ----------
    seconds : mapping of str to float
        Of each part on the batch of one replica, while the others are busy. Parts are operators;
        of a graph with stale, async or compressed edges they are "read", "compute", "deliver".
    whole : mapping of str to float
        Of each part on ``factor`` such batches as one, by one replica alone; empty: so many times
        as long.
    factor : float
    together : tuple of Timings
        Each replica that was timed while the others were busy; empty: all are equally fast.
    layouts : mapping of (operator, output) to Layout
        Of what operators make; tables as (table, -1).
    payloads : mapping of str to float
        Bytes a step of each edge that passes a gate, where codec, filter or row ids make them.
    replicas : int
        How many there were, which decides the share of a load without a batch size.
    figures : Figures
    """

    seconds: Mapping[str, float]
    whole: Mapping[str, float] = field(default_factory=dict)
    factor: float = 1.0
    together: tuple[Timings, ...] = ()
    layouts: Layouts = field(default_factory=dict)
    payloads: Mapping[str, float] = field(default_factory=dict)
    replicas: int = 1
    figures: Figures = field(default_factory=Figures)

    def with_figures(self, **figures: Any) -> Measured:
        """Return the same parts on a machine with other figures.

        Examples
        --------
        >>> found = Measured({"gradient": 1e-3}).with_figures(cores=64, barrier_seconds=5e-6)
        >>> found.figures.cores, found.figures.barrier_seconds, found.figures.lock_seconds
        (64, 5e-06, 4e-06)
        """
        return replace(self, figures=replace(self.figures, **figures))

    def seconds_of(self, part: str, batches: float = 1.0) -> float:
        """Return the seconds of a part on so many batches as one: a straight line through both.

        Less than a batch takes its part of the time.

        Examples
        --------
        >>> found = Measured({"gradient": 1e-3}, {"gradient": 1.6e-3}, factor=4)
        >>> found.seconds_of("gradient"), found.seconds_of("gradient", 6)
        (0.001, 0.002)
        >>> Measured({"gradient": 1e-3}).seconds_of("gradient", 3)
        0.003
        """
        one = self.seconds.get(part, 0.0)
        if part not in self.whole or self.factor <= 1 or batches < 1:
            return max(one * batches, min(one, CALL_SECONDS))
        slope = max(0.0, self.whole[part] - one) / (self.factor - 1)
        return max(one + slope * (batches - 1), min(one, CALL_SECONDS))
