"""Runs that are told to end: at a step's end, soon, and with nothing left over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dask
import pytest

import flowml as fl
from flowml.events import Event, WindowDone
from tests.faults.bed import WAIT_SECONDS, Bed, assert_serial, eventually, examples, training

MANY = 10**9
LEAVE_SECONDS = 5.0
LEAVE_LINES = 5


def test_stop_ends_a_run_at_a_step(transport: str, pair: Bed) -> None:
    under_way = threading.Event()

    def listen(event: Event) -> None:
        if isinstance(event, WindowDone) and event.step > 20:
            under_way.set()

    with dask.config.set({"flowml.window": "200ms"}):
        run = training().start(steps=MANY, replicas=5, on_event=listen)
        assert under_way.wait(WAIT_SECONDS)
        run.stop()
        assert run.wait(WAIT_SECONDS).status == "stopped"
    assert 20 < run.steps < MANY
    assert int(run.history["step"].max()) == run.steps - 1
    assert_serial(run, training(), 5)


def test_stop_before_the_first_step(pair: Bed) -> None:
    run = training().start(steps=MANY, replicas=2)
    run.stop()
    assert run.wait(WAIT_SECONDS).status == "stopped"
    assert_serial(run, training(), 2)


def test_max_seconds_ends_a_run_at_a_step(transport: str, pair: Bed) -> None:
    run = training().start(steps=MANY, replicas=2, max_seconds=0.5).wait(WAIT_SECONDS)
    assert run.status == "stopped"
    assert run.steps > 0
    assert_serial(run, training(), 2)


def test_max_seconds_without_a_barrier_in_a_step(pair: Bed) -> None:
    """Replicas that never meet end where a window ends."""
    model = fl.models.softmax(2, 2)
    own = fl.table("own", model.init(seed=0), scope="replica")
    X, y = examples()
    rows = fl.load((X[:, :2].copy(), y % 2), batch_size=4)
    graph = fl.Graph(fl.update(own, fl.gradient(model, own, rows), fl.sgd(0.1)))
    with dask.config.set({"flowml.window": "50ms"}):
        run = graph.start(steps=MANY, replicas=2, max_seconds=0.1).wait(WAIT_SECONDS)
    assert run.status == "stopped"
    serial = graph.run(steps=run.steps, replicas=2, executor="serial")
    for a, b in zip(run.tables["own"], serial.tables["own"], strict=True):
        assert a["W"].tobytes() == b["W"].tobytes()


# --- Ctrl-C, as a terminal sends it -----------------------------------------------------------

GRAPH = """
from pathlib import Path

import numpy as np

import flowml as fl

MARK = {mark!r}


def marked(grads, place):
    if place.clock == 3:
        Path(MARK).touch()
    return grads


model = fl.models.softmax(4, 2)
w = fl.table("w", model.init(seed=0))
rng = np.random.default_rng(0)
batch = fl.load((rng.normal(size=(64, 4)).astype("float32"), rng.integers(0, 2, 64)), batch_size=8)
grads = fl.map(marked, fl.gradient(model, w, batch), fl.here())
graph = fl.Graph(fl.update(w, fl.aggregate("mean", grads), fl.sgd(0.1)), name="endless")
"""
SCRIPT = """
import sys

if __name__ == "__main__":
    try:
        graph.run(steps=10**9, replicas=2)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@contextmanager
def program(command: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in a process group of its own; nothing of it may outlive the test."""
    environment = os.environ | {"PYTHONPATH": str(Path(fl.__file__).parents[1])}
    with (
        (folder / "stderr").open("wb") as stderr,
        subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
            env=environment,
            cwd=folder,
        ) as running,
    ):
        try:
            yield running
        finally:
            if group(running.pid):
                os.killpg(running.pid, signal.SIGKILL)


def group(leader: int) -> list[int]:
    """Return the processes of a group that are not zombies."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has gone meanwhile
                continue
            if int(words[2]) == leader and words[0] != "Z":
                found.append(int(entry.name))
    return found


def command_of(way: str, file: Path) -> list[str]:
    """Return how a user starts a graph: with our command, or as a script that runs it."""
    if way == "script":
        return [sys.executable, str(file)]
    options = ["--steps", str(MANY), "--replicas", "2"]
    return [sys.executable, "-m", "flowml", "run", str(file), *options]


@pytest.mark.parametrize(
    ("way", "number"),
    [
        ("command", signal.SIGINT),
        pytest.param("command", signal.SIGTERM, marks=pytest.mark.slow),
        ("script", signal.SIGINT),
    ],
)
def test_ctrl_c(way: str, number: signal.Signals, tmp_path: Path) -> None:
    """A terminal sends SIGINT to all processes of the group; SIGTERM goes to the program alone."""
    mark, file = tmp_path / "mark", tmp_path / "endless.py"
    file.write_text(GRAPH.format(mark=str(mark)) + (SCRIPT if way == "script" else ""))
    with program(command_of(way, file), tmp_path) as running:
        eventually(mark.exists, WAIT_SECONDS)
        if number == signal.SIGINT:
            os.killpg(running.pid, signal.SIGINT)
        else:
            running.terminate()
        assert running.wait(LEAVE_SECONDS) == 128 + number
        eventually(lambda: not group(running.pid), LEAVE_SECONDS)
    lines = (tmp_path / "stderr").read_text().splitlines()
    assert len(lines) <= LEAVE_LINES, lines


@pytest.mark.slow
@pytest.mark.parametrize("way", ["command", "script"])
def test_ctrl_c_in_an_operator_that_does_not_end(way: str, tmp_path: Path) -> None:
    """A run that does not end its step in time is left behind, and its processes go too."""
    mark, file = tmp_path / "mark", tmp_path / "endless.py"
    text = GRAPH.format(mark=str(mark)).replace(".touch()", ".touch(); import time; time.sleep(60)")
    file.write_text(text + (SCRIPT if way == "script" else ""))
    with program(command_of(way, file), tmp_path) as running:
        eventually(mark.exists, WAIT_SECONDS)
        os.killpg(running.pid, signal.SIGINT)
        assert running.wait(LEAVE_SECONDS) == 130
        eventually(lambda: not group(running.pid), LEAVE_SECONDS)
    lines = (tmp_path / "stderr").read_text().splitlines()
    assert len(lines) <= LEAVE_LINES, lines
