"""What the scheduler knows of a run after what it was told."""

import json
import math

import pytest

import flowml as fl
from flowml.dashboard.runs import MOST_RUNS, Runs
from flowml.dashboard.runstate import MOST_EVENTS
from flowml.dashboard.series import MOST_POINTS
from flowml.events import (
    Evaluated,
    Finished,
    Loaded,
    ReplicaDone,
    RunStarted,
    Warned,
    WindowDone,
    WorkerLost,
)
from tests.dashboard.stories import (
    TABLE_BYTES,
    WORKERS,
    examples,
    opened,
    report,
    ssp_graph,
    sync_graph,
    tell,
)


def window(run, number, *, at, steps=50, waits=(0.4, 0.0), late=(0, 0)):
    """Let both replicas finish a window of a second."""
    step = (number + 1) * steps - 1
    for rank in range(2):
        done = ReplicaDone(
            rank, WORKERS[rank], step, steps, 0.5 + rank, 1.0, waits[rank], {late[rank]: steps}
        )
        tell(run, done, at)
    tell(run, WindowDone(step, 1.0, steps, 0.7), at)


def running(graph=None, windows=4):
    """Return a run of some windows, one a second, at 50 steps each of 1000."""
    run = opened(graph or ssp_graph())
    tell(run, RunStarted("f00d", "ssp", "resident", 2, 1000), 0.5)
    tell(run, Loaded("load", 2, 200), 0.7)
    for number in range(windows):
        window(run, number, at=2.0 + number)
    return run


def seen(run, at):
    return run.snapshot(100.0 + at)


def edge(found, name):
    return next(e for e in found["edges"] if e["name"] == name)


def operator(found, name):
    return next(o for o in found["operators"] if o["name"] == name)


def test_a_run_that_waits_for_its_workers():
    run = opened(ssp_graph())
    tell(run, Warned("graph 'ssp' waits for graph 'other'"), 1.0)
    found = seen(run, 1.5)
    assert (found["status"], found["step"], found["steps"]) == ("waiting", 0, None)
    assert found["events"][0] == {
        "seconds": 1.0,
        "level": "warning",
        "text": "graph 'ssp' waits for graph 'other'",
    }


def test_step_loss_pace_and_remaining_time():
    found = seen(running(), 5.2)
    assert (found["status"], found["step"], found["steps"]) == ("running", 200, 1000)
    assert found["loss"] == pytest.approx(1.0)  # the mean over replicas of their windows
    assert found["steps_per_second"] == pytest.approx(50.0)
    assert found["remaining_seconds"] == pytest.approx(16.0)
    assert found["seconds"] == pytest.approx(5.2)
    assert [p["step"] for p in found["losses"]] == [50, 100, 150, 200]
    assert [p["seconds"] for p in found["losses"]] == pytest.approx([2.0, 3.0, 4.0, 5.0])


def test_without_records_of_replicas_the_loss_is_that_of_the_window():
    run = opened(sync_graph())
    tell(run, RunStarted("f00d", "sync", "tasks", 2, None), 0.5)
    tell(run, WindowDone(9, 1.0, 10, 0.25), 2.0)
    found = seen(run, 2.5)
    assert found["loss"] == 0.25
    assert found["remaining_seconds"] is None


def test_a_loss_that_is_not_finite_is_no_point():
    run = running(windows=1)
    tell(run, WindowDone(99, 1.0, 50, math.nan), 3.0)
    assert [p["step"] for p in seen(run, 3.0)["losses"]] == [50]


def test_evaluations_are_curves_and_last_values():
    run = running()
    tell(run, Evaluated(100, "test", {"loss": 0.5, "score": 0.9}), 3.1)
    tell(run, Evaluated(200, "test", {"loss": 0.4, "score": math.inf}), 5.1)
    found = seen(run, 5.2)
    assert found["metrics"] == {"test loss": 0.4, "test score": 0.9}
    curves = {e["metric"]: [p["value"] for p in e["points"]] for e in found["evaluations"]}
    assert curves == {"loss": [0.5, 0.4], "score": [0.9]}
    assert found["events"][0]["text"] == "test after 200 steps: loss 0.4, score inf"


def test_a_lost_worker_marks_the_curves():
    run = running()
    tell(run, WorkerLost("tcp://b:2", 200), 5.5)
    error = "worker tcp://b:2: was lost in 'gradient'"
    tell(run, Finished("failed", 200, 5.0, error, "gradient"), 5.6)
    found = seen(run, 9.0)
    assert found["status"] == "failed"
    assert found["seconds"] == pytest.approx(5.6)  # the clock stops at the end
    assert found["marks"] == [
        {"kind": "worker lost", "step": 200, "seconds": 5.5, "text": "worker tcp://b:2 lost"}
    ]
    assert found["events"][0]["text"] == f"failed after 200 steps: {error}"
    assert found["events"][0]["level"] == "error"
    assert operator(found, "gradient")["state"] == "failed"
    assert operator(found, "load")["state"] == "ended"


def test_an_ended_run_keeps_its_pace_and_takes_no_more():
    run = running()
    tell(run, Finished("done", 1000, 20.0), 20.0)
    tell(run, WindowDone(1049, 1.0, 50, 0.1), 21.0)
    found = seen(run, 30.0)
    assert (found["status"], found["step"]) == ("done", 1000)
    assert found["steps_per_second"] == pytest.approx(50.0)
    assert found["remaining_seconds"] is None
    assert all(e["bytes_per_second"] is None for e in found["edges"])


def test_a_driver_that_fails_leaves_the_steps_as_they_were():
    run = running()
    tell(run, Finished("failed", 0, 0.0, "KeyError: 'x'"), 6.0)
    found = seen(run, 9.0)
    assert (found["status"], found["step"]) == ("failed", 200)
    assert found["events"][0]["text"] == "failed after 200 steps: KeyError: 'x'"


def test_a_run_whose_client_is_gone_is_lost():
    run = running()
    run.lose("its client is gone", 106.0)
    run.lose("its client is gone", 107.0)
    found = seen(run, 9.0)
    assert found["status"] == "lost"
    assert [e["text"] for e in found["events"]].count("its client is gone") == 1


def test_the_slowest_replica_comes_first():
    found = seen(running(), 5.2)["replicas"]
    assert [r["replica"] for r in found] == [1, 0]
    assert found[0]["busy"] == pytest.approx(1.0 / 50)
    assert found[1]["busy"] == pytest.approx(0.6 / 50)
    assert found[0]["slowness"] == pytest.approx(1.0 / 0.8)
    assert found[1]["wait_share"] == pytest.approx(0.4)
    assert found[0]["windows"][-1] == {
        "start": 4.0,
        "seconds": 1.0,
        "wait_seconds": 0.0,
        "steps": 50,
    }


def test_the_windows_of_a_replica_do_not_overlap():
    run = running(windows=1)
    window(run, 1, at=2.3)  # the news of two windows came nearly at once
    first, second = seen(run, 2.5)["replicas"][0]["windows"]
    assert second["start"] == pytest.approx(first["start"] + first["seconds"])


def test_the_timeline_is_a_minute_long():
    run = running(windows=100)
    windows = seen(run, 101.5)["replicas"][0]["windows"]
    assert 58 <= len(windows) <= 61
    assert all(w["start"] + w["seconds"] > 41.5 for w in windows)


# -- staleness ---------------------------------------------------------------------------------


def test_the_reads_of_one_stale_edge_are_counted_exactly():
    run = running(windows=1)
    window(run, 1, at=3.0, late=(2, 0))
    found = edge(seen(run, 3.0), "w -> gradient")
    assert (found["staleness"], found["exact"], found["bound"]) == ({"0": 150, "2": 50}, True, 3)


def test_the_reads_of_a_sync_graph_are_never_late():
    found = edge(seen(running(sync_graph()), 5.0), "w -> gradient")
    assert (found["staleness"], found["bound"]) == ({"0": 400}, 0)


def test_with_two_stale_reads_the_lags_seen_are_counted():
    model = fl.models.softmax(16, 4)
    v, w = fl.table("v", model.init(seed=0)), fl.table("w", model.init(seed=0))
    batch = fl.load(examples(), batch_size=16)
    one = fl.gradient(model, w.stale(3), batch, name="one")
    two = fl.gradient(model, v.stale(5), batch, name="two")
    graph = fl.Graph(fl.update(w, one, fl.sgd(0.1)), fl.update(v, two, fl.sgd(0.1)))
    run = running(graph, windows=1)
    lags = [("w -> one", 0, 2, 3), ("v -> two", 0, 4, 5), ("nobody -> knows", 0, 1, 1)]
    run.report(report(0, 60, {("compute", "one"): 0.1}, lags=lags), 102.5)
    run.report(report(0, 70, {("compute", "one"): 0.2}, lags=lags[:1]), 103.0)
    found = seen(run, 3.0)
    assert edge(found, "w -> one")["staleness"] == {"2": 2}
    assert edge(found, "v -> two")["staleness"] == {"4": 1}
    assert not edge(found, "v -> two")["exact"]
    assert (edge(found, "v -> two")["lag"], edge(found, "v -> two")["lags"]) == (4, {"0": 4})


# -- what is measured while somebody looks -----------------------------------------------------


def looked_at(spent_between, run=None):
    """Return a snapshot between two reports of each worker, half a second apart."""
    run = run or running()
    for worker in range(2):
        before = dict.fromkeys(spent_between, 1.0)
        after = {key: 1.0 + seconds for key, seconds in spent_between.items()}
        run.report(report(worker, 210, before, clocks=[215, 210]), 105.0)
        run.report(report(worker, 220, after, clocks=[226, 220]), 105.5)
    return seen(run, 5.6)


def test_shares_of_time_and_states_of_operators():
    found = looked_at(
        {
            ("compute", "load"): 0.05,
            ("compute", "gradient"): 0.15,
            ("wait", "w -> gradient"): 0.20,
            ("apply", "update_w"): 0.05,
            ("transfer", ""): 0.03,
            ("scheduler", ""): 0.02,
        }
    )
    assert found["looked_at"]
    gradient = operator(found, "gradient")
    assert gradient["parts"] == [
        {"part": "compute", "edge": "", "share": pytest.approx(0.3)},
        {"part": "wait", "edge": "w -> gradient", "share": pytest.approx(0.4)},
    ]
    assert gradient["share"] == pytest.approx(0.7)
    states = {o["name"]: o["state"] for o in found["operators"]}
    assert states == {
        "w": "idle",
        "load": "running",
        "gradient": "blocked",
        "update_w": "running",
        "test": "idle",
    }
    assert found["elsewhere"] == [
        {"part": "scheduler", "edge": "", "share": pytest.approx(0.04)},
        {"part": "transfer", "edge": "", "share": pytest.approx(0.06)},
    ]
    total = sum(o["share"] or 0.0 for o in found["operators"])
    assert total + sum(s["share"] for s in found["elsewhere"]) == pytest.approx(1.0)


def test_a_wait_at_a_barrier_belongs_to_all_that_read_behind_it():
    spent = {("compute", "gradient"): 0.1, ("wait", "gradient -> mean, update_w -> w"): 0.3}
    found = looked_at(spent, running(sync_graph()))
    assert operator(found, "mean")["state"] == "waiting"
    assert operator(found, "mean")["share"] == pytest.approx(0.375)
    assert operator(found, "w")["share"] == pytest.approx(0.375)


def test_a_barrier_that_is_for_no_edge_is_nobodys_wait():
    spent = {("compute", "gradient"): 0.1, ("wait", "barrier"): 0.3}
    found = looked_at(spent, running(sync_graph()))
    assert found["elsewhere"] == [{"part": "wait", "edge": "", "share": pytest.approx(0.75)}]


def test_staleness_without_a_bound_has_a_last_bar():
    run = running(windows=1)
    window(run, 1, at=3.0, late=(900, 64))
    assert edge(seen(run, 3.0), "w -> gradient")["staleness"] == {"0": 100, "64": 100}


def test_exchanges_with_other_hosts_are_no_waits():
    run = running(sync_graph())
    for worker in range(2):
        for at, swapped in ((5.0, 1.0), (5.5, 1.1)):
            spent = {("compute", "gradient"): at, ("wait", "gradient -> mean"): at}
            run.report(report(worker, 210, spent, between_hosts=swapped), 100.0 + at)
    found = seen(run, 5.6)
    assert found["elsewhere"] == [{"part": "transfer", "edge": "", "share": pytest.approx(0.2)}]
    assert operator(found, "mean")["share"] == pytest.approx(0.3)


def test_replicas_at_their_own_clocks_and_places():
    found = looked_at({("compute", "gradient"): 0.2})
    assert found["step"] == 220  # the slowest replica, fresher than the last window
    replicas = {r["replica"]: r for r in found["replicas"]}
    assert (replicas[0]["behind"], replicas[1]["behind"]) == (0, 6)
    assert (replicas[0]["part"], replicas[0]["within"]) == ("compute", "gradient")


def test_nothing_from_inside_a_step_is_known_when_nobody_looks():
    found = seen(running(), 5.2)
    assert not found["looked_at"]
    assert all(o["share"] is None and o["state"] == "idle" for o in found["operators"])
    assert found["elsewhere"] == []
    assert all(r["part"] is None for r in found["replicas"])


def test_old_reports_say_nothing_of_now():
    run = running()
    looked_at({("compute", "gradient"): 0.2}, run)
    for worker in range(2):
        run.report(report(worker, 900, {("compute", "load"): 9.0}), 300.0)
    assert operator(seen(run, 200.1), "gradient")["share"] is None


# -- bytes -------------------------------------------------------------------------------------


def test_bytes_of_an_edge_follow_from_steps_and_pace():
    found = edge(seen(running(), 5.2), "w -> gradient")
    assert found["crosses"]
    assert found["bytes"] == pytest.approx(200 * 2 * TABLE_BYTES)
    assert found["bytes_per_second"] == pytest.approx(50 * 2 * TABLE_BYTES)
    assert found["ratio"] is None


def test_a_codec_makes_an_edge_smaller():
    run = running(ssp_graph(codec=fl.codecs.top_k(0.1)))
    for worker in range(2):
        sent = [("gradient -> update_w", 1000, 125)]
        run.report(report(worker, 200, {("compute", "load"): 1.0}, sent=sent), 105.0)
    found = edge(seen(run, 5.2), "gradient -> update_w")
    assert (found["bytes"], found["ratio"]) == (250, 8.0)
    assert found["bytes_per_second"] == pytest.approx(50 * 2 * TABLE_BYTES / 8)


def test_an_edge_inside_a_replica_carries_nothing():
    found = edge(seen(running(), 5.2), "load -> gradient")
    assert (found["crosses"], found["bytes"]) == (False, 0.0)


# -- bounds ------------------------------------------------------------------------------------


def test_a_long_run_stays_small():
    run = running(windows=0)
    sizes = []
    for number in range(3000):
        window(run, number, at=2.0 + number, late=(number % 4, 0))
        tell(run, Evaluated(number, "test", {"loss": 1.0}), 2.0 + number)
        if number in (1499, 2999):
            sizes.append(len(json.dumps(seen(run, 2.5 + number), allow_nan=False)))
    found = seen(run, 3002.0)
    assert len(found["losses"]) <= MOST_POINTS
    assert found["losses"][0]["step"] == 50
    assert found["losses"][-1]["step"] == 150_000
    assert len(found["evaluations"][0]["points"]) <= MOST_POINTS
    assert len(found["events"]) == MOST_EVENTS
    assert sizes[1] < 1.5 * sizes[0] < 200_000


def test_ended_runs_are_forgotten_the_oldest_first():
    runs = Runs()
    for number in range(MOST_RUNS + 5):
        run = opened(sync_graph())
        run.key = f"run {number}"
        runs.add(run)
        if number:
            run.lose("over", 101.0)
    assert len(list(runs)) == MOST_RUNS
    assert runs.get("run 0") is not None  # it goes on
    assert runs.get("run 1") is None


def test_the_newest_run_that_goes_on_is_shown():
    runs = Runs()
    for key in ("a", "b"):
        run = opened(sync_graph())
        run.key = key
        runs.add(run)
    assert runs.state(None, 101.0, 0.0)["run"]["id"] == "b"
    runs.get("b").lose("over", 101.0)
    assert runs.state(None, 102.0, 0.0)["run"]["id"] == "a"
    assert [line["id"] for line in runs.state("b", 102.0, 0.0)["runs"]] == ["b", "a"]
    assert runs.state("c", 102.0, 0.0)["run"] is None
