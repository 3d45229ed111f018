"""All that the scheduler knows of one run: its card, and what events and reports have said since.

A state machine without input or output. All buffers are bounded: what is kept of a run does not
grow with its steps.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from flowml.dashboard.contract import Evaluation, Mark, RunLine, RunSnapshot, Said, Status
from flowml.dashboard.flows import EdgeState
from flowml.dashboard.replicas import ReplicaState, ranked, windows_of_each
from flowml.dashboard.series import Series
from flowml.dashboard.shares import Shares, operator_of

MOST_EVENTS = 200
MOST_MARKS = 50
RATE_WINDOWS = 8
"""The steps a second are taken over so many windows."""
FRESH_SECONDS = 3.0
"""Reports older than this are of a time when nobody looked."""
ENDED = frozenset({"done", "until", "stopped", "failed", "lost"})

Message = Mapping[str, Any]


class RunState:
    """One run.

    Parameters
    ----------
    key : str
        Names the run on the page.
    card : mapping
        RunCard as a message.
    client : str
        Who runs it.
    now, started : float
        Seconds of a monotonic clock, and since the Unix epoch.
    """

    def __init__(self, key: str, card: Message, client: str, now: float, started: float) -> None:
        self.key, self.card, self.client, self.started = key, card, client, started
        self.status: Status = "waiting"
        self.name = ""
        """What the runtime calls the run, once it has been admitted."""
        self.step = 0
        self.steps: int | None = None
        self.loss: float | None = None
        self.changes = 0
        """How often anything was taken in."""
        self._began = now
        self._ended: float | None = None
        self._reported = -math.inf
        self._fallen = ""
        self._paces: deque[tuple[float, int]] = deque(maxlen=RATE_WINDOWS)
        self._last_rate: float | None = None
        self._window_losses: dict[int, float] = {}
        self._losses = Series()
        self._evaluations: dict[tuple[str, str], Series] = {}
        self._metrics: dict[str, float] = {}
        self._marks: deque[Mark] = deque(maxlen=MOST_MARKS)
        self._events: deque[Said] = deque(maxlen=MOST_EVENTS)
        kept = windows_of_each(card["replicas"])
        self.replicas = [
            ReplicaState(rank, worker, deque(maxlen=kept))
            for rank, worker in enumerate(card["workers"])
        ]
        self.edges = {edge["name"]: EdgeState(edge) for edge in card["edges"]}
        self._reads = self._loop_reads()

    def _loop_reads(self) -> list[EdgeState]:
        """Return the edges whose staleness the history counts: one loose read, or all sync ones.

        Notes
        -----
        The history has one number a read, the largest of all edges. With several loose ones it
        cannot be said whose it was; then the lags are counted that are seen.
        """
        tables = {v["name"] for v in self.card["vertices"] if v["kind"] == "table"}
        readers = {v["name"] for v in self.card["vertices"] if v["scope"] == "replica"}
        reads = [
            e
            for e in self.edges.values()
            if e.card["source"] in tables and e.card["target"] in readers
        ]
        loose = [e for e in reads if e.card["loose"]]
        found = loose if len(loose) == 1 else [] if loose else reads
        for edge in found:
            edge.exact = True
        return found

    @property
    def is_over(self) -> bool:
        """Whether the run has ended."""
        return self.status in ENDED

    @property
    def workers(self) -> tuple[str, ...]:
        """The workers of its ranks, each once."""
        return tuple(dict.fromkeys(self.card["workers"]))

    # -- events of the driver ----------------------------------------------------------------

    def take(self, event: Message, now: float) -> None:
        """Take in an event: its fields, and its class as ``kind``."""
        self.changes += 1
        takers: dict[str, Callable[[Message, float], None]] = {
            "RunStarted": self._run_started,
            "Loaded": self._loaded,
            "WindowDone": self._window_done,
            "ReplicaDone": self._replica_done,
            "Evaluated": self._evaluated,
            "WorkerLost": self._worker_lost,
            "Warned": self._warned,
            "Finished": self._finished,
        }
        taker = takers.get(event["kind"])
        if taker is not None and not self.is_over:
            taker(event, now - self._began)

    def _say(self, at: float, text: str, level: Any = "info") -> None:
        self._events.append(Said(seconds=at, level=level, text=text))

    def _run_started(self, event: Message, at: float) -> None:
        self.status, self.name, self.steps = "loading", event["run_id"], event["steps"]
        count = event["replicas"]
        self._say(
            at, f"started with {count} replica{'s' if count != 1 else ''}, {event['executor']}"
        )

    def _loaded(self, event: Message, at: float) -> None:
        self._say(
            at, f"{event['operator']}: {event['rows']:,} rows in {event['partitions']} parts loaded"
        )

    def _replica_done(self, event: Message, at: float) -> None:
        rank = int(event["replica"])
        self.replicas[rank].done(event, at)
        for edge in self._reads:
            edge.read(event["staleness"])
        if event["loss"] is not None:
            self._window_losses[rank] = float(event["loss"])

    def _window_done(self, event: Message, at: float) -> None:
        if self.status != "running":
            self.status = "running"
            self._say(at, "first steps done")
            self._paces.append((max(0.0, at - float(event["seconds"])), 0))
        self.step = int(event["step"]) + 1
        self._paces.append((at, self.step))
        losses = list(self._window_losses.values())
        self._window_losses.clear()
        loss = sum(losses) / len(losses) if losses else event["loss"]
        if loss is not None and math.isfinite(loss):
            self.loss = float(loss)
            self._losses.add(self.step, at, self.loss)

    def _evaluated(self, event: Message, at: float) -> None:
        words = []
        for metric, value in event["metrics"].items():
            words.append(f"{metric} {value:.4g}")
            if math.isfinite(value):
                key = (event["name"], metric)
                self._evaluations.setdefault(key, Series()).add(event["step"], at, float(value))
                self._metrics[f"{event['name']} {metric}"] = float(value)
        self._say(at, f"{event['name']} after {event['step']:,} steps: {', '.join(words)}")

    def _worker_lost(self, event: Message, at: float) -> None:
        text = f"worker {event['worker']} lost"
        self._marks.append(Mark(kind="worker lost", step=event["step"], seconds=at, text=text))
        self._say(at, f"{text} after {event['step']:,} steps", "error")

    def _warned(self, event: Message, at: float) -> None:
        self._say(at, event["text"], "warning")

    def _finished(self, event: Message, at: float) -> None:
        self.step = int(event["step"]) or self.step  # not known where the driver itself failed
        self._fallen = event["operator"]
        words = {"done": "done", "until": "ended by the graph"}.get(
            event["status"], event["status"]
        )
        self._say(
            at,
            f"{words} after {self.step:,} steps"
            + (f": {event['error']}" if event["error"] else ""),
            "error" if event["error"] else "info",
        )
        self._end(event["status"], at)

    def lose(self, why: str, now: float) -> None:
        """End a run of which nothing more will be heard."""
        if not self.is_over:
            self.changes += 1
            self._say(now - self._began, why, "error")
            self._end("lost", now - self._began)

    def _end(self, status: Status, at: float) -> None:
        self._last_rate = self.rate()
        self.status, self._ended = status, at

    # -- reports of workers ------------------------------------------------------------------

    def report(self, message: Message, now: float) -> None:
        """Take in what a worker tells while somebody looks."""
        if self.is_over:
            return
        self.changes += 1
        at = self._reported = now - self._began
        for rank in message["ranks"]:
            self.replicas[rank["rank"]].report(rank, float(message["between_hosts"]), at)
        first = max(message["clocks"], default=0)
        for rank, clock in enumerate(message["clocks"]):
            self.replicas[rank].behind = first - clock
        for name, replica, steps, _ in message["lags"]:
            if name in self.edges:
                self.edges[name].lag(replica, steps)
        for name, raw, sent in message["sent"]:
            if name in self.edges:
                self.edges[name].sent[message["worker"]] = (raw, sent)

    # -- looks -------------------------------------------------------------------------------

    def line(self) -> RunLine:
        """Return what the list of runs says."""
        return RunLine(
            id=self.key,
            graph=self.card["graph"],
            status=self.status,
            step=self._step_now(),
            steps=self.steps,
            started=self.started,
        )

    def snapshot(self, now: float) -> RunSnapshot:
        """Return all of it as JSON."""
        at = self._ended if self._ended is not None else now - self._began
        shares = Shares.of(r.shares() for r in self.replicas)
        loose = frozenset(name for name, e in self.edges.items() if e.card["loose"])
        rate = self.rate()
        left = None if self.steps is None else self.steps - self._step_now()
        moving = None if self.is_over else rate
        return RunSnapshot(
            **self.line(),
            executor=self.card["executor"],
            replicas=ranked(self.replicas, at, over=self.is_over),
            promises=self.card["promises"],
            seconds=at,
            loss=self.loss,
            steps_per_second=rate,
            remaining_seconds=left / moving if left is not None and moving else None,
            checkpoint_seconds=None,
            metrics=dict(self._metrics),
            looked_at=not self.is_over and at - self._reported < FRESH_SECONDS,
            losses=self._losses.points(),
            evaluations=[
                Evaluation(name=name, metric=metric, points=series.points())
                for (name, metric), series in self._evaluations.items()
            ],
            marks=list(self._marks),
            operators=[
                operator_of(v, shares, loose, self._fallen, over=self.is_over)
                for v in self.card["vertices"]
            ],
            edges=[e.snapshot(self._step_now(), moving) for e in self.edges.values()],
            elsewhere=shares.others({v["name"] for v in self.card["vertices"]}),
            width=self.card["width"],
            height=self.card["height"],
            events=list(reversed(self._events)),
        )

    def _step_now(self) -> int:
        """Return the steps that are done: windows tell them late, reports while somebody looks."""
        if self.is_over or not self.replicas:
            return self.step
        return max(self.step, min(r.step for r in self.replicas))

    def rate(self) -> float | None:
        """Return the steps a second, over the last windows; of a run that is over, its last."""
        if self.is_over:
            return self._last_rate
        if len(self._paces) < 2:
            return None
        (since, first), (until, last) = self._paces[0], self._paces[-1]
        return (last - first) / (until - since) if until > since else None
