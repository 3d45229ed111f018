"""Predicted time of a step: the slowest replica, the barriers, the bytes, the update.

    T_K = replica work + barriers * barrier_seconds + bytes / rate + update work / K

against one replica with the same total work: one batch as large as those of all replicas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flowml.actions import REPLICA, Aggregate
from flowml.compiler.gauge import CALL_SECONDS, Measured
from flowml.compiler.traffic import EdgeTraffic, Traffic
from flowml.plan import PlanOperator


@dataclass(frozen=True)
class Prediction:
    """A step of K replicas and of one with the same total work. Seconds, means over the periods.

    Attributes
    ----------
    replicas : int
    replica_seconds : float
        Work of one replica on its own batch, slowed where replicas share cores.
    barrier_seconds : float
        All barriers of the step, and the exchanges between hosts.
    transfer_seconds : float
        Reading and adding what crosses.
    update_seconds : float
        Rules and what runs once for all replicas.
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
    barrier_seconds: float
    transfer_seconds: float
    update_seconds: float
    one_replica_seconds: float
    dominates_from: int | None
    slowdown: float

    @property
    def overhead_seconds(self) -> float:
        """What a step costs beside the replicas' work: barriers, bytes and update."""
        return self.barrier_seconds + self.transfer_seconds + self.update_seconds

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


def predict(
    traffic: Traffic, edges: Sequence[EdgeTraffic], measured: Measured, hosts: int
) -> Prediction:
    """Return the predicted step of a plan on so many hosts."""
    steps, replicas = traffic.plan.steps, traffic.plan.replicas
    rates = {o.name: traffic.firing_rate(o) for o in steps}
    spent = {o.name: rates[o.name] * measured.gradient_seconds.get(o.name, 0.0) for o in steps}
    own = [o for o in steps if o.scope == REPLICA]
    shared = [o for o in steps if o.scope != REPLICA]
    slowdown = max(1.0, replicas / max(1, measured.cores))
    barriers = traffic.barriers(hosts) * measured.barrier_seconds
    if hosts > 1:
        barriers += _exchanges(edges, measured)
    transfer = _transfer(traffic, edges, measured) * slowdown
    whole = math.fsum(
        rates[o.name]
        * measured.whole_seconds.get(o.name, replicas * measured.gradient_seconds.get(o.name, 0.0))
        for o in own
    )
    communication = barriers + transfer
    return Prediction(
        replicas,
        math.fsum(spent[o.name] for o in own) * slowdown,
        barriers,
        transfer,
        math.fsum(rates[o.name] * _shared_work(o, measured, replicas) for o in shared),
        whole + math.fsum(spent[o.name] for o in shared),
        max(2, math.ceil(whole / communication)) if communication else None,
        slowdown,
    )


def _shared_work(operator: PlanOperator, measured: Measured, replicas: int) -> float:
    """Return what a rank spends on an operator of a coarser scope: a slice, or all of it."""
    spent = measured.gradient_seconds.get(operator.name, 0.0)
    if replicas == 1 or not operator.sliced:
        return spent
    if isinstance(operator.action, Aggregate):  # its bytes are counted as transfer
        return min(spent, CALL_SECONDS)
    fixed = min(spent, CALL_SECONDS)
    return fixed + (spent - fixed) / replicas


def _transfer(traffic: Traffic, edges: Sequence[EdgeTraffic], measured: Measured) -> float:
    """Return the seconds in which one replica reads its part of what crosses."""
    ports = [p for o in traffic.plan.steps for p in o.inputs]
    nbytes = math.fsum(
        edge.read_bytes or 0.0
        for edge, port in zip(edges, ports, strict=True)
        if edge.crosses and not port.table
    )
    return nbytes / traffic.plan.replicas / measured.copy_bytes_per_second


def _exchanges(edges: Sequence[EdgeTraffic], measured: Measured) -> float:
    """Return the seconds of the exchanges between hosts, which go on side by side."""
    rounds = math.fsum(1.0 / e.every for e in edges if e.messages)
    nbytes = math.fsum(e.message_bytes or 0.0 for e in edges)
    return rounds * measured.message_seconds + nbytes / measured.network_bytes_per_second
