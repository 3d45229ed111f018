"""Predicted time of a step.

Where replicas meet, they wait for the slowest, and what is shared out comes on top:

    T = slowest replica's work + barriers + waking up + bytes / rate + shared work

Where they go at their own pace, they queue for the lock of what they share. A replica computes for
Z seconds and then holds the lock for S; with K of them that is a closed queue of one server, whose
mean value analysis (Reiser and Lavenberg, JACM 1980) needs no more than Z, S and K. They wait for
the slowest too, as far as their promise binds them.

Against both stands one replica with the same total work: one batch as large as all of theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flowml.actions import REPLICA, Aggregate, Load
from flowml.compiler.layouts import layout_of_source
from flowml.compiler.loose_traffic import LooseTraffic
from flowml.compiler.measured import CALL_SECONDS, Measured
from flowml.compiler.spread import Spread, spread
from flowml.compiler.traffic import EdgeTraffic, Traffic
from flowml.freshness import loosest
from flowml.plan import Plan, PlanOperator
from flowml.runtime.figures import Figures
from flowml.runtime.loose_plan import LoosePlan, is_loose, split
from flowml.runtime.stopwatch import COMPUTE, DELIVER, READ


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


def predict(traffic: Traffic, measured: Measured, larger: float = 1.0) -> Prediction:
    """Return the predicted step of a plan, on batches so many times as large as they are."""
    if is_loose(traffic.plan):
        return _at_their_own_pace(traffic, measured, larger)
    return _in_step(traffic, measured, larger)


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


# -- replicas that meet ------------------------------------------------------------------------


def _in_step(traffic: Traffic, measured: Measured, larger: float) -> Prediction:
    plan, replicas, figures = traffic.placed, traffic.plan.replicas, measured.figures
    batches, all_batches = batches_of(plan, measured, larger)
    rates = {o.name: traffic.firing_rate(o) for o in plan.steps}
    own = {o.name: rates[o.name] for o in plan.steps if o.scope == REPLICA}
    shared = [o for o in plan.steps if o.scope != REPLICA]
    slowdown = crowding(replicas, measured)
    work = _seconds(measured, own, batches) * slowdown
    work += _keeping(traffic, measured) * slowdown
    meetings, barriers = traffic.meetings(), traffic.barriers()
    differ = spread(measured.together, own, replicas, 1 / meetings if meetings else math.inf)
    if not meetings:
        differ = Spread()
    meeting = meetings * _met(differ, figures) + (barriers - meetings) * figures.barrier_seconds
    meeting *= slowdown * _peers_cost(replicas) / _peers_cost(len(measured.together))
    edges = [
        (port, traffic.edge(o.name, number, "", traffic.hosts))
        for o in plan.steps
        for number, port in enumerate(o.inputs)
    ]
    meeting += _exchanges([edge for _, edge in edges], measured)
    values = [edge for port, edge in edges if not port.table]
    read = math.fsum(edge.read_bytes or 0.0 for edge in values)
    transfer = read / replicas / figures.shared_bytes_per_second * slowdown
    waiting = work * (differ.slowest - 1)
    whole = _seconds(measured, own, all_batches) + figures.loop_seconds
    communication = waiting + meeting + transfer
    return Prediction(
        replicas,
        work + figures.loop_seconds,
        waiting,
        meeting,
        transfer,
        math.fsum(rates[o.name] * _shared_work(o, measured, replicas) for o in shared),
        0.0,
        whole + math.fsum(rates[o.name] * measured.seconds_of(o.name) for o in shared),
        max(2, math.ceil(whole / communication)) if communication else None,
        max(1.0, replicas / max(1, figures.cores)),
    )


def _met(differ: Spread, figures: Figures) -> float:
    """Return the seconds of the meeting that ends the replicas' own work."""
    if differ.meeting is not None:
        return differ.meeting
    return figures.barrier_seconds + differ.asleep * figures.wake_seconds


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


# -- replicas at their own pace ------------------------------------------------------------------


def _at_their_own_pace(traffic: Traffic, measured: Measured, larger: float) -> Prediction:
    plan, replicas, figures = traffic.plan, traffic.plan.replicas, measured.figures
    batches, all_batches = batches_of(plan, measured, larger)
    loose = split(plan)
    moving = LooseTraffic.of(traffic)
    reads, delivers = moving.read_rate(), moving.deliver_rate()
    slack = slack_of(loose)
    rates = {READ: 1.0, COMPUTE: 1.0, DELIVER: 1.0}
    differ = spread(measured.together, rates, replicas, slack + 1)
    slowdown = crowding(replicas, measured)
    work = measured.seconds_of(COMPUTE, batches) + figures.loop_seconds + 2 * figures.lock_seconds
    held = _now_and_then(measured.seconds_of(READ), reads)
    held += _now_and_then(_delivery(moving, measured), delivers)
    think, serve = work * slowdown * differ.slowest, held * differ.slowest
    if slack == 0:  # they come for the lock together, one behind the other
        waiting_for_lock = (replicas - 1) * serve
    else:
        waiting_for_lock = queueing(think, serve, replicas) - think - serve
    waking = differ.asleep * figures.wake_seconds / (slack + 1) if replicas > 1 else 0.0
    whole = measured.seconds_of(COMPUTE, all_batches) + figures.loop_seconds
    communication = (differ.slowest - 1) * (work * slowdown + held) + waiting_for_lock
    return Prediction(
        replicas,
        work * slowdown,
        (differ.slowest - 1) * (work * slowdown + held),
        waking,
        0.0,
        held,
        waiting_for_lock,
        whole + held,
        max(2, math.ceil(whole / communication)) if communication else None,
        max(1.0, replicas / max(1, figures.cores)),
    )


def slack_of(loose: LoosePlan) -> float:
    """Return how many steps a replica may be ahead of the slowest."""
    bounds = [loosest(read.promises) for read in loose.reads]
    return max(bounds, default=math.inf)


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
