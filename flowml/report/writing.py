"""From what a run leaves to its report: each section says one thing."""

from __future__ import annotations

import math
import os
import platform
import sys
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from dask.utils import format_bytes

from flowml.aftermath import loosest_staleness
from flowml.compiled import CompiledPlan
from flowml.compiler.promises import resolve
from flowml.compiler.shown import shown_seconds
from flowml.drawing import as_svg
from flowml.graph import LogicalGraph
from flowml.history import History
from flowml.moved import counted_bytes, edge_bytes
from flowml.report.figures import loss_figure, metric_figure, staleness_figure
from flowml.report.page import Section, facts, render, table, verdict, write
from flowml.report.replicas import replica_section, straggler_words
from flowml.runtime.loose_plan import is_loose
from flowml.runtime.outcome import Outcome
from flowml.timeline import Timeline
from flowml.types import Array

PACKAGES = ("flowml", "dask", "distributed", "numpy", "scipy", "scikit-learn", "bokeh", "networkx")
MOST_METRICS = 6
"""Metrics that are drawn; all are in the table."""
KINDS = {"read": "read", "deliver": "delivered", "leave": "left"}
LARGEST_PLAN = 20_000
"""Characters of a plan that are shown: the trees of a thousand replicas are long."""


def write_report(path: str | Path, graph: LogicalGraph, outcome: Outcome) -> Path:
    """Write the report of a run as one HTML file; return its path."""
    timeline = Timeline(outcome)
    known = len(outcome.history["step"]) > 0
    sections = [
        _graph_section(graph, timeline),
        *([_loss_section(outcome, timeline)] if known else []),
        *([_metric_section(outcome, timeline)] if outcome.metrics else []),
        *([replica_section(timeline, waits_first=is_loose(outcome.plan))] if known else []),
        _staleness_section(outcome),
        _bytes_section(outcome),
        Section("Plan", f"<pre>{_escaped(_plan_words(outcome))}</pre>"),
        version_section(outcome),
    ]
    subtitle = f"{graph.name}, {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"
    page = render(f"Run of {graph.name}", subtitle, _head(outcome, timeline), sections)
    return write(path, page)


def _head(outcome: Outcome, timeline: Timeline) -> str:
    rate = outcome.steps / outcome.seconds if outcome.seconds else 0.0
    _, losses = History(outcome.history).mean_loss()
    values = {
        "status": outcome.status,
        "steps": f"{outcome.steps:,}",
        _clock(outcome): f"{outcome.seconds:,.3g}",
        "steps a second": f"{rate:,.0f}" if rate >= 10 else f"{rate:.3g}",
        "last loss": f"{losses[-1]:.4g}" if len(losses) else "",
        "replicas": f"{outcome.plan.replicas:,}",
        "executor": outcome.executor,
    }
    words = [verdict(str(outcome.error), warns=True)] if outcome.error is not None else []
    straggler = straggler_words(timeline)
    if straggler:
        words.append(verdict(straggler, warns=True))
    shares = timeline.shares()
    if shares:
        ranked = sorted(shares.items(), key=lambda item: -item[1])[:3]
        found = ", ".join(f"{name} {share:.0%}" for name, share in ranked)
        words.append(verdict(f"The time of a replica goes to {found}."))
    return facts(values) + "".join(words)


def _clock(outcome: Outcome) -> str:
    return "virtual seconds" if outcome.executor == "simulated" else "seconds"


def _graph_section(graph: LogicalGraph, timeline: Timeline) -> Section:
    shares = timeline.shares()
    operators = {o.name: shares.get(o.name, 0.0) for o in graph.operators if shares}
    rest = {k: v for k, v in shares.items() if k not in operators}
    note = "Where its operators were not timed, a drawing has no shares: this executor takes none."
    if shares:
        beside = ", ".join(f"{name} {share:.0%}" for name, share in rest.items())
        note = f"Bars are shares of a replica's time, from a sample of its steps; beside: {beside}."
    drawing = as_svg(graph, resolve(graph), {k: v for k, v in operators.items() if v})
    return Section("Graph", f'<div class="drawing">{drawing}</div>', note=note)


def _loss_section(outcome: Outcome, timeline: Timeline) -> Section:
    steps, losses = History(outcome.history).mean_loss()
    if not len(steps):
        return Section("Loss", note="The graph has no gradient, so there is no loss.")
    evaluated = {
        f"{name} {metric}": (at, values)
        for name, metric, at, values in _series(outcome)
        if metric == "loss"
    }
    by_time = {name: (timeline.finished(at), v) for name, (at, v) in evaluated.items()}
    seconds = _clock(outcome)
    figures = {
        "steps": loss_figure(steps + 1, losses, "steps", evaluated),
        "seconds": loss_figure(timeline.finished(steps + 1), losses, seconds, by_time),
    }
    return Section("Loss", figures=figures, note="Mean over the replicas' batches.")


def _series(outcome: Outcome) -> list[tuple[str, str, Array, Array]]:
    """Return (evaluation, metric, steps, values) of all that was evaluated."""
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in outcome.metrics:
        for metric, value in row.items():
            if metric not in ("step", "name", "seconds"):
                found.setdefault((row["name"], metric), []).append((row["step"], value))
    series = []
    for (name, metric), points in found.items():
        steps, values = np.array(points, np.float64).T
        series.append((name, metric, steps, values))
    return series


def _metric_section(outcome: Outcome, timeline: Timeline) -> Section:
    series = _series(outcome)
    rows = [
        (name, metric, f"{values[-1]:.6g}", f"{values.min():.6g}", f"{values.max():.6g}",
         f"{int(steps[-1]):,}", shown_seconds(float(timeline.finished(steps[-1])[0])))
        for name, metric, steps, values in series
    ]  # fmt: skip
    header = ("evaluation", "metric", "last", "lowest", "highest", "after steps", "after")
    drawn = [s for s in series if s[1] != "loss"][:MOST_METRICS]
    figures: dict[str, Any] = {
        f"{name} {metric}": metric_figure(f"{name} {metric}", steps, values, "steps")
        for name, metric, steps, values in drawn
    }
    return Section("Evaluations", table(header, rows), figures)


def _staleness_section(outcome: Outcome) -> Section:
    staleness, bound = outcome.history["staleness"], loosest_staleness(outcome.plan)
    if not bound or not len(staleness):
        return Section("Staleness", note="All edges are sync: every read was fresh.")
    allowed = "async edges have no bound" if math.isinf(bound) else f"the bound is {bound:g}"
    note = (
        f"Steps that the parameters of a step were late: at most {int(staleness.max())}, "
        f"{float(np.mean(staleness)):.2f} on average; {allowed}."
    )
    return Section(
        "Staleness", figures={"staleness": staleness_figure(staleness, bound)}, note=note
    )


def _bytes_section(outcome: Outcome) -> Section:
    rows = [
        (
            edge.edge,
            edge.promise,
            "" if edge.every == 1 else f"every({edge.every})",
            edge.codec,
            _bytes(edge.a_step),
            _bytes(None if edge.a_step is None else edge.a_step * outcome.steps),
            "" if edge.smaller is None else f"{edge.smaller:.1f} x",
        )
        for edge in edge_bytes(outcome)
    ]
    if not rows:
        return Section("Bytes", note="Nothing crosses between replicas.")
    header = ("edge", "promise", "period", "codec", "a step", "whole run", "smaller by")
    note = "What crosses between replicas, over all of them: contributions, and copies of tables."
    if outcome.record is not None:
        counted = counted_bytes(outcome.record)
        found = ", ".join(f"{format_bytes(n)} {KINDS[k]}" for k, n in counted.items() if n)
        note += f" Counted in the record of this run: {found}."
    return Section("Bytes", table(header, rows), note=note)


def _bytes(count: float | None) -> str:
    return "?" if count is None else format_bytes(round(count))


def _plan_words(outcome: Outcome) -> str:
    words = str(CompiledPlan(outcome.plan))
    if len(words) <= LARGEST_PLAN:
        return words
    return f"{words[:LARGEST_PLAN]}\n... ({len(words) - LARGEST_PLAN:,} characters more)"


def version_section(outcome: Outcome | None = None) -> Section:
    """Return what a page was made with, and the options of a run."""
    rows = [
        ("python", sys.version.split()[0]),
        *((name, version(name)) for name in PACKAGES),
        ("system", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"),
    ]
    if outcome is not None:
        rows.append(("BLAS threads a replica", str(outcome.plan.blas_threads)))
        names = ("steps", "epochs", "seed", "max_seconds", "on_nonfinite", "record")
        given = ((name, getattr(outcome.order, name, None)) for name in names)
        rows += [(name, str(value)) for name, value in given if value is not None]
    half = -(-len(rows) // 2)
    tables = (table(("what", "which"), part) for part in (rows[:half], rows[half:]))
    body = "".join(f"<div>{part}</div>" for part in tables)
    title = "Versions" if outcome is None else "Versions and options"
    return Section(title, f'<div class="side">{body}</div>')


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
