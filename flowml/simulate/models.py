"""How long things take in a made-up cluster: steps, messages, and who is lost when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from flowml.errors import PlanError


@dataclass(frozen=True)
class Compute:
    """How long a step of a replica takes, its messages not counted.

    Attributes
    ----------
    seconds : float
        Of a usual step, > 0.
    spread : float
        Standard deviation of the logarithm of each step's time, >= 0: 0 is a steady machine.
    slow : mapping of int to float
        Replicas that are always slower, by a factor.
    slow_share : float
        Share of the steps, at random, that are slower; from 0 to 1.
    slow_factor : float
        By how much those are.

    Examples
    --------
    >>> Compute(0.01, slow={3: 5.0}).draw(np.random.default_rng(0), 3)
    0.05
    """

    seconds: float = 1e-3
    spread: float = 0.0
    slow: Mapping[int, float] = field(default_factory=dict)
    slow_share: float = 0.0
    slow_factor: float = 10.0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        _check("Compute", "seconds", self.seconds, self.seconds > 0, "> 0")
        _check("Compute", "spread", self.spread, self.spread >= 0, ">= 0")
        _check("Compute", "slow_share", self.slow_share, 0 <= self.slow_share <= 1, "from 0 to 1")
        _check("Compute", "slow_factor", self.slow_factor, self.slow_factor > 0, "> 0")
        for rank, factor in self.slow.items():
            _check("Compute", f"slow[{rank}]", factor, factor > 0, "> 0")

    def draw(self, rng: np.random.Generator, replica: int) -> float:
        """Return the time of one step. Unit: seconds."""
        found = self.seconds * self.slow.get(replica, 1.0)
        if self.spread:
            found *= float(np.exp(self.spread * rng.standard_normal()))
        if self.slow_share and rng.random() < self.slow_share:
            found *= self.slow_factor
        return found


@dataclass(frozen=True)
class Network:
    """How long a message takes between a replica and what all share.

    Attributes
    ----------
    latency : float
        Seconds of a message without content, >= 0.
    bandwidth : float
        Bytes a second, > 0; each replica has as much for itself.
    spread : float
        Standard deviation of the logarithm of each message's time, >= 0.
    wake : float
        Seconds from when a replica that had to wait may go on until it does, >= 0.

    Examples
    --------
    >>> Network(latency=0.001, bandwidth=1e6).draw(np.random.default_rng(0), 4000)
    0.005
    """

    latency: float = 1e-4
    bandwidth: float = 1e9
    spread: float = 0.0
    wake: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        _check("Network", "latency", self.latency, self.latency >= 0, ">= 0")
        _check("Network", "bandwidth", self.bandwidth, self.bandwidth > 0, "> 0")
        _check("Network", "spread", self.spread, self.spread >= 0, ">= 0")
        _check("Network", "wake", self.wake, self.wake >= 0, ">= 0")

    def draw(self, rng: np.random.Generator, nbytes: int) -> float:
        """Return the time of one message. Unit: seconds."""
        found = self.latency + nbytes / self.bandwidth
        return found * float(np.exp(self.spread * rng.standard_normal())) if self.spread else found


@dataclass(frozen=True)
class Faults:
    """Who is lost.

    Attributes
    ----------
    leaves : mapping of int to float
        Virtual seconds after which a replica delivers nothing more and is not waited for.
    """

    leaves: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        for rank, seconds in self.leaves.items():
            _check("Faults", f"leaves[{rank}]", seconds, seconds >= 0, ">= 0")


def _check(name: str, part: str, value: float, holds: bool, must: str) -> None:
    if not holds:
        raise PlanError(f"{name}({part}=)", f"must be {must}", repr(value))
