"""When replicas compute and wait: one clock, stragglers by name, shares that add up, a trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client

import flowml as fl
from flowml.compiler.stages import compile_graph
from flowml.execution import Run
from flowml.runtime.outcome import HistoryBuilder, Outcome, history_block
from flowml.runtime.spans import FIRST_TIMED, TimedSteps, as_spans, stride_at
from flowml.timeline import Timeline

X = np.random.default_rng(0).normal(size=(200, 6)).astype("float32")
Y = X @ np.arange(6, dtype="float32")


def graph(promise: Any = lambda w: w, **options: Any) -> fl.Graph:
    model = fl.models.linear(6)
    w = fl.table("w", model.init(seed=0))
    grads = fl.gradient(model, promise(w), fl.load((X, Y), batch_size=5))
    sinks = [fl.update(w, fl.aggregate("mean", grads), fl.sgd(0.01))]
    if options.get("evaluated"):
        metric = fl.evaluate(lambda p, rows: {"loss": model.loss(p, rows)}, w, (X, Y), every=10)
        sinks.append(metric)
    return fl.Graph(*sinks, name="g")


def stalling(replicas: int = 3, **slow: float) -> Run:
    return graph(lambda w: w.stale(1)).simulate(
        replicas=replicas,
        steps=30,
        seed=4,
        compute=fl.simulate.Compute(0.01, spread=0.1, slow={2: 5.0}),
        **slow,
    )


# -- one clock ------------------------------------------------------------------------------------


def test_a_step_begins_when_the_one_before_has_ended() -> None:
    block = history_block(range(3), 1, np.zeros(3), np.array([1.0, 2.0, 4.0]), np.zeros(3))
    assert block["began"].tolist() == [0.0, 1.0, 3.0]
    builder = HistoryBuilder()
    builder.add(block)
    builder.add(history_block(range(3, 5), 1, np.zeros(2), np.ones(2), np.zeros(2)), since=7.5)
    assert builder.columns()["began"].tolist() == [0.0, 1.0, 3.0, 7.5, 8.5]


def test_thinned_steps_keep_their_time() -> None:
    block = history_block(range(1100), 0, *[np.ones(1100)] * 2, np.zeros(1100))
    assert block["began"][-3:].tolist() == [1070.0, 1080.0, 1090.0]
    assert block["step"][-3:].tolist() == [1070, 1080, 1090]


@pytest.mark.parametrize("executor", ["serial", "simulated", "resident", "tasks"])
@pytest.mark.usefixtures("client")
def test_steps_of_a_replica_follow_each_other_up_to_the_end(executor: str) -> None:
    run = graph().run(steps=40, replicas=2, executor=executor, progress=False)
    steps = run.timeline.steps
    for replica in (0, 1):
        mine = steps["replica"] == replica
        began, ended = steps["began"][mine], (steps["began"] + steps["seconds"])[mine]
        assert began[0] >= 0
        assert (began[1:] >= ended[:-1] - 1e-9).all()
        assert ended[-1] <= run.seconds + 1e-9
    finished = run.timeline.finished([0, 1, 40])
    assert finished[0] == 0.0
    assert 0 < finished[1] < finished[2] <= run.seconds + 1e-9


def test_windows_of_one_host_share_a_clock(client: Client) -> None:
    run = graph(lambda w: w.async_()).run(
        steps=600, replicas=2, cluster=client, snapshots=(100, 300), progress=False
    )
    steps = run.timeline.steps
    starts = [steps["began"][steps["replica"] == r][0] for r in (0, 1)]
    assert min(starts) >= 0.0
    # Replicas meet where a snapshot is taken, so neither begins the next step much before.
    after = [steps["began"][(steps["replica"] == r) & (steps["step"] == 300)][0] for r in (0, 1)]
    before = run.timeline.finished(300)[0]
    assert min(after) >= before - 1e-6


def test_times_between_kept_steps_are_interpolated() -> None:
    plan = compile_graph(graph().logical, 1)
    block = history_block(range(2000), 0, np.zeros(2000), np.full(2000, 0.5), np.zeros(2000))
    timeline = Timeline(Outcome(plan, history=block))
    assert timeline.finished([0, 1, 1000, 1994]).tolist() == [0.0, 0.5, 500.0, pytest.approx(995.5)]


def test_without_a_step_no_time_is_known() -> None:
    plan = compile_graph(graph().logical, 2)
    timeline = Timeline(Outcome(plan, history=HistoryBuilder().columns()))
    assert np.isnan(timeline.finished(3)).all()
    assert timeline.paces() == ()
    assert timeline.straggler is None
    assert timeline.shares() == {}


# -- stragglers -----------------------------------------------------------------------------------


def test_a_straggler_is_found_and_named() -> None:
    timeline = stalling().timeline
    slow = timeline.straggler
    assert slow is not None
    assert (slow.replica, slow.name) == (2, "replica 2")
    assert slow.ratio == pytest.approx(5.0, rel=0.2)
    others = timeline.paces()[1:]
    assert all(pace.wait_share > 0.5 and not pace.straggles for pace in others)
    assert slow.wait_share < 0.05


def test_even_replicas_have_no_straggler() -> None:
    assert graph().simulate(replicas=3, steps=20).timeline.straggler is None


def test_the_name_has_the_worker(client: Client) -> None:
    run = graph().run(steps=10, replicas=2, cluster=client, progress=False)
    names = {pace.name for pace in run.timeline.paces()}
    assert names == {f"replica {r} on worker {run.timeline.workers[r]}" for r in (0, 1)}
    assert set(run.timeline.workers) == set(client.nthreads())


# -- time of operators ----------------------------------------------------------------------------


def test_every_so_many_th_step_is_timed() -> None:
    times = TimedSteps()
    chosen = [step for step in range(3000) if times.due(step)]
    assert chosen[:3] == [FIRST_TIMED, FIRST_TIMED + 17, FIRST_TIMED + 34]
    assert len(chosen) < 1000 / 17 + 2000 / 173 + 2
    assert {step % 8 for step in chosen[:10]} == set(range(8)), "all phases of a period are met"
    assert stride_at(999) == 17


@pytest.mark.parametrize("executor", ["serial", "resident"])
@pytest.mark.usefixtures("client")
def test_shares_add_up_and_name_all_operators(executor: str) -> None:
    run = graph().run(steps=60, replicas=2, executor=executor, progress=False)
    shares = run.timeline.shares()
    assert list(shares) == ["load", "gradient", "mean", "update_w", "waiting", "between"]
    assert sum(shares.values()) == pytest.approx(1.0)
    assert all(0 <= share <= 1 for share in shares.values())
    operators = run.timeline.operators
    assert set(operators["step"]) == {3, 20, 37, 54}
    assert set(operators["replica"]) == {0, 1}


@pytest.mark.usefixtures("client")
def test_operators_lie_inside_their_steps() -> None:
    timeline = graph().run(steps=60, replicas=2, progress=False).timeline
    steps = {
        (r, s): (began, began + seconds)
        for r, s, began, seconds in zip(
            *(timeline.steps[c].tolist() for c in ("replica", "step", "began", "seconds")),
            strict=True,
        )
    }
    for r, s, began, seconds in zip(
        *(timeline.operators[c].tolist() for c in ("replica", "step", "began", "seconds")),
        strict=True,
    ):
        first, last = steps[r, s]
        assert first - 1e-9 <= began
        assert began + seconds <= last + 1e-9


@pytest.mark.usefixtures("client")
def test_a_replica_under_async_edges_is_timed_too() -> None:
    run = graph(lambda w: w.async_()).run(steps=60, replicas=2, progress=False)
    shares = run.timeline.shares()
    assert {"load", "gradient", "waiting", "between"} == set(shares)
    assert shares["between"] > 0, "its deliveries"


@pytest.mark.parametrize("executor", ["serial", "resident"])
@pytest.mark.usefixtures("client")
def test_timed_steps_have_the_same_bytes(executor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only in this process: a step of the serial executor is timed or not by the same numbers."""
    timed = graph().run(steps=25, replicas=2, executor=executor, progress=False)
    monkeypatch.setattr(TimedSteps, "due", lambda self, step: False)
    plain = graph().run(steps=25, replicas=2, executor="serial", progress=False)
    assert len(plain.timeline.operators["step"]) == 0
    for name, value in plain.tables["w"].items():
        assert timed.tables["w"][name].tobytes() == value.tobytes()


def test_spans_without_rows_are_an_empty_table() -> None:
    assert as_spans(()).shape == (0,)
    plan = compile_graph(graph().logical, 2)
    timeline = Timeline(Outcome(plan, history=HistoryBuilder().columns()))
    assert list(timeline.operators["operator"]) == []


# -- the trace ------------------------------------------------------------------------------------


def events_of(path: Path) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = json.loads(path.read_text())["traceEvents"]
    return events


@pytest.mark.usefixtures("client")
def test_a_trace_has_processes_rows_steps_and_operators(tmp_path: Path) -> None:
    run = graph(evaluated=True).run(steps=30, replicas=2, progress=False)
    path = run.timeline.to_chrome(tmp_path / "trace.json")
    assert path == tmp_path / "trace.json"
    events = events_of(path)
    for event in events:
        assert event["ph"] in "MXi"
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        if event["ph"] == "X":
            assert event["dur"] >= 0
            assert event["ts"] >= -1e-3
    named = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert named == list(run.timeline.workers)
    rows = {e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert rows == {f"replica {r} {row}" for r in (0, 1) for row in ("steps", "operators")}
    kinds = [e.get("cat") for e in events]
    assert kinds.count("step") == 60
    assert kinds.count("mark") == len(run.metrics)
    assert {e["name"] for e in events if e.get("cat") == "operator"} == {
        "load", "gradient", "mean", "update_w",
    }  # fmt: skip


def test_a_loss_that_is_not_known_is_null_in_a_trace(tmp_path: Path) -> None:
    plan = compile_graph(graph().logical, 1)
    block = history_block(range(2), 0, np.array([1.0, np.nan]), np.ones(2), np.zeros(2))
    path = Timeline(Outcome(plan, history=block)).to_chrome(tmp_path / "trace.json")
    losses = [e["args"]["loss"] for e in events_of(path) if e.get("cat") == "step"]
    assert losses == [1.0, None]


@pytest.mark.parametrize(("promise", "first"), [("sync", False), ("stale", True)])
def test_a_wait_is_drawn_where_it_is(promise: str, first: bool, tmp_path: Path) -> None:
    read = {"sync": lambda w: w, "stale": lambda w: w.stale(1)}[promise]
    run = graph(read).simulate(
        replicas=2, steps=20, compute=fl.simulate.Compute(0.01, slow={1: 3.0})
    )
    events = events_of(run.timeline.to_chrome(tmp_path / "trace.json"))
    steps = {(e["tid"], e["name"]): e for e in events if e.get("cat") == "step"}
    waits = [e for e in events if e.get("cat") == "wait"]
    assert waits
    for wait in waits:
        inside = [
            s
            for (row, _), s in steps.items()
            if row == wait["tid"]
            and s["ts"] - 1 <= wait["ts"]
            and wait["ts"] + wait["dur"] <= s["ts"] + s["dur"] + 1
        ]
        assert any(
            abs(wait["ts"] - s["ts"]) < 1
            if first
            else abs(wait["ts"] + wait["dur"] - s["ts"] - s["dur"]) < 1
            for s in inside
        )
