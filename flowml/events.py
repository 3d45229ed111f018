"""What happens in a run, as records: the progress line, the history and the dashboard listen.

Steps count from 0; where a record speaks of a finished step, ``step`` is that step's number.
Seconds are of a monotonic clock: differences between two moments of one machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Status: TypeAlias = Literal["done", "until", "stopped", "failed"]
"""How a run ended: at its steps, at an end of the graph, by request or time, by an error."""


@dataclass(frozen=True)
class RunStarted:
    """A run was admitted and is about to load its data.

    Attributes
    ----------
    run_id : str
        Hexadecimal digits that no other run has.
    graph : str
        Name of the graph.
    executor : str
        ``"serial"``, ``"tasks"``, ``"resident"`` or ``"simulated"``.
    replicas : int
    steps : int or None
        Steps that the run will make at most; None where only the data end it.
    """

    run_id: str
    graph: str
    executor: str
    replicas: int
    steps: int | None = None


@dataclass(frozen=True)
class Loaded:
    """A load operator has its data in place.

    Attributes
    ----------
    operator : str
    partitions : int
    rows : int
        Examples, over all replicas.
    """

    operator: str
    partitions: int
    rows: int


@dataclass(frozen=True)
class WindowDone:
    """All replicas have finished a window of steps.

    Attributes
    ----------
    step : int
        The last step of the window.
    seconds : float
        Wall time of the window.
    steps : int
        Steps in the window, >= 1.
    loss : float or None
        Loss of the last step, weighed over the replicas; None where the graph has no loss.
    """

    step: int
    seconds: float
    steps: int = 1
    loss: float | None = None


@dataclass(frozen=True)
class ReplicaDone:
    """One replica has finished a window of steps; told before the window's WindowDone.

    Attributes
    ----------
    replica : int
    worker : str
        Address of its worker.
    step : int
        The last step of the window.
    steps : int
        Steps in the window, >= 1.
    loss : float or None
        Mean over the steps that had examples; None where there are none, or no loss.
    seconds : float
        Wall time of the steps, waiting included.
    wait_seconds : float
        The part of ``seconds`` in which the replica waited for others.
    staleness : mapping of int to int
        How many reads of the window were so many steps late.
    """

    replica: int
    worker: str
    step: int
    steps: int
    loss: float | None
    seconds: float
    wait_seconds: float
    staleness: Mapping[int, int]


@dataclass(frozen=True)
class Evaluated:
    """An evaluation is known.

    Attributes
    ----------
    step : int
        The step after which the table was read.
    name : str
        Name of the evaluate operator.
    metrics : mapping of str to float
        Averages over the examples of the source.
    """

    step: int
    name: str
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class WorkerLost:
    """A worker left the run.

    Attributes
    ----------
    worker : str
        Its address.
    step : int
        The last step that was committed with it.
    """

    worker: str
    step: int


@dataclass(frozen=True)
class PageOpened:
    """The run can be watched in Dask's dashboard.

    Attributes
    ----------
    link : str
        Address of the page, as Dask's configuration forms it (``distributed.dashboard.link``).
    """

    link: str


@dataclass(frozen=True)
class Warned:
    """Something that the user should know and that does not end the run."""

    text: str


@dataclass(frozen=True)
class Finished:
    """The run is over.

    Attributes
    ----------
    status : {"done", "until", "stopped", "failed"}
    step : int
        Steps committed.
    seconds : float
        Wall time of the run.
    error : str
        What ended it, in one line; "" unless it failed.
    operator : str
        The operator that failed, or several with commas between; "" if it was none.
    """

    status: Status
    step: int
    seconds: float
    error: str = ""
    operator: str = ""


Event: TypeAlias = (
    RunStarted
    | Loaded
    | WindowDone
    | ReplicaDone
    | Evaluated
    | WorkerLost
    | PageOpened
    | Warned
    | Finished
)
"""Anything that a listener may be given."""
