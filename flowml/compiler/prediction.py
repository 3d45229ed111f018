"""A predicted step, and what it takes from a measurement.

Against K replicas stands one with the same total work: one batch as large as all of theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

from flowml.actions import Load
from flowml.compiler.measured import Measured
from flowml.plan import Plan


@dataclass(frozen=True)
class Prediction:
    """A step of K replicas and of one with the same total work. Seconds, means over the periods.

    Attributes
    ----------
    replicas : int
    replica_seconds : float
        Work of one replica on its own batch, slowed where replicas share cores.
    waiting_seconds : float
        For the slowest replica.
    barrier_seconds : float
        All barriers of the step, waking up after them, and the exchanges between hosts.
    transfer_seconds : float
        Reading and adding what crosses.
    update_seconds : float
        Rules and what runs once for all replicas.
    lock_seconds : float
        Queueing for what replicas share at their own pace.
    one_replica_seconds : float
        A step of one replica on the same examples.
    dominates_from : int or None
        Replicas, with the same total batch cut among them, from which on a replica's work is
        shorter than the communication; None: never.
    slowdown : float
        How many replicas share a core, at least 1.
    """

    replicas: int
    replica_seconds: float
    waiting_seconds: float
    barrier_seconds: float
    transfer_seconds: float
    update_seconds: float
    lock_seconds: float
    one_replica_seconds: float
    dominates_from: int | None
    slowdown: float

    @property
    def communication_seconds(self) -> float:
        """What would be gone if the replicas had nothing in common."""
        return (
            self.waiting_seconds + self.barrier_seconds + self.transfer_seconds + self.lock_seconds
        )

    @property
    def overhead_seconds(self) -> float:
        """What a step costs beside the replicas' work."""
        return self.communication_seconds + self.update_seconds

    @property
    def seconds(self) -> float:
        """The step."""
        return self.replica_seconds + self.overhead_seconds

    @property
    def speedup(self) -> float:
        """How many times as fast as one replica on the same examples."""
        return self.one_replica_seconds / self.seconds

    @property
    def one_is_faster(self) -> bool:
        """Whether one replica would take the same examples in less time."""
        return self.replicas > 1 and self.one_replica_seconds <= self.seconds

    @property
    def bound(self) -> str:
        """What takes most of a step."""
        found = {
            "cores" if self.slowdown > 1 else "work": self.replica_seconds,
            "waiting": self.waiting_seconds,
            "barriers": self.barrier_seconds,
            "bytes": self.transfer_seconds,
            "updates": self.update_seconds,
            "lock": self.lock_seconds,
        }
        return max(found, key=lambda name: found[name])


def batches_of(plan: Plan, measured: Measured, larger: float) -> tuple[float, float]:
    """Return the batch of a replica, and of one with all examples, by what was measured.

    Notes
    -----
    A load without a batch size shares its rows out: more replicas have less to do.
    """
    if shares_rows_out(plan):
        return measured.replicas / plan.replicas, float(measured.replicas)
    return larger, larger * plan.replicas


def shares_rows_out(plan: Plan) -> bool:
    """Tell whether some load gives each replica its whole share in every step."""
    return any(isinstance(o.action, Load) and o.action.batch_size is None for o in plan.steps)


def crowding(replicas: int, measured: Measured) -> float:
    """Return how many times as many replicas share a core as when they were timed."""
    cores = max(1, measured.figures.cores)
    then = max(1.0, len(measured.together) / cores)
    return max(1.0, replicas / cores) / then
