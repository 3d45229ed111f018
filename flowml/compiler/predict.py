"""Predicted time of a step, of whatever kind the plan is."""

from __future__ import annotations

from flowml.compiler.in_step import predict_in_step
from flowml.compiler.measured import Measured
from flowml.compiler.own_pace import predict_own_pace
from flowml.compiler.prediction import Prediction
from flowml.compiler.traffic import Traffic
from flowml.runtime.loose_plan import is_loose


def predict(traffic: Traffic, measured: Measured, larger: float = 1.0) -> Prediction:
    """Return the predicted step of a plan, on batches so many times as large as they are."""
    if is_loose(traffic.plan):
        return predict_own_pace(traffic, measured, larger)
    return predict_in_step(traffic, measured, larger)
