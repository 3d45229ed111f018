"""The JSON of ``/flowml/state.json``: the stable contract of the page.

``GET flowml/state.json`` gives the newest run, ``?run=ID`` another one. The page draws from the
same numbers. Within one value of ``version`` fields are added and never change their meaning. A
number that is not known is null. All sizes are bytes, all times seconds.

Numbers from inside a step (``Operator.parts``, ``Replica.within``, ``Edge.lags``) are measured
while somebody looks: asking for the JSON counts as looking for some seconds, so the first answer
may lack them.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, TypedDict

PAGE, TWIN = "flowml", "flowml/state.json"
"""Paths of the page and of its JSON, below those of Dask's dashboard."""
VERSION = 1

Status: TypeAlias = Literal[
    "waiting", "loading", "running", "done", "until", "stopped", "failed", "lost"
]
"""``waiting`` for a slot on the workers; ``until``: ended by the graph; ``lost``: its client is
gone."""
OperatorState: TypeAlias = Literal["idle", "running", "waiting", "blocked", "failed", "ended"]
"""``waiting`` at a barrier; ``blocked`` by the staleness of an edge; ``idle``: nothing known."""
Part: TypeAlias = Literal["compute", "apply", "wait", "transfer", "scheduler"]
"""What a part of a step's time is: computing; sums and writes of tables; waiting for other
replicas; moving values, or waiting for the lock under which they move; between two windows."""


class RunLine(TypedDict):
    """One run in the list."""

    id: str
    graph: str
    status: Status
    step: int
    steps: int | None
    started: float
    """Seconds since the Unix epoch."""


class Point(TypedDict):
    """A value after so many steps and seconds."""

    step: int
    seconds: float
    value: float


class Evaluation(TypedDict):
    """One metric of an evaluation over the run."""

    name: str
    metric: str
    points: list[Point]


class Mark(TypedDict):
    """Something that a curve should show."""

    kind: Literal["worker lost"]
    step: int
    seconds: float
    text: str


class Share(TypedDict):
    """A part of the replicas' time, over the last seconds in which somebody looked."""

    part: Part
    edge: str
    """What is waited for; "" if it is not a wait."""
    share: float
    """From 0 to 1: those of all operators and ``elsewhere`` come to 1."""


class Operator(TypedDict):
    """A vertex of the graph: operators, and tables with kind "table"."""

    name: str
    kind: str
    scope: str
    title: str
    detail: str
    hover: str
    state: OperatorState
    share: float | None
    """Of the replicas' time, its waits included."""
    parts: list[Share]
    left: float
    top: float
    width: float


class Edge(TypedDict):
    """An edge of the graph, or a write of a table."""

    name: str
    """"source -> target"."""
    source: str
    target: str
    promise: str
    bound: int | None
    """Steps that it may lag; null: no bound."""
    words: str
    hover: str
    loose: bool
    """Not sync."""
    loop: bool
    crosses: bool
    """It moves between replicas."""
    lag: int | None
    """Largest of ``lags``."""
    lags: dict[str, int]
    """By replica: steps that its next read would be late."""
    staleness: dict[str, int]
    """Reads so far by how many steps they were late, "64" and all beyond together. Of edges out of
    tables, and of sums with a bound."""
    exact: bool
    """``staleness`` counts every read; else it counts ``lags`` at each look."""
    bytes: float | None
    """So far, after a codec."""
    bytes_per_second: float | None
    ratio: float | None
    """Bytes before the codec by bytes after; null without one."""
    line: str
    head: tuple[float, float]
    label: tuple[float, float]


class Window(TypedDict):
    """Steps of one replica, one window task."""

    start: float
    """Seconds since the run began."""
    seconds: float
    wait_seconds: float
    steps: int


class Replica(TypedDict):
    """One replica and where it is."""

    replica: int
    worker: str
    step: int
    """Steps that it has finished."""
    part: Part | None
    """What it is doing; null while nobody looked."""
    within: str
    """Operator that it is in, or edge that it waits for."""
    since: float | None
    """Seconds for which it has been there."""
    busy: float | None
    """Seconds a step without waits, over its last windows."""
    slowness: float | None
    """``busy`` by the median of the replicas."""
    wait_share: float | None
    behind: int
    """Steps behind the first replica, where each has its own clock."""
    windows: list[Window]


class Said(TypedDict):
    """One event in words."""

    seconds: float
    level: Literal["info", "warning", "error"]
    text: str


class RunSnapshot(RunLine):
    """All that is known of one run."""

    executor: str
    replicas: list[Replica]
    """Slowest first."""
    promises: str
    seconds: float
    """Since the run began; up to its end."""
    loss: float | None
    steps_per_second: float | None
    remaining_seconds: float | None
    checkpoint_seconds: float | None
    """Age of the last checkpoint; null while flowml makes none."""
    metrics: dict[str, float]
    """Last evaluations as "name metric"."""
    looked_at: bool
    """Numbers from inside a step are coming in."""
    losses: list[Point]
    evaluations: list[Evaluation]
    marks: list[Mark]
    operators: list[Operator]
    edges: list[Edge]
    elsewhere: list[Share]
    """Parts of the replicas' time that are no operator's: "transfer", "scheduler", and "wait" at a
    barrier that is for no edge."""
    width: float
    height: float
    events: list[Said]


class State(TypedDict):
    """The whole answer."""

    version: int
    flowml: str
    """Version of the package."""
    time: float
    """Seconds since the Unix epoch."""
    runs: list[RunLine]
    """Newest first."""
    run: RunSnapshot | None
