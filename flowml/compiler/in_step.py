"""The predicted step of replicas that meet: they wait for the slowest.

T = slowest replica's work + meetings + bytes / rate + shared work
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from flowml.actions import REPLICA, Aggregate
from flowml.compiler.layouts import layout_of_source
from flowml.compiler.measured import CALL_SECONDS, Measured
from flowml.compiler.prediction import Prediction, batches_of, crowding
from flowml.compiler.spread import Spread, spread
from flowml.compiler.traffic import EdgeTraffic, Traffic
from flowml.plan import PlanOperator


def predict_in_step(traffic: Traffic, measured: Measured, larger: float) -> Prediction:
    """Return the predicted step of a synchronous plan."""
    plan, replicas, figures = traffic.placed, traffic.plan.replicas, measured.figures
    batches, all_batches = batches_of(plan, measured, larger)
    rates = {o.name: traffic.firing_rate(o) for o in plan.steps}
    own = {o.name: rates[o.name] for o in plan.steps if o.scope == REPLICA}
    shared = [o for o in plan.steps if o.scope != REPLICA]
    slowdown = crowding(replicas, measured)
    work = (_seconds(measured, own, batches) + _keeping(traffic, measured)) * slowdown
    meetings = traffic.meetings()
    differ = spread(measured.together, own, replicas, 1 / meetings) if meetings else Spread()
    values = [
        traffic.edge(o.name, number, "", traffic.hosts)
        for o in plan.steps
        for number, port in enumerate(o.inputs)
        if not port.table
    ]
    met = _meeting(traffic, measured, differ, slowdown) + _exchanges(values, measured)
    read = math.fsum(edge.read_bytes or 0.0 for edge in values)
    transfer = read / replicas / figures.shared_bytes_per_second * slowdown
    waiting = work * (differ.slowest - 1)
    whole = _seconds(measured, own, all_batches) + figures.loop_seconds
    communication = waiting + met + transfer
    return Prediction(
        replicas,
        work + figures.loop_seconds,
        waiting,
        met,
        transfer,
        math.fsum(rates[o.name] * _shared_work(o, measured, replicas) for o in shared),
        0.0,
        whole + math.fsum(rates[o.name] * measured.seconds_of(o.name) for o in shared),
        max(2, math.ceil(whole / communication)) if communication else None,
        max(1.0, replicas / max(1, figures.cores)),
    )


def _meeting(traffic: Traffic, measured: Measured, differ: Spread, slowdown: float) -> float:
    """Return the seconds of all barriers of a step on one host, beside waiting for the slowest."""
    figures, meetings = measured.figures, traffic.meetings()
    first = differ.meeting
    if first is None:
        first = figures.barrier_seconds + differ.asleep * figures.wake_seconds
    found = meetings * first + (traffic.barriers() - meetings) * figures.barrier_seconds
    peers = _peers_cost(traffic.plan.replicas) / _peers_cost(len(measured.together))
    return found * slowdown * peers


def _seconds(measured: Measured, rates: dict[str, float], batches: float) -> float:
    return math.fsum(rate * measured.seconds_of(part, batches) for part, rate in rates.items())


def _peers_cost(replicas: int) -> float:
    """Return what a barrier of so many replicas costs, by that of two.

    Notes
    -----
    Each further one is told, and listened to, by all: two more system calls of the six of two.
    """
    return 1.0 + max(0, replicas - 2) / 3


def _keeping(traffic: Traffic, measured: Measured) -> float:
    """Return the seconds in which a replica adds up what its edges with a period skip."""
    found = 0.0
    for operator in traffic.placed.steps:
        for port in operator.inputs:
            if not traffic.firing.keeps(port):
                continue
            layout = layout_of_source(traffic.plan, traffic.layouts, port)
            nbytes = 0 if layout is None else layout.nbytes
            copying = nbytes / measured.figures.shared_bytes_per_second
            source = traffic.placed.operator(port.source)
            found += traffic.firing_rate(source) * (CALL_SECONDS + copying)
    return found


def _shared_work(operator: PlanOperator, measured: Measured, replicas: int) -> float:
    """Return what a rank spends on an operator of a coarser scope: a slice, or all of it."""
    spent = measured.seconds_of(operator.name)
    if replicas == 1:
        return spent
    if isinstance(operator.action, Aggregate):  # its bytes are counted as transfer
        return min(spent, CALL_SECONDS)
    if not operator.sliced:
        return spent
    fixed = min(spent, CALL_SECONDS)
    return fixed + (spent - fixed) / replicas


def _exchanges(edges: Sequence[EdgeTraffic], measured: Measured) -> float:
    """Return the seconds of the exchanges between hosts, which go on side by side."""
    rounds = math.fsum(1.0 / e.every for e in edges if e.messages)
    nbytes = math.fsum(e.message_bytes or 0.0 for e in edges)
    figures = measured.figures
    return rounds * figures.message_seconds + nbytes / figures.network_bytes_per_second
