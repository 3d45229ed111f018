"""The predicted step of replicas at their own pace: they queue for the lock of what they share.

A replica computes for Z seconds and then holds the lock for S; with K of them that is a closed
queue of one server, whose mean value analysis (Reiser and Lavenberg, JACM 1980) needs no more than
Z, S and K. They are held back by the slowest too, as far as their promise binds them.
"""

from __future__ import annotations

import math

from flowml.compiler.loose_traffic import LooseTraffic
from flowml.compiler.measured import CALL_SECONDS, Measured
from flowml.compiler.prediction import Prediction, batches_of, crowding
from flowml.compiler.spread import held_back
from flowml.compiler.traffic import Traffic
from flowml.freshness import loosest
from flowml.runtime.loose_plan import LoosePlan, split
from flowml.runtime.stopwatch import COMPUTE, DELIVER, READ


def predict_own_pace(traffic: Traffic, measured: Measured, larger: float) -> Prediction:
    """Return the predicted step of a plan with stale, async or compressed edges."""
    plan, replicas, figures = traffic.plan, traffic.plan.replicas, measured.figures
    batches, all_batches = batches_of(plan, measured, larger)
    loose = split(plan)
    moving = LooseTraffic.of(traffic)
    reads, delivers = moving.read_rate(), moving.deliver_rate()
    slack, slowdown = slack_of(loose), crowding(replicas, measured)
    work = measured.seconds_of(COMPUTE, batches) + figures.loop_seconds + 2 * figures.lock_seconds
    work *= slowdown
    held = _now_and_then(measured.seconds_of(READ), reads)
    held += _now_and_then(_delivery(moving, measured), delivers)
    slowest = held_back(measured.together, replicas, slack)
    if slack == 0:  # they come for the lock together, one behind the other
        queued = (replicas - 1) * held
    else:
        queued = queueing(work, held, replicas) - work - held
    waiting = (slowest - 1) * (work + held)
    whole = measured.seconds_of(COMPUTE, all_batches) + figures.loop_seconds
    asking = _asking(traffic, moving, measured)
    communication = waiting + slowest * queued + asking
    return Prediction(
        replicas,
        work,
        waiting,
        asking,
        0.0,
        held,
        slowest * queued,
        whole + held,
        max(2, math.ceil(whole / communication)) if communication else None,
        max(1.0, replicas / max(1, figures.cores)),
    )


def _asking(traffic: Traffic, moving: LooseTraffic, measured: Measured) -> float:
    """Return the seconds in which a replica on another host waits for the tables in a step."""
    far = traffic.plan.replicas - len(traffic.hosts[0])
    if not far:
        return 0.0
    edges = [
        moving.edge(o.name, number, "", traffic.hosts)
        for o in traffic.plan.steps
        for number in range(len(o.inputs))
    ]
    rounds = math.fsum(edge.messages for edge in edges) / 2 / far
    nbytes = math.fsum(edge.message_bytes or 0.0 for edge in edges) / far
    figures = measured.figures
    return rounds * figures.message_seconds + nbytes / figures.network_bytes_per_second


def slack_of(loose: LoosePlan) -> float:
    """Return how many steps a replica may be ahead of the slowest."""
    bounds = [loosest(read.promises) for read in loose.reads if read.gate >= 0]
    return min(bounds, default=math.inf)


def _now_and_then(seconds: float, rate: float) -> float:
    """Return the mean seconds of a call that moves something in a part of the steps only."""
    return rate * seconds + (1 - rate) * min(seconds, CALL_SECONDS)


def _delivery(moving: LooseTraffic, measured: Measured) -> float:
    """Return the seconds of a delivery; where all are summed, one in K sets off what is behind.

    Notes
    -----
    Timed with one replica, where each delivery sets off all that is behind.
    """
    spent, replicas = measured.seconds_of(DELIVER), moving.loose.plan.replicas
    if any(moving.makes_a_version_each(gate) for gate in moving.loose.gates):
        return spent
    copying = moving.gate_bytes() / measured.figures.shared_bytes_per_second
    put = min(spent, CALL_SECONDS + copying)
    return put + (spent - put) / replicas + (replicas - 1) / replicas * copying


def queueing(think: float, serve: float, replicas: int) -> float:
    """Return the mean seconds from one turn of a replica to its next.

    Examples
    --------
    >>> queueing(3.0, 1.0, 1), queueing(3.0, 1.0, 2), round(queueing(3.0, 1.0, 100))
    (4.0, 4.25, 100)
    """
    waiting, turn = 0.0, think + serve
    for count in range(1, replicas + 1):
        spent = serve * (1 + waiting)
        turn = think + spent
        waiting = count / turn * spent
    return turn
