"""One progress line on stderr, on a terminal only: a listener for the events of a run."""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from flowml.events import (
    Evaluated,
    Event,
    Finished,
    Loaded,
    PageOpened,
    ReplicaDone,
    RunStarted,
    Warned,
    WindowDone,
    WorkerLost,
)

BAR_WIDTH = 24


class ProgressLine:
    """Shows a run as one line, and after it one line of summary; otherwise nothing.

    Parameters
    ----------
    show : bool, optional
        True shows it anywhere, False nowhere; left out, on a terminal only.
    stream : file, optional
        Where it is written, by default stderr.

    Notes
    -----
    Pass it as ``on_event=``: events may come from any thread. As a context manager it takes its
    line off the terminal however the block ends.
    """

    def __init__(self, show: bool | None = None, stream: TextIO | None = None) -> None:
        self._console = Console(
            file=stream or sys.stderr,
            highlight=False,
            markup=False,
            soft_wrap=True,
            force_terminal=True if show else None,
        )
        self.visible = self._console.is_terminal if show is None else show
        self._lock = threading.Lock()
        self._progress: Progress | None = None
        self._total: int | None = None
        self._facts = _Facts()

    def __enter__(self) -> ProgressLine:
        """Return the listener."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the line off the terminal."""
        self.close()

    def __call__(self, event: Event) -> None:
        """Take one event."""
        if self.visible:
            with self._lock:
                self._take(event)

    def close(self) -> None:
        """Take the line off the terminal; safe to call again."""
        with self._lock:
            self._stop()

    def _take(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._begin(event)
        elif isinstance(event, Finished):
            self._stop()
            self._console.print(summary(event, self._facts))
        elif isinstance(event, Warned):
            self._console.print(f"warning: {event.text}")
        elif isinstance(event, PageOpened):
            self._console.print(f"dashboard {event.link}")
        elif isinstance(event, WorkerLost):
            self._console.print(f"lost worker {event.worker} after step {event.step}")
        else:
            self._facts.take(event)
            self._draw()

    def _begin(self, event: RunStarted) -> None:
        self._stop()
        self._total, self._facts = event.steps, _Facts(started=event)
        columns = [
            TextColumn("{task.description}"),
            BarColumn(BAR_WIDTH),
            TextColumn("{task.fields[words]}"),
        ]
        self._progress = Progress(
            *columns, console=self._console, auto_refresh=False, transient=True
        )
        self._progress.add_task("loading", total=self._total, words=self._facts.words())
        self._progress.start()

    def _draw(self) -> None:
        if self._progress is None:
            return
        done = self._facts.steps
        of = "" if self._total is None else f"/{self._total}"
        self._progress.update(
            self._progress.task_ids[0],
            completed=done,
            description=f"step {done}{of}" if done else "loading",
            words=self._facts.words(),
        )
        self._progress.refresh()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class _Facts:
    """What the events so far say of a run."""

    def __init__(self, started: RunStarted | None = None) -> None:
        self.started = started
        self.steps = 0
        self.loss: float | None = None
        self.metrics = ""
        self._rate = 0.0
        self._seconds = 0.0
        self._waited = 0.0
        self._late: dict[int, int] = {}
        """Most steps that a read of each replica was late in its last window."""
        self._loaded: list[str] = []

    def take(self, event: Event) -> None:
        """Remember what an event says."""
        if isinstance(event, Loaded):
            self._loaded.append(f"{event.operator}: {event.rows:,} rows")
        elif isinstance(event, WindowDone):
            self.steps = event.step + 1
            self.loss = event.loss if event.loss is not None else self.loss
            self._rate = event.steps / event.seconds if event.seconds else 0.0
        elif isinstance(event, ReplicaDone):
            self._seconds += event.seconds
            self._waited += event.wait_seconds
            self._late[event.replica] = max(event.staleness, default=0)
        elif isinstance(event, Evaluated):
            self.metrics = metric_words(event)

    def words(self) -> str:
        """Return what stands beside the bar."""
        if not self.steps:
            return ", ".join(self._loaded)
        waited = self._waited / self._seconds if self._seconds else 0.0
        late = max(self._late.values(), default=0)
        parts = (
            "" if self.loss is None else f"loss {self.loss:.4g}",
            f"{self._rate:,.0f} step/s" if self._rate else "",
            f"wait {waited:.0%}" if self._seconds else "",
            f"staleness {late}" if late else "",
            self.metrics,
        )
        return "  ".join(part for part in parts if part)


def metric_words(event: Evaluated) -> str:
    """Return the metrics of an evaluation in a few words.

    Examples
    --------
    >>> metric_words(Evaluated(99, "test", {"loss": 0.5, "score": 0.8432}))
    'test loss 0.5, score 0.8432'
    """
    return f"{event.name} " + ", ".join(f"{k} {v:.4g}" for k, v in event.metrics.items())


def summary(event: Finished, facts: _Facts) -> str:
    """Return the one line that stays after a run."""
    name = "" if facts.started is None else f"{facts.started.graph}: "
    rate = event.step / event.seconds if event.seconds else 0.0
    ended = {"done": "done", "until": "ended by the graph"}.get(event.status, event.status)
    parts = (
        f"{name}{ended} after {event.step:,} steps in {event.seconds:.3g} s ({rate:,.0f} step/s)",
        "" if facts.loss is None else f"loss {facts.loss:.4g}",
        facts.metrics,
    )
    return "  ".join(part for part in parts if part)
