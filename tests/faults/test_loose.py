"""Faults of runs whose replicas do not meet: stale and async edges."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest

import flowml as fl
from flowml.errors import OperatorError, StalledError, WorkerLostError
from flowml.events import Event, WindowDone
from flowml.runtime.center_writes import RowWriter
from tests.faults.bed import (
    BATCH,
    CLASSES,
    FEATURES,
    ROWS,
    VERDICT_SECONDS,
    Bed,
    Mishap,
    Trap,
    TrappedModel,
    assert_readable,
    examples,
    failure,
    logged,
)

PROMISES: dict[str, Any] = {"async": lambda w: w.async_(), "stale": lambda w: w.stale(2)}


def training(promise: str, trap: Trap | None = None, rule: Any = None) -> fl.Graph:
    """Return a graph whose gradients are pushed one by one."""
    model = fl.models.softmax(FEATURES, CLASSES)
    w = fl.table("w", model.init(seed=0))
    batch = fl.load(examples(), batch_size=BATCH, name="batch")
    trapped = TrappedModel(model, trap or Trap())
    grads = fl.gradient(trapped, PROMISES[promise](w), batch, fl.here(), name="gradient")
    return fl.Graph(fl.update(w, grads, rule or fl.sgd(0.05), name="update"))


def assert_whole(tables: dict[str, Any]) -> None:
    assert all(np.isfinite(leaf).all() for leaf in tables["w"].values())


@pytest.mark.parametrize("promise", PROMISES)
def test_death_in_a_gradient(promise: str, transport: str, pair: Bed, tmp_path: Path) -> None:
    """Also of a replica that reaches the tables over RPC."""
    trap, victim = logged(Trap("kill", step=5), tmp_path), pair.address_of(1)
    error = failure(training(promise, trap).start(steps=4000, replicas=2), trap)
    assert isinstance(error, WorkerLostError)
    assert error.worker == victim
    assert "gradient" in error.operator  # another host knows only what it may have been in
    assert error.run.steps == 5  # of the replica that is furthest behind: the dead one
    assert_whole(error.run.tables)
    pair.assert_usable()


def test_death_of_the_worker_that_holds_the_tables(pair: Bed, tmp_path: Path) -> None:
    """They are gone with it; the error says so, and the run leaves what the driver had."""
    trap, victim = logged(Trap("kill", replica=0, step=5), tmp_path), pair.address_of(0)
    with dask.config.set({"flowml.transport": "rpc"}):
        run = training("async", trap).start(steps=4000, replicas=2, snapshots=(3,))
        error = failure(run, trap)
    assert isinstance(error, WorkerLostError)
    assert error.worker == victim
    assert_whole(error.run.tables)
    assert_readable(error)
    pair.assert_usable()


def dying_rule(trap: Trap, pid: int) -> fl.Rule:
    """Return SGD that dies in one process in the middle of a write, with the lock in its hand."""
    sgd = fl.sgd(0.05)

    def step(params: Any, update: Any, state: Any, at: Any, out: Any) -> None:
        if at.writer == 1 and at.step == trap.step and os.getpid() == pid:
            out[...] = np.nan
            trap.happen()
        sgd.step(params, update, state, at, out)

    return fl.Rule(sgd.init, step, name="dying")


@pytest.mark.parametrize("promise", PROMISES)
def test_death_in_the_middle_of_a_write(promise: str, pair: Bed, tmp_path: Path) -> None:
    """The lock goes with its holder, and nobody ever reads the half that it wrote."""
    trap, (victim, pid) = logged(Trap("kill", step=6), tmp_path), list(pair.pids().items())[1]
    graph = training(promise, rule=dying_rule(trap, pid))
    error = failure(graph.start(steps=4000, replicas=2), trap)
    assert isinstance(error, WorkerLostError)
    assert (error.worker, error.operator) == (victim, "update")
    assert_whole(error.run.tables)


def by_rows(rows: int | None) -> fl.Graph:
    """Return a graph in which replica r adds 1 to column r of four rows, and of a new one.

    Who reads rows that are not whole says so.
    """
    u = fl.sparse_table("u", 2, dtype="float64", rows=rows)

    def keys_of(place: Any, batch: Any) -> Any:
        return np.array([0, 1, 2, 3, 10 + 2 * place.clock + place.replica])

    def ones(found: Any, place: Any) -> Any:
        if not (found[:4] == found[0]).all():
            raise Mishap(f"torn: {found}")
        made = np.zeros((5, 2))
        made[:, place.replica] = 1.0
        return made

    batch = fl.load(np.zeros((ROWS, 1)), batch_size=BATCH)
    keys = fl.map(keys_of, fl.here(), batch, name="keys")
    made = fl.map(ones, u.async_().at(keys), fl.here(), name="ones")
    return fl.Graph(fl.update(u.at(keys), made, fl.add(), name="update"))


def dies_writing(part: str, trap: Trap) -> None:
    """Let this process die in the middle of a write of rows, with the lock in its hand.

    Parameters
    ----------
    part : str
        "rows": two of them are written. "index": the new one has no place yet.
    """
    write = RowWriter._write

    def dying(writer: RowWriter, keys: Any, rows: Any, at: Any) -> None:
        store = writer._store
        if (at.writer, at.step, store.name) == (1, trap.step, "u"):
            if part == "index":
                store._index.insert = lambda keys, slots: trap.happen()  # type: ignore[method-assign]
            slots, *_ = store.open(keys)
            store._arrays.rows[slots[:2]] = np.nan
            trap.happen()
        write(writer, keys, rows, at)

    RowWriter._write = dying  # type: ignore[method-assign]


@pytest.mark.parametrize("rows", [None, 20_000])
@pytest.mark.parametrize("part", ["rows", "index"])
def test_death_in_the_middle_of_a_write_of_rows(
    part: str, rows: int | None, pair: Bed, tmp_path: Path
) -> None:
    """The others go on from the rows as they were: what the dead one had committed, no more."""
    step = 6
    trap, victim = logged(Trap("kill", step=step), tmp_path), pair.address_of(1)
    pair.client.run(dies_writing, part, trap, workers=[victim])
    error = failure(by_rows(rows).start(steps=4000, replicas=2), trap)
    assert isinstance(error, WorkerLostError)
    assert (error.worker, error.operator) == (victim, "update")
    found = error.run.tables["u"]
    table = dict(zip(found.keys.tolist(), found.rows.tolist(), strict=True))
    made, dead = table[0]
    assert dead == step
    assert made >= 1
    for key in (1, 2, 3):
        assert table[key] == [made, dead]
    own = {key: row for key, row in table.items() if key >= 10}
    for key, row in own.items():
        if key == 10 + 2 * step + 1:
            assert row == [0.0, 0.0]  # let in, and never written
        else:
            assert row == ([1.0, 0.0] if key % 2 == 0 else [0.0, 1.0])
    assert sum(key % 2 == 0 for key in own) == made


@pytest.mark.parametrize("promise", PROMISES)
@pytest.mark.parametrize("kind", ["raise", "exit", "nan"])
def test_an_operator_that_fails(
    kind: str, promise: str, transport: str, pair: Bed, tmp_path: Path
) -> None:
    trap = logged(Trap(kind, step=5), tmp_path)
    run = training(promise, trap).start(steps=4000, replicas=2)
    error = failure(run, None if kind == "nan" else trap)
    assert (error.operator, error.replica, error.step) == ("gradient", 1, 5)
    assert isinstance(error, OperatorError) or kind == "nan"
    assert f"replica 1, step 5, on worker {error.worker}" in str(error)
    if kind != "exit":
        assert "Its input is kept: error.call.again() repeats the call." in str(error)
    if kind == "nan":
        assert f"The last good step is {error.run.steps - 1}; reads " in str(error)
        assert str(error).endswith(f" late ({'stale(2)' if promise == 'stale' else 'async'}).")
    assert_whole(error.run.tables)
    pair.assert_usable()


def test_a_slow_operator_under_stale(transport: str, pair: Bed, tmp_path: Path) -> None:
    """The other waits for the clock of the slow one, and says so."""
    trap = logged(Trap("sleep", step=5, seconds=3.0), tmp_path)
    run = training("stale", trap).start(steps=40, replicas=2, step_seconds=0.5)
    error = failure(run, trap)
    assert isinstance(error, StalledError)
    assert error.operator == "gradient"
    assert error.replica == 1
    assert "waits for replica 1 at clock 5, whose last message is" in str(error)
    assert_readable(error)


def test_an_operator_that_hangs_with_the_lock_in_its_hand(
    transport: str, pair: Bed, tmp_path: Path
) -> None:
    """Those who wait for the lock leave, the error names the operator, and tables come back."""
    trap = logged(Trap("sleep", replica=0, step=7, seconds=8.0), tmp_path)
    model = fl.models.softmax(FEATURES, CLASSES)
    w = fl.table("w", model.init(seed=0))
    grads = fl.gradient(model, w.async_(), fl.load(examples(), batch_size=BATCH), name="gradient")
    seen = [0]

    def slow(mean: Any) -> Any:
        seen[0] += 1
        trap.spring(0, seen[0])
        return mean

    slowed = fl.map(slow, fl.aggregate("mean", grads), name="slowed")
    run = fl.Graph(fl.update(w, slowed, fl.sgd(0.05))).start(
        steps=4000, replicas=2, step_seconds=0.5
    )
    error = failure(run, trap)
    assert isinstance(error, StalledError)
    assert error.operator == "slowed"
    assert_readable(error)
    assert_whole(error.run.tables)


def test_a_stop_ends_both(transport: str, pair: Bed) -> None:
    trap = Trap("sleep", step=3, seconds=0.2)
    run = training("async", trap).start(steps=10_000_000, replicas=2, max_seconds=0.5)
    done = run.wait(30.0)
    assert done.status == "stopped"
    assert 0 < done.steps < 10_000_000
    assert_whole(done.tables)


@pytest.mark.parametrize("replica", [0, 1])
@pytest.mark.parametrize("promise", PROMISES)
def test_a_process_that_is_stopped(replica: int, promise: str, transport: str, pair: Bed) -> None:
    """Whoever holds the tables or is waited for: its silence is told, and by name."""
    (victim, pid), stopped = list(pair.pids().items())[replica], []

    def listen(event: Event) -> None:
        if isinstance(event, WindowDone) and not stopped:
            stopped.append(time.time())
            os.kill(pid, signal.SIGSTOP)

    try:
        with dask.config.set({"flowml.window": "50ms"}):
            run = training(promise).start(
                steps=1_000_000, replicas=2, deadline="2s", on_event=listen
            )
            error = failure(run)
        seconds = time.time() - stopped[0]
    finally:
        os.kill(pid, signal.SIGCONT)
    assert isinstance(error, StalledError | WorkerLostError)
    assert victim in str(error)
    assert seconds < 2 * 2.0 + VERDICT_SECONDS
    assert_readable(error)
    pair.assert_clean()
    pair.assert_usable()
