"""What the numbers of an explanation mean, in words: whether replicas pay, what would help."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from flowml.actions import REPLICA, Aggregate
from flowml.compiler.curve import CurvePoint
from flowml.compiler.measured import Measured
from flowml.compiler.predict import predict
from flowml.compiler.prediction import Prediction, shares_rows_out
from flowml.compiler.shown import shown_seconds
from flowml.compiler.traffic import Traffic
from flowml.freshness import loosest
from flowml.plan import Plan, PlanOperator

ONE_IS_FASTER = "one replica is faster"
PERIOD, LARGER = 4, 4
"""What is tried: a communication every so many steps, batches so many times as large."""
WORTH_SAYING = 1.1
"""A change that makes a step less than so many times as fast is not advised."""
BOUNDS = {
    "work": "their own work",
    "cores": "their work on cores that they share",
    "waiting": "waiting for the slowest replica",
    "barriers": "barriers",
    "bytes": "the bytes that cross",
    "updates": "updates that run once for all",
    "lock": "queueing for the lock of what they share",
}
"""A bound in words."""


def verdict(prediction: Prediction | None, measured: Measured | None) -> str:
    """Say whether the replicas are worth it."""
    if prediction is None or measured is None:
        return "not predicted: nothing was measured"
    if prediction.replicas == 1:
        return "one replica runs alone; explain(replicas=2) predicts what another one brings"
    numbers = (
        f"{shown_seconds(prediction.seconds)} on {prediction.replicas} replicas (their work "
        f"{shown_seconds(prediction.replica_seconds)}, overhead "
        f"{shown_seconds(prediction.overhead_seconds)}) against "
        f"{shown_seconds(prediction.one_replica_seconds)} on one for the same examples"
    )
    shared = ""
    if prediction.slowdown > 1:
        shared = (
            f". The {prediction.replicas} replicas share {measured.figures.cores} cores, so their "
            f"work is taken as {prediction.slowdown:.3g} times as long"
        )
    if prediction.one_is_faster:
        return f"{ONE_IS_FASTER}: a step takes {numbers}{shared}"
    text = f"{prediction.replicas} replicas are {prediction.speedup:.2f} times as fast: {numbers}"
    if prediction.dominates_from is None:
        return f"{text}. Nothing is communicated{shared}"
    return (
        f"{text}. With the same total batch, communication dominates from "
        f"{prediction.dominates_from} replicas on{shared}"
    )


def advice(
    traffic: Traffic, measured: Measured, prediction: Prediction, curve: Sequence[CurvePoint]
) -> tuple[str, ...]:
    """Return what would make the graph faster, each with the gain in examples a second."""
    if prediction.replicas == 1:
        return ()
    share = prediction.communication_seconds / prediction.seconds
    changes = [
        f"{words} would give {gain:.1f}x"
        for words, gain in _changes(traffic, measured, prediction)
        if gain >= WORTH_SAYING
    ]
    if changes:
        head = f"communication is {share:.0%} of a step: {', or '.join(changes)}"
    else:
        most = prediction.seconds / (prediction.seconds - prediction.communication_seconds)
        head = f"communication is {share:.0%} of a step: less of it would give at most {most:.2f}x"
    return (head, *_of_curve(prediction, curve))


def _of_curve(prediction: Prediction, curve: Sequence[CurvePoint]) -> Iterator[str]:
    """Say how many replicas are best, and what keeps more from being better."""
    if not curve:
        return
    best = max(curve, key=lambda point: point.speedup)
    if best.replicas in (1, prediction.replicas):
        count = "one" if best.replicas == 1 else f"{best.replicas}"
        yield (
            f"no other number of replicas than {count} is faster here: most of a step of "
            f"{prediction.replicas} is {BOUNDS[prediction.bound]}"
        )
    else:
        yield (
            f"{best.replicas} replicas would be {best.speedup:.2f} times as fast as one; most of "
            f"their step is {BOUNDS[best.bound]}"
        )


def _changes(
    traffic: Traffic, measured: Measured, prediction: Prediction
) -> Iterator[tuple[str, float]]:
    """Yield each change in the words of a graph, and how many times as fast it would be."""
    plan = traffic.plan
    entries = [o.name for o in plan.steps if _may_be_thinned(plan, o)]
    if entries:
        edges = " and ".join(plan.edge_name(plan.operator(name), 0) for name in entries)
        thin = thinned(plan, entries, PERIOD)
        rarer = Traffic.of(thin, traffic.layouts, traffic.hosts, traffic.payloads)
        gain = prediction.seconds / predict(rarer, measured).seconds
        yield f".every({PERIOD}) on {edges}", gain
    if len(traffic.hosts) > 1 and _codecs(plan) == 0:
        figures = measured.figures
        rate = 2 * figures.network_bytes_per_second
        faster = replace(measured, figures=replace(figures, network_bytes_per_second=rate))
        gain = prediction.seconds / predict(traffic, faster).seconds
        yield ".compress(float16)", gain
    if not shares_rows_out(plan):
        gain = LARGER * prediction.seconds / predict(traffic, measured, LARGER).seconds
        yield f"batches {LARGER} times as large", gain


def _codecs(plan: Plan) -> int:
    """Return how many edges have a codec."""
    return sum(port.codec is not None for o in plan.steps for port in o.inputs)


def thinned(plan: Plan, entries: Sequence[str], period: int) -> Plan:
    """Return the plan in which some operators get their first input only every so many steps."""
    operators = []
    for operator in plan.operators:
        if operator.name in entries:
            port = replace(operator.inputs[0], every=period, keep="sum")
            operator = replace(operator, inputs=(port, *operator.inputs[1:]))
        operators.append(operator)
    return replace(plan, operators=tuple(operators))


def _may_be_thinned(plan: Plan, operator: PlanOperator) -> bool:
    """Tell whether values of replicas flow into an operator in every step, and need not."""
    if not plan.combines(operator):
        return False
    port = operator.inputs[0]
    sums_loosely = isinstance(operator.action, Aggregate) and loosest(port.promises) > 0
    every_step = port.every == 1 and not port.table and plan.scope_of(port) == REPLICA
    return every_step and not sums_loosely
