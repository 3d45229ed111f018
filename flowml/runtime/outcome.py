"""What a run was asked for and what came of it: the same records for every executor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from flowml.errors import FlowmlError
from flowml.events import Event, ReplicaDone
from flowml.layout import Layout
from flowml.plan import Plan
from flowml.runtime.moved import Moved
from flowml.thinning import kept_in_history
from flowml.types import Array, Pytree

Status: TypeAlias = Literal["done", "until", "stopped", "failed"]
"""``until``: an end of the graph; ``stopped``: max_seconds, Ctrl-C or ``Run.stop``."""

HISTORY_COLUMNS = ("step", "replica", "loss", "seconds", "wait_seconds", "staleness", "began")


@dataclass(frozen=True)
class Order:
    """What was asked of a run.

    Attributes
    ----------
    steps, epochs : int or None
        Whichever comes first; one of them is given.
    seed : int
    snapshots : frozenset of int
        Numbers of steps after which the tables are kept.
    max_seconds : float or None
    deadline_seconds : float
        Longest silence of a rank that others wait for.
    step_seconds : float or None
        Longest time that one operator may take.
    on_nonfinite : "stop" or "ignore"
    longest_message : int
        Of what replicas of other hosts and the tables tell each other. Bytes.
    record : bool
        Keep the order of reads and deliveries, from which a loose run is replayed.
    """

    steps: int | None
    epochs: int | None
    seed: int = 0
    snapshots: frozenset[int] = frozenset()
    max_seconds: float | None = None
    deadline_seconds: float = 60.0
    step_seconds: float | None = None
    on_nonfinite: Literal["stop", "ignore"] = "stop"
    longest_message: int = 1 << 30
    record: bool = False
    on_event: Callable[[Event], None] | None = None

    def tell(self, event: Event) -> None:
        """Hand an event to whoever listens."""
        if self.on_event is not None:
            self.on_event(event)


Tables: TypeAlias = dict[str, list[Pytree]]
"""Each table's instances: one for a global table, one a group, or one a replica."""


@dataclass
class Outcome:
    """What a run left: tables, history, metrics."""

    plan: Plan
    status: Status = "done"
    steps: int = 0
    """Committed steps."""
    steps_per_epoch: int = 0
    tables: Tables = field(default_factory=dict)
    snapshots: dict[int, Tables] = field(default_factory=dict)
    history: dict[str, Array] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    dropped_rows: dict[str, int] = field(default_factory=dict)
    unsent: tuple[str, ...] = ()
    """Edges that still keep values of the last steps: nothing is flushed at the end."""
    error: FlowmlError | None = None
    order: Order | None = None
    """What was asked, where a replay needs it."""
    record: Array | None = None
    """Reads and deliveries of a loose run, in their order (loose_rank.EVENT)."""
    workers: tuple[str, ...] = ()
    """Address of the worker of each rank; empty where the run was in the driver."""
    executor: str = ""
    spans: Array | None = None
    """Times of the operators in a sample of the steps (spans.SPAN); None: they were not taken."""
    layouts: Mapping[tuple[str, int], Layout] = field(default_factory=dict)
    """Of what operators make, by (operator, output), where a probe has found them out."""
    moved: Moved = field(default_factory=Moved)
    """Bytes between replicas of a synchronous run on workers."""


def evaluation_due(plan: Plan, step: int, steps_per_epoch: int, last: bool) -> tuple[str, ...]:
    """Return the names of the evaluations to make after ``step`` steps.

    Notes
    -----
    Every so many steps or epochs, and once more after the last step.
    """
    due = []
    for operator in plan.evaluations:
        action: Any = operator.action
        every = action.every * (steps_per_epoch if action.unit == "epochs" else 1)
        if step % every == 0 or last:
            due.append(operator.name)
    return tuple(due)


class HistoryBuilder:
    """Collects rows of the history, thinned after the first thousand steps.

    Notes
    -----
    All rows of the first thousand steps; later every tenth step up to ten times that, then every
    hundredth, and so on: a run of a million steps keeps some ten thousand rows a replica.
    """

    def __init__(self) -> None:
        self._blocks: list[Mapping[str, Array]] = []

    def add(self, block: Mapping[str, Array], since: float = 0.0) -> None:
        """Add rows: columns of equal length, whose first step began at ``since``. Unit: seconds."""
        self._blocks.append({**block, "began": block["began"] + since} if since else block)

    def columns(self) -> dict[str, Array]:
        """Return all rows, ordered by step, then replica."""
        if not self._blocks:
            return {name: np.zeros(0) for name in HISTORY_COLUMNS}
        joined = {n: np.concatenate([b[n] for b in self._blocks]) for n in HISTORY_COLUMNS}
        order = np.lexsort((joined["replica"], joined["step"]))
        return {name: column[order] for name, column in joined.items()}


def history_block(
    steps: Sequence[int] | Array,
    replica: int,
    loss: Array,
    seconds: Array,
    wait_seconds: Array,
    staleness: Array | None = None,
    began: Array | None = None,
) -> dict[str, Array]:
    """Return the thinned rows of one replica, and beside them what all of them come to.

    Parameters
    ----------
    began : ndarray, optional
        Seconds from the first of these steps to each; left out, one begins when the one before has
        ended.
    """
    numbers = np.asarray(steps, np.int64)
    late = np.zeros(len(numbers), np.int32) if staleness is None else staleness
    spent = np.asarray(seconds, np.float64)
    rows: dict[str, Array] = {
        "step": numbers,
        "replica": np.full(len(numbers), replica, np.int32),
        "loss": np.asarray(loss, np.float64),
        "seconds": spent,
        "wait_seconds": np.asarray(wait_seconds, np.float64),
        "staleness": np.asarray(late, np.int32),
        "began": np.cumsum(spent) - spent if began is None else began,
    }
    keep = kept_in_history(numbers)
    return {name: column[keep] for name, column in rows.items()} | totals_of(rows, replica)


class Totals(NamedTuple):
    """What one replica did in a window, before its history was thinned.

    Attributes
    ----------
    replica, steps : int
    loss : float
        Mean of the finite ones; NaN if there is none.
    seconds, wait_seconds : float
    """

    replica: int
    steps: int
    loss: float
    seconds: float
    wait_seconds: float

    @classmethod
    def of(cls, block: Mapping[str, Array]) -> Totals:
        """Return those of a history block."""
        replica, steps, *rest = block["totals"].tolist()
        return cls(int(replica), int(steps), *rest)


def totals_of(rows: Mapping[str, Array], replica: int) -> dict[str, Array]:
    """Return what the rows of one replica come to, under names that are no columns.

    Returns
    -------
    dict of ndarray
        ``"totals"``: the fields of Totals; ``"lateness"``, shape (2, any): steps that reads were
        late, and how many were.
    """
    finite = rows["loss"][np.isfinite(rows["loss"])]
    totals = Totals(
        replica,
        len(rows["step"]),
        finite.mean() if len(finite) else np.nan,
        rows["seconds"].sum(),
        rows["wait_seconds"].sum(),
    )
    late = np.stack(np.unique(rows["staleness"], return_counts=True))
    return {"totals": np.array(totals), "lateness": late}


def tell_done(order: Order, block: Mapping[str, Array], workers: Sequence[str], step: int) -> None:
    """Tell what one replica did in a window that ended after ``step``, if it did anything."""
    if order.on_event is None:
        return
    totals = Totals.of(block)
    if totals.steps:
        late = dict(zip(*block["lateness"].tolist(), strict=True))
        loss = None if np.isnan(totals.loss) else totals.loss
        worker = workers[totals.replica]
        seconds, waited = totals.seconds, totals.wait_seconds
        order.tell(
            ReplicaDone(totals.replica, worker, step, totals.steps, loss, seconds, waited, late)
        )
