"""What ``fl.here`` gives to an operator: its place, its clock and its own random stream."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Place:
    """The place of one instance in one step.

    Attributes
    ----------
    replica, replicas : int
        Rank and number of ranks.
    group : int
        Number of the group that the replica is in.
    clock : int
        Steps that this instance has finished.
    """

    replica: int
    replicas: int
    group: int
    clock: int
    entropy: tuple[int, ...] = ()

    def rng(self) -> np.random.Generator:
        """Return a generator of this operator, replica and step: the same on every executor."""
        return np.random.default_rng(
            np.random.SeedSequence((*self.entropy, self.clock, self.replica))
        )
