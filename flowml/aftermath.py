"""What the driver of a run that failed adds to its error: the last good step, and the input."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from flowml.drawing.text import counted
from flowml.errors import DivergedError, FlowmlError
from flowml.freshness import loosest
from flowml.graph import LogicalGraph
from flowml.plan import Plan
from flowml.runtime.calls import place_words
from flowml.runtime.failed_call import KEPT, FailedCall
from flowml.runtime.outcome import Outcome


def told(
    error: BaseException, graph: LogicalGraph, outcome: Outcome | None, failures: Path | None
) -> BaseException:
    """Return the error of a run with what only its driver knows.

    Parameters
    ----------
    outcome : Outcome or None
        None where the run failed before its first step.
    failures : Path or None
        Folder for the input of the operator that failed.
    """
    if not isinstance(error, FlowmlError):
        return error
    found = error if outcome is None else _with_worker(error, outcome)
    if isinstance(found, DivergedError) and outcome is not None:
        found = _with_last_good_step(found, outcome)
    call = error.fields.get("call")
    if isinstance(call, FailedCall):
        found = _with_call(found, call.of(graph.operator(call.operator)), failures)
    return found


def _again(error: FlowmlError, where: str, fix: str, **fields: Any) -> FlowmlError:
    """Return the same error with another place and advice, and more fields."""
    found = type(error)(where, error.required, error.got, fix, **{**error.fields, **fields})
    found.__cause__ = error.__cause__
    return found


def _with_worker(error: FlowmlError, outcome: Outcome) -> FlowmlError:
    """Return the error of an operator with the worker of its replica.

    Notes
    -----
    Who finds a value that is not finite may be another replica than the one that made it, and
    knows no addresses.
    """
    replica, step = error.fields.get("replica", -1), error.fields.get("step", -1)
    here = place_words(replica, step)
    if not 0 <= replica < len(outcome.workers) or here not in error.where:
        return error
    worker = outcome.workers[replica]
    if worker in error.where:
        return error
    where = error.where.replace(here, f"{here}, on worker {worker}", 1)
    return _again(error, where, error.fix, worker=worker)


def _with_call(error: FlowmlError, call: FailedCall, failures: Path | None) -> FlowmlError:
    if failures is None:
        return _again(error, error.where, error.fix, call=call)
    operator = re.sub(r"[^\w.-]+", "_", call.operator)
    name = f"{operator}-replica{call.replica}-step{call.step}.npz"
    try:
        failures.mkdir(parents=True, exist_ok=True)
        path = call.save(failures / name)
    except (OSError, FlowmlError) as trouble:  # the error of the run counts
        fix = f"{error.fix} It could not be written: {trouble}"
        return _again(error, error.where, fix, call=call)
    words = f"Its input is in {path}: graph.failed_call({str(path)!r}).again() repeats the call."
    fix = error.fix.replace(KEPT, words)
    return _again(error, error.where, fix, call=call, input_file=str(path))


def _with_last_good_step(error: DivergedError, outcome: Outcome) -> FlowmlError:
    last = outcome.steps - 1
    good = f"The last good step is {last}" if last >= 0 else "No step was good"
    staleness, words = _lateness(outcome)
    fix = f"{error.fix} {good}; {words}."
    return _again(error, error.where, fix, last_good_step=last, staleness=staleness)


def _lateness(outcome: Outcome) -> tuple[int, str]:
    """Return the most steps that a read is known to have been late, and words for it."""
    allowed = loosest_staleness(outcome.plan)
    if not allowed:
        return 0, "reads were fresh (all edges are sync)"
    promise = "async" if math.isinf(allowed) else f"stale({int(allowed)})"
    seen = outcome.history.get("staleness", np.zeros(0))
    if len(seen):
        most = int(np.max(seen))
        return most, f"reads were up to {counted(most, 'step')} late ({promise})"
    bound = "any number of steps" if math.isinf(allowed) else counted(int(allowed), "step")
    return 0, f"reads may be {bound} late ({promise})"


def loosest_staleness(plan: Plan) -> float:
    """Return how many steps late the loosest edge of a plan may be; 0 is sync, infinite async."""
    return max((loosest(p.promises) for o in plan.steps for p in o.inputs), default=0.0)
