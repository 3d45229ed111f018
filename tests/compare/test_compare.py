"""Graphs side by side: times to one loss, speed-ups, the plain loop beside them, table and page."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from distributed import Client

import flowml as fl
from flowml.appraisal import loss_over, sampled, score_over, subject_of
from flowml.cli import main
from flowml.cli.datasets import digits
from flowml.compare import Comparison, Row
from flowml.compare.numpy_loop import PlainLoop, fits, numpy_trial
from flowml.compare.rows import NUMPY, chosen_target, rows_of
from flowml.compare.trial import Curve, Task, Trial, points_of
from flowml.errors import PlanError
from graphs import asgd, kmeans, local_sgd, ssgd, ssp, top_k_ssgd
from tests.report.browser import opened

DATA = digits()
MODEL = fl.models.softmax(64, 10)
COLUMNS = [
    "graph", "replicas", "time", "examples", "speed-up", "efficiency", "NumPy", "bytes",
    "staleness", "accuracy", "gap",
]  # fmt: skip


def graphs_of(*modules: Any, **options: Any) -> dict[str, fl.Graph]:
    chosen = {"lr": 0.1, "batch_size": 64, **options}
    return {
        module.__name__.rpartition(".")[2]: module.build(MODEL, DATA.train, **chosen)
        for module in modules
    }


def curve(losses: list[float], seconds: list[float] | None = None) -> Curve:
    steps = np.arange(len(losses), dtype=float)
    return Curve(steps, np.array(seconds or steps), 10 * steps, np.array(losses))


def trial(name: str, replicas: int, losses: list[float], seconds: list[float] | None = None,
          **facts: Any) -> Trial:  # fmt: skip
    return Trial(name, replicas, "done", len(losses) - 1, 1.0, curve(losses, seconds), **facts)


# -- curves and rows ------------------------------------------------------------------------------


def test_a_loss_is_reached_on_the_line_between_two_points() -> None:
    falling = curve([4.0, 2.0, 1.0], [0.0, 1.0, 3.0])
    assert falling.reached(2.0) == (1.0, 10.0)
    assert falling.reached(3.0) == (0.5, 5.0)
    assert falling.reached(1.5) == (2.0, 15.0)
    assert falling.reached(4.0) == (0.0, 0.0)
    assert all(map(math.isnan, falling.reached(0.5)))
    assert curve([math.nan, 1.0]).reached(2.0) == (1.0, 10.0), "what is not finite is not above"
    assert all(map(math.isnan, Curve(*[np.zeros(0)] * 4).reached(1.0)))


def test_points_are_closer_at_the_start_and_end_with_the_run() -> None:
    found = points_of(1000, 16)
    assert (found[0], found[-1], len(found)) == (4, 1000, 16)
    gaps = np.diff(found)
    assert (gaps[1:] >= gaps[:-1] - 1).all()
    assert points_of(1, 16) == (1,)


def test_speedup_and_efficiency_are_against_one_replica_at_the_same_loss() -> None:
    trials = [
        trial(NUMPY, 1, [4.0, 1.0], [0.0, 6.0]),
        trial("a", 1, [4.0, 1.0], [0.0, 3.0]),
        trial("a", 2, [4.0, 1.0], [0.0, 2.0]),
        trial("b", 1, [4.0, 3.0]),
    ]
    plain, one, two, never = rows_of(trials, 1.0)
    assert (one.speedup, one.efficiency, one.against_numpy) == (1.0, 1.0, 2.0)
    assert (two.speedup, two.efficiency, two.against_numpy) == (1.5, 0.75, 3.0)
    assert plain.against_numpy == 1.0
    assert math.isnan(plain.speedup)
    assert not never.reached
    assert math.isnan(never.speedup)


def test_of_repetitions_the_median_counts() -> None:
    trials = [trial("a", 1, [4.0, 1.0], [0.0, t]) for t in (9.0, 1.0, 2.0)]
    (row,) = rows_of(trials, 1.0)
    assert row.target_seconds == 2.0


def test_a_target_that_nobody_names_is_what_all_come_to_that_get_half_of_the_way() -> None:
    trials = [trial("a", 1, [5.0, 2.0]), trial("b", 1, [5.0, 1.0]), trial("c", 1, [5.0, math.nan])]
    assert chosen_target(trials) == 2.0
    assert chosen_target([*trials, trial("lost", 1, [5.0, 4.0])]) == 2.0
    assert chosen_target([*trials, trial("slow", 1, [5.0, 3.0, 4.0])]) == 3.0
    assert math.isnan(chosen_target([]))


def test_the_verdict_names_the_first_and_says_when_one_process_is_enough() -> None:
    slow = trial(NUMPY, 1, [4.0, 1.0], [0.0, 9.0])
    fast = trial(NUMPY, 1, [4.0, 1.0], [0.0, 0.5])
    others = [trial("a", k, [4.0, 1.0], [0.0, 4.0 / k]) for k in (1, 2)]
    words = "2.00 times as fast as one replica and 4.50 times as fast as the NumPy loop."
    assert f"First to the target: a, 2 replicas, in 2 s: {words}" in str(
        Comparison([slow, *others], 1.0)
    )
    assert "First to the target: NumPy loop, in 500 ms. One process is enough for this." in str(
        Comparison([fast, *others], 1.0)
    )
    assert "Nothing came to the target." in str(Comparison(others, 0.1))


# -- what is judged -------------------------------------------------------------------------------


@pytest.mark.parametrize(("module", "table"), [(ssgd, "w"), (asgd, "w"), (local_sgd, "anchor")])
def test_the_table_for_all_replicas_is_judged(module: Any, table: str) -> None:
    (graph,) = graphs_of(module).values()
    subject = subject_of(graph.logical)
    assert subject.tables == (table,)
    assert subject.source is DATA.train
    assert [rule.name for rule in subject.rules if rule] == ["sgd"]


def test_several_tables_and_a_loss_of_ones_own_are_judged() -> None:
    def squares(params: Any, batch: Any) -> Any:
        (slope, offset), (x, y) = params, batch
        return np.mean((x @ slope + offset - y) ** 2)

    x = np.random.default_rng(0).normal(size=(60, 2))
    slope, offset = fl.table("slope", np.zeros(2)), fl.table("offset", np.zeros(()))
    grads = fl.gradient(squares, (slope, offset), fl.load((x, x @ [1.0, 2.0] + 3), batch_size=10))
    graph = fl.Graph(
        *(fl.update(t, fl.aggregate("mean", g), fl.adam(0.1))
          for t, g in zip((slope, offset), grads, strict=True))
    )  # fmt: skip
    found = fl.compare({"own": graph}, replicas=[1], epochs=30, executor="serial")
    plain, own = found.rows
    assert plain.graph == NUMPY
    assert own.train_loss < 1.0
    assert own.train_loss == pytest.approx(plain.train_loss, abs=0.5)
    assert (found.score, math.isnan(own.train_score)) == ("", True)
    assert "accuracy" not in str(found)


def test_replicas_with_tables_of_their_own_are_judged_by_the_mean() -> None:
    local = fl.table("local", MODEL.init(seed=0), scope="replica")
    grads = fl.gradient(MODEL, local, fl.load(DATA.train, batch_size=64))
    graph = fl.Graph(fl.update(local, grads, fl.sgd(0.1)))
    subject = subject_of(graph.logical)
    run = graph.run(steps=3, replicas=2, executor="serial")
    mean = subject.params(run.outcome.tables)
    assert np.allclose(mean["W"], np.mean([t["W"] for t in run.tables["local"]], axis=0))


def test_a_graph_without_a_gradient_of_one_load_is_refused() -> None:
    with pytest.raises(PlanError, match=r"graph 'kmeans': needs a gradient, whose loss is"):
        fl.compare({"kmeans": kmeans.build(DATA.train)})
    w = fl.table("w", MODEL.init(seed=0))
    model = fl.value_and_grad(lambda params, batch, here: MODEL.value_and_grad(params, batch))
    grads = fl.gradient(model, w, fl.load(DATA.train, batch_size=64), fl.here())
    graph = fl.Graph(fl.update(w, fl.aggregate("mean", grads), fl.sgd(0.1)))
    with pytest.raises(PlanError, match="must take tables and the batch of one load"):
        fl.compare({"placed": graph})


def test_a_sample_is_spread_evenly_and_no_larger_than_asked() -> None:
    rows = sampled(DATA.train, 100)
    assert 90 <= sum(map(len, rows)) <= 100
    assert sum(map(len, sampled(DATA.train, 10**6))) == len(DATA.train.rows())
    params = MODEL.init(seed=0)
    assert loss_over(MODEL, params, rows) == pytest.approx(
        loss_over(MODEL, params, DATA.train), rel=0.05
    )


# -- the plain loop -------------------------------------------------------------------------------


def task_of(**options: Any) -> Task:
    given = {
        "steps": None,
        "epochs": 2,
        "max_seconds": None,
        "seed": 0,
        "executor": "serial",
        "cluster": None,
        "points": 4,
        "judged": sampled(DATA.train, 500),
        "test": DATA.test,
    }
    return Task(**(given | options))


def test_the_plain_loop_is_minibatch_descent_written_out() -> None:
    (graph,) = graphs_of(ssgd, lr=0.1, momentum=0.9).values()
    subject, init = subject_of(graph.logical), graph.logical.table("w").init
    loop = PlainLoop(subject, [init], DATA.train.rows(), seed=3)
    X, y = DATA.train.rows().columns
    rng, params = np.random.default_rng(3), {k: np.array(v) for k, v in init.items()}
    velocity = {k: np.zeros_like(v) for k, v in init.items()}
    order = rng.permutation(len(X))
    for step in range(loop.steps_per_epoch + 2):
        at = step % loop.steps_per_epoch
        if at == 0 and step:
            order = rng.permutation(len(X))
        chosen = order[at * 64 : (at + 1) * 64]
        _, gradient = MODEL.value_and_grad(params, (X[chosen], y[chosen]))
        for name, slope in gradient.items():
            velocity[name] = 0.9 * velocity[name] + slope
            params[name] = params[name] - 0.1 * velocity[name]
        loop.step(step)
    for name, expected in params.items():
        np.testing.assert_allclose(loop.params[name], expected, rtol=2e-4, atol=1e-6)


def test_the_plain_loop_learns_as_one_replica_does() -> None:
    (graph,) = graphs_of(ssgd).values()
    subject, init = subject_of(graph.logical), [graph.logical.table("w").init]
    plain = numpy_trial(subject, init, task_of())
    run = graph.run(epochs=2, replicas=1, executor="serial")
    assert plain.steps == run.steps
    assert plain.train_loss == pytest.approx(
        loss_over(MODEL, run.tables["w"], DATA.train), rel=0.02
    )
    assert plain.test_score == score_over(MODEL, plain_params(plain, subject, init), DATA.test)
    assert plain.curve.examples[-1] == 2 * len(DATA.train.rows())


def plain_params(plain: Trial, subject: Any, init: list[Any]) -> Any:
    loop = PlainLoop(subject, init, subject.source.rows(), 0)
    for step in range(plain.steps):
        loop.step(step)
    return loop.params


def test_what_is_no_loop_of_gradients_and_rules_has_no_plain_one() -> None:
    w = fl.table("w", MODEL.init(seed=0))
    grads = fl.aggregate("mean", fl.gradient(MODEL, w, fl.load(DATA.train, batch_size=64)))
    graph = fl.Graph(fl.assign(w, grads))
    subject = subject_of(graph.logical)
    assert subject.rules == (None,)
    assert not fits(subject, [graph.logical.table("w").init])


# -- whole comparisons ----------------------------------------------------------------------------


def test_five_graphs_on_two_numbers_of_replicas(tmp_path: Path) -> None:
    chosen = graphs_of(ssgd, ssp, asgd, local_sgd, top_k_ssgd)
    found = fl.compare(chosen, replicas=[1, 2], epochs=3, test=DATA.test, executor="serial")
    assert [(row.graph, row.replicas) for row in found.rows] == [
        (NUMPY, 1), *((name, k) for name in chosen for k in (1, 2)),
    ]  # fmt: skip
    for row in found.rows:
        assert row.status == "done"
        assert row.seconds > 0
        assert 0.5 < row.train_score <= 1
        assert row.gap == row.train_score - row.test_score
        assert row.moved_bytes == 0 if row.replicas == 1 else row.moved_bytes != 0
    table = str(found)
    for word in (*COLUMNS, *chosen, NUMPY, "accuracy"):
        assert word in table
    assert len([line for line in table.splitlines() if line.strip()]) >= 11 + 4
    frame = found.to_pandas()
    assert list(frame.columns) == [f for f in Row.__dataclass_fields__]
    assert len(frame) == 11
    assert json.loads(json.dumps(found.to_dict()))["rows"][0]["speedup"] is None


def test_a_simulated_comparison_is_in_virtual_time_and_repeats_itself() -> None:
    chosen = graphs_of(ssgd, asgd)
    found, again = (
        fl.compare(chosen, replicas=[2, 8], epochs=2, executor="simulated") for _ in range(2)
    )
    assert [row.graph for row in found.rows] == ["ssgd"] * 3 + ["asgd"] * 3, "no plain loop"
    assert [row.replicas for row in found.rows] == [1, 2, 8] * 2, "one replica is added"
    assert found.to_dict() == again.to_dict()
    assert "virtual" in str(found)


def test_on_a_cluster_bytes_and_staleness_are_counted(client: Client) -> None:
    found = fl.compare(
        graphs_of(ssp, top_k_ssgd), replicas=[1, 2], epochs=3, cluster=client, test=DATA.test
    )
    rows = {(row.graph, row.replicas): row for row in found.rows}
    steps = rows["ssp", 2].steps
    table_bytes = 650 * 4
    assert rows["ssp", 2].moved_bytes == pytest.approx(2 * 2 * steps * table_bytes, rel=0.1)
    assert 0 <= rows["ssp", 2].staleness <= 3
    assert rows["ssp", 1].staleness_max == 0
    assert rows["top_k_ssgd", 2].moved_bytes < 0.7 * rows["ssp", 2].moved_bytes
    assert all(row.target_seconds > 0 for row in found.rows if row.reached)


def test_graphs_may_be_made_for_each_number_of_replicas() -> None:
    made: list[int] = []

    def build(replicas: int) -> fl.Graph:
        made.append(replicas)
        return ssgd.build(MODEL, DATA.train, lr=0.1, batch_size=128 // replicas)

    found = fl.compare({"same total": build}, replicas=[1, 4], epochs=2, executor="serial")
    assert made == [1, 4]
    one, four = found.rows[1:]
    assert one.steps == four.steps


def test_a_named_target_is_kept_and_one_that_is_too_low_is_not_reached() -> None:
    chosen = graphs_of(ssgd)
    found = fl.compare(chosen, replicas=[1], epochs=1, executor="serial", target_loss=1e-9)
    assert found.target_loss == 1e-9
    assert not found.chosen
    assert str(found).count("not reached") == 2


def test_a_graph_that_diverges_is_a_row_that_says_so() -> None:
    @fl.value_and_grad
    def broken(params: Any, batch: Any) -> Any:
        loss, gradient = MODEL.value_and_grad(params, batch)
        return (np.nan if params["W"].any() else loss), gradient

    w = fl.table("w", MODEL.init(seed=0))
    grads = fl.gradient(broken, w, fl.load(DATA.train, batch_size=64))
    bad = fl.Graph(fl.update(w, fl.aggregate("mean", grads), fl.sgd(0.1)))
    found = fl.compare({**graphs_of(ssgd), "bad": bad}, replicas=[1], epochs=1, executor="serial")
    rows = {row.graph: row for row in found.rows}
    assert rows["bad"].status == "diverged"
    assert rows["ssgd"].reached
    assert "diverged" in str(found)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "needs a mapping of names to graphs, got none"),
        ([ssgd], "needs a mapping of names to graphs, got a list"),
        ({"a": 3}, "fl.compare 'a': must be a fl.Graph or make one, got a int"),
    ],
)
def test_what_is_no_graph_is_refused(given: Any, words: str) -> None:
    with pytest.raises(PlanError) as caught:
        fl.compare(given)
    assert words in str(caught.value)


@pytest.mark.parametrize("options", [{"replicas": [0]}, {"replicas": [None]}, {"repetitions": 0}])
def test_options_without_a_meaning_are_refused(options: Any) -> None:
    with pytest.raises(PlanError, match="must be"):
        fl.compare(graphs_of(ssgd), executor="serial", **options)


# -- pages and the command line -------------------------------------------------------------------


def test_the_page_opens_without_a_network(tmp_path: Path) -> None:
    found = fl.compare(
        graphs_of(ssgd, asgd), replicas=[1, 2], epochs=2, test=DATA.test, executor="serial"
    )
    path = found.report(tmp_path / "compare.html")
    assert path.stat().st_size < 3 * 2**20
    seen = opened(path, figures=6)
    assert seen.complaints == ()
    assert seen.requests == ()
    for words in ("Convergence", "Speed", "Generalisation", "NumPy loop", "asgd", "Graphs"):
        assert words in seen.text


@pytest.fixture
def flowml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(main, words)


def test_the_command_prints_the_table_and_writes_the_page(flowml: Any, tmp_path: Path) -> None:
    names = ("ssgd", "ssp", "asgd", "local_sgd", "top_k_ssgd")
    found = flowml(
        "compare", *names, "--replicas", "1,2", "--epochs", "2", "--executor", "serial",
        "--report", "page.html",
    )  # fmt: skip
    assert (found.exit_code, found.stderr) == (0, "")
    lines = found.stdout.splitlines()
    assert (
        lines[0]
        == "ssgd, ssp, asgd, local_sgd, top_k_ssgd · digits · softmax 64 -> 10 · 1,2 replicas"
    )
    cells = [line.split() for line in lines]
    for name in names:
        assert [c[1] for c in cells if c[:1] == [name]] == ["1", "2"]
    assert [c[:2] for c in cells if c[:1] == ["NumPy"]] == [["NumPy", "loop"]]
    assert "…" not in found.stdout
    assert lines[-1] == "wrote page.html"
    assert "Convergence" in (tmp_path / "page.html").read_text()


def test_the_command_in_json(flowml: Any) -> None:
    found = flowml(
        "compare", "ssgd", "--replicas", "1", "--epochs", "1", "--executor", "serial", "--json",
        "--target-loss", "2.2",
    )  # fmt: skip
    result = json.loads(found.stdout)
    assert (result["target_loss"], result["score"]) == (2.2, "accuracy")
    assert [row["graph"] for row in result["rows"]] == [NUMPY, "ssgd"]


def test_settings_go_to_the_graphs_that_take_them(flowml: Any) -> None:
    words = ("compare", "ssgd", "local_sgd", "--replicas", "2", "--epochs", "1", "--executor",
             "serial", "--json")  # fmt: skip
    plain, one, both = (
        json.loads(flowml(*words, *more).stdout)["rows"]
        for more in ((), ("--set", "period=2"), ("--set", "local_sgd.period=2"))
    )
    losses = [[row["train_loss"] for row in rows] for rows in (plain, one, both)]
    assert losses[1] == losses[2]
    assert losses[0][:3] == losses[1][:3], "the loop and ssgd take no period"
    assert losses[0][4] != losses[1][4]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--replicas", "two"), "--replicas needs numbers such as 1,2,4, got 'two'"),
        (("--set", "perod=2"), "no graph takes 'perod'. They take batch_size"),
        (("--set", "asgd.lr=2"), "no graph takes 'asgd.lr'"),
    ],
)
def test_usage_errors(flowml: Any, more: tuple[str, ...], words: str) -> None:
    found = flowml("compare", "ssgd", *more)
    assert found.exit_code == 2
    assert words in found.stderr


def test_the_total_batch_is_cut_among_the_replicas(flowml: Any) -> None:
    found = flowml(
        "compare", "ssgd", "--replicas", "1,4", "--epochs", "1", "--executor", "serial",
        "--total-batch", "128", "--json",
    )  # fmt: skip
    steps = {row["replicas"]: row["steps"] for row in json.loads(found.stdout)["rows"][1:]}
    assert steps[1] == steps[4]
