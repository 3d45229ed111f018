"""How long things take in a made-up cluster: steps, messages, and who is lost when."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from flowml.errors import PlanError
from flowml.thinning import strides
from flowml.types import Array


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


@dataclass(frozen=True, eq=False)
class Timed:
    """Steps like some that were timed: each takes as long as one of those, drawn at random.

    Attributes
    ----------
    seconds : sequence of ndarray, shape (steps,)
        Of steps of each replica that was timed, > 0; a further replica is like one of these.

    Notes
    -----
    A few steps that take twenty times as long hold back those who may be three steps ahead, and
    many that take twice as long do not, whatever the mean: so the times are kept as they are. That
    slow steps come in groups is lost.

    Examples
    --------
    >>> Timed([np.array([0.01]), np.array([0.02])]).draw(np.random.default_rng(0), 1)
    0.02
    """

    seconds: Sequence[Array]

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not self.seconds:
            raise PlanError("Timed: seconds", "must have the steps of a replica", "none")
        for replica, timed in enumerate(self.seconds):
            least = float(np.min(timed)) if len(timed) else math.nan
            _check("Timed", f"seconds[{replica}]", least, least > 0, "> 0, of one step or more")

    @classmethod
    def of(cls, history: Mapping[str, Array]) -> Timed:
        """Return the steps of a run without what they waited for others.

        Parameters
        ----------
        history : History
            Of a run: ``run.history``. What its steps took for reads and writes is in them: give the
            network no latency, and no limit of bandwidth, beside.
        """
        replicas, seconds = np.asarray(history["replica"]), np.asarray(history["seconds"])
        alone = np.maximum(seconds - np.asarray(history["wait_seconds"]), 1e-9)
        counts = strides(np.asarray(history["step"]))  # the first steps are the slowest
        own = [replicas == replica for replica in np.unique(replicas)]
        return cls([np.repeat(alone[mine], counts[mine]) for mine in own])

    def draw(self, rng: np.random.Generator, replica: int) -> float:
        """Return the time of one step. Unit: seconds."""
        timed = self.seconds[replica % len(self.seconds)]
        return float(timed[rng.integers(len(timed))])


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
