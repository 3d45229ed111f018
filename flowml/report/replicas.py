"""The timeline of the replicas in a report: strips over the run, single steps, a ranking."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowml.compiler.shown import shown_seconds
from flowml.report.figures import steps_figure, waits_figure
from flowml.report.page import Section, table
from flowml.timeline import Pace, Timeline
from flowml.types import Array

MOST_ROWS = 24
"""Replicas that are drawn: the slower half of them the slowest of all."""
BINS = 160
SHOWN_STEPS = 40
FIRST_SHOWN = 8
"""The steps before fill caches."""


def replica_section(timeline: Timeline, *, waits_first: bool) -> Section:
    """Return who computed and who waited when, the slowest replica first."""
    paces = timeline.paces()
    shown = _shown(paces)
    names = {pace.replica: _name(pace) for pace in shown}
    edges, waits = _waits(timeline, list(names))
    figures: dict[str, Any] = {"waits": waits_figure(list(names.values()), edges, waits)}
    columns = _single_steps(timeline, names, waits_first=waits_first)
    if columns["what"]:
        figures["steps"] = steps_figure(list(names.values()), columns)
    rows = [
        (
            _name(pace),
            pace.worker or "driver",
            shown_seconds(pace.busy_seconds),
            f"{pace.ratio:.2f}",
            f"{pace.wait_share:.0%}",
            f"{pace.steps:,}",
        )
        for pace in shown
    ]
    header = ("replica", "worker", "busy a step", "times the others", "waits", "steps kept")
    marked = [number for number, pace in enumerate(shown) if pace.straggles]
    some = f"{len(shown)} of {len(paces)} replicas: the slowest, and others evenly. "
    return Section(
        "Replicas",
        table(header, rows, marked=marked),
        figures,
        (some if len(shown) < len(paces) else "")
        + "The slowest is at the top. Busy is the median of its steps without waits for others.",
    )


def straggler_words(timeline: Timeline) -> str:
    """Say who holds up the others, or "" where nobody does."""
    slow = timeline.straggler
    if slow is None:
        return ""
    others = [pace.wait_share for pace in timeline.paces() if pace.replica != slow.replica]
    waits = float(np.mean(others)) if others else 0.0
    held = f"; they wait {waits:.0%} of their time" if waits >= 0.05 else ""
    return (
        f"{slow.name} is a straggler: its steps take {slow.ratio:.1f} times as long as the median "
        f"of the others{held}."
    ).capitalize()


def _name(pace: Pace) -> str:
    return f"replica {pace.replica}"


def _shown(paces: tuple[Pace, ...]) -> tuple[Pace, ...]:
    """Return the replicas to draw: the slowest ones, and some of the others."""
    if len(paces) <= MOST_ROWS:
        return paces
    slowest, rest = paces[: MOST_ROWS // 2], paces[MOST_ROWS // 2 :]
    picked = np.linspace(0, len(rest) - 1, MOST_ROWS - len(slowest)).astype(int)
    return (*slowest, *(rest[number] for number in picked))


def _waits(timeline: Timeline, replicas: list[int]) -> tuple[Array, Array]:
    """Return edges of bins, and for each replica the part of each bin that it waited."""
    steps = timeline.steps
    ended = steps["began"] + steps["seconds"]
    edges = np.linspace(0.0, float(ended.max(initial=1e-9)), BINS + 1)
    waits = np.full((len(replicas), BINS), np.nan)
    rows = steps.by_replica()
    for row, replica in enumerate(replicas):
        mine = rows[replica]
        middle = steps["began"][mine] + steps["seconds"][mine] / 2
        at = np.clip(np.searchsorted(edges, middle) - 1, 0, BINS - 1)
        spent = np.bincount(at, steps["seconds"][mine], BINS)
        waited = np.bincount(at, steps["wait_seconds"][mine], BINS)
        known = spent > 0
        waits[row, known] = waited[known] / spent[known]
        _fill_gaps(waits[row])
    return edges, waits


def _fill_gaps(row: Array) -> None:
    """Let a bin without the middle of a step say what the one before says.

    Notes
    -----
    A long step has its middle in one of the bins that it covers, and later steps are thinned.
    """
    known = np.flatnonzero(np.isfinite(row))
    if len(known):
        upto = np.searchsorted(known, np.arange(known[-1] + 1), side="right") - 1
        row[: known[-1] + 1] = row[known[np.maximum(upto, 0)]]


def _single_steps(
    timeline: Timeline, names: dict[int, str], *, waits_first: bool
) -> dict[str, list[Any]]:
    """Return some consecutive steps as bars of computing and waiting."""
    steps = timeline.steps
    first = FIRST_SHOWN if steps["step"].max(initial=0) > 2 * FIRST_SHOWN else 0
    window = (steps["step"] >= first) & (steps["step"] < first + SHOWN_STEPS)
    chosen = window & np.isin(steps["replica"], list(names))
    found: dict[str, list[Any]] = {n: [] for n in ("replica", "step", "left", "right", "what")}
    columns = ("replica", "step", "began", "seconds", "wait_seconds")
    for replica, step, began, seconds, waited in zip(
        *(steps[name][chosen].tolist() for name in columns), strict=True
    ):
        middle = began + (waited if waits_first else seconds - waited)
        bars = [(began, middle, waits_first), (middle, began + seconds, not waits_first)]
        for left, right, waits in bars:
            if right > left:
                values = (names[replica], step, left, right, "waits" if waits else "computes")
                for name, value in zip(found, values, strict=True):
                    found[name].append(value)
    return found
