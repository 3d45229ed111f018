"""From times to medians, ratios and text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sync_case import REPLICAS, Case

LABELS = {
    "floor": "floor: gather + gradient, 2 free processes",
    "flowml": "flowml resident, wall time a step",
    "ddp": "torch DDP with gloo",
    "dask": "Dask graph, every operator a task",
    "mpi": "MPI Allreduce (mpi4py)",
    "numpy1": "one NumPy process, batch x 2, 1 BLAS thread",
    "numpy2": "one NumPy process, batch x 2, 2 BLAS threads",
}
CONTENDERS = tuple(LABELS)
RATIOS = (
    "ddp/flowml",
    "dask/flowml",
    "flowml/floor",
    "flowml/mpi",
    "numpy1/flowml",
    "numpy2/flowml",
)
SAME = 1e-4
"""Parameters of contenders that do the same arithmetic differ by less, relative to the largest."""


@dataclass
class Measured:
    """What one contender needed in one case.

    Attributes
    ----------
    steps : int
        A repetition.
    samples : list of float
        Seconds a step, one a repetition, in the order in which they were taken.
    median_steps : list of float
        Of flowml: median over the steps of rank 0, one a repetition.
    """

    steps: int
    samples: list[float]
    median_steps: list[float]

    def summary(self) -> dict[str, Any]:
        """Return medians and range in microseconds."""
        samples = [round(1e6 * s, 2) for s in self.samples]
        found: dict[str, Any] = {
            "median_us": round(statistics.median(samples), 2),
            "min_us": min(samples),
            "max_us": max(samples),
            "steps": self.steps,
            "samples_us": samples,
        }
        if self.median_steps:
            found["median_step_of_rank_0_us"] = round(1e6 * statistics.median(self.median_steps), 2)
        return found


def ratios(contenders: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """Return each ratio of medians; None where one of the two did not run."""
    found: dict[str, float | None] = {}
    for name in RATIOS:
        above, below = (contenders[part].get("median_us") for part in name.split("/"))
        found[name] = round(above / below, 3) if above and below else None
    return found


def crossing(gains: Sequence[tuple[float, float]]) -> tuple[str, float]:
    """Return from where on gains stay above 1.

    Parameters
    ----------
    gains : sequence of (gradient time, gain)

    Returns
    -------
    kind : "everywhere", "nowhere" or "from"
    time : float
        The smallest or the largest gradient time measured, or the one at which the gain is 1,
        on a line through the two settings around it on log-log axes.

    Examples
    --------
    >>> crossing([(10.0, 0.5), (1000.0, 2.0)])
    ('from', 100.0)
    >>> crossing([(10.0, 1.5)]), crossing([(10.0, 0.9)])
    (('everywhere', 10.0), ('nowhere', 10.0))
    """
    ordered = sorted(gains)
    last = max((n for n, (_, gain) in enumerate(ordered) if gain <= 1), default=-1)
    if last < 0:
        return "everywhere", ordered[0][0]
    if last == len(ordered) - 1:
        return "nowhere", ordered[-1][0]
    (x0, y0), (x1, y1) = (tuple(map(math.log, pair)) for pair in ordered[last : last + 2])
    return "from", round(math.exp(x0 - y0 * (x1 - x0) / (y1 - y0)), 1)


def crossings(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return for one NumPy process from which gradient time on two replicas beat it."""
    found = {}
    for name in ("numpy1", "numpy2"):
        gains = [
            (r["contenders"]["floor"]["median_us"], r["ratios"][f"{name}/flowml"]) for r in results
        ]
        kind, time = crossing(gains)
        found[name] = {"kind": kind, "gradient_us": time}
    return found


def case_text(case: Case, result: Mapping[str, Any]) -> str:
    """Return one setting as text."""
    lines = [
        f"{case.model}, batch {case.batch} a replica: us a step"
        f"{'median':>21}{'min':>11}{'max':>11}{'steps':>9}"
    ]
    for name, found in result["contenders"].items():
        if "skipped" in found:
            lines.append(f"  {LABELS[name]:<46} not run: {found['skipped']}")
            continue
        numbers = "".join(f"{found[k]:>11.1f}" for k in ("median_us", "min_us", "max_us"))
        lines.append(f"  {LABELS[name]:<46}{numbers}{found['steps']:>9}")
        if name == "flowml":
            step = found["median_step_of_rank_0_us"]
            lines.append(f"  {'  (median step of rank 0, not the headline)':<46}{step:>11.1f}")
    for name, difference in result["difference_from_flowml"].items():
        if difference > SAME:
            lines.append(f"  {LABELS[name]} does NOT reach flowml's parameters: {difference:.1e}")
    return "\n".join(lines)


def ratio_text(results: Sequence[Mapping[str, Any]]) -> str:
    """Return all ratios as a table."""
    lines = [f"{'ratios of medians':<26}" + "".join(f"{name:>15}" for name in RATIOS)]
    for result in results:
        values = [result["ratios"][name] for name in RATIOS]
        shown = "".join(f"{'-' if v is None else f'{v:.2f}':>15}" for v in values)
        lines.append(f"{result['model'] + ', batch ' + str(result['batch']):<26}{shown}")
    return "\n".join(lines)


def crossing_text(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the last line: where two replicas begin to pay."""
    parts = []
    for name, threads in (("numpy1", "1 BLAS thread"), ("numpy2", "2 BLAS threads")):
        kind, time = found[name]["kind"], found[name]["gradient_us"]
        where = {
            "from": f"from a gradient of {time:,.0f} us on",
            "everywhere": f"at every setting measured (gradients of {time:,.0f} us and more)",
            "nowhere": f"at no setting measured (gradients of up to {time:,.0f} us)",
        }[kind]
        parts.append(f"one NumPy process with {threads} {where}")
    return (
        f"On this machine {REPLICAS} replicas beat {'; '.join(parts)}. "
        "(Gradient: one replica's batch gathered and differentiated, as the floor is.)"
    )
