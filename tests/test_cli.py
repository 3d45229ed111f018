"""The command line: what it prints, and how it ends."""

import gzip
import json
import os
import signal
import struct
import subprocess
import sys
import xml.etree.ElementTree as ET
from importlib.metadata import entry_points
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

import flowml as fl
from flowml import mainguard
from flowml.cli import main
from flowml.cli.arguments import groups_of
from flowml.cli.building import graph_names
from flowml.cli.datasets import find_dataset, steps_of_epoch, width_of
from flowml.cli.endings import Terminated, exit_code
from flowml.errors import (
    CheckpointError,
    DataError,
    DivergedError,
    GraphError,
    OperatorError,
    PlanError,
    StalledError,
    WorkerLostError,
)

ROOT = Path(__file__).resolve().parents[1]
SERIAL = ("--executor", "serial", "--replicas", "2", "--steps", "5")
DEADLINE = 60.0


@pytest.fixture
def flowml(tmp_path, monkeypatch):
    """Run a command line in an empty folder and return its result."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLOWML_DATA", raising=False)
    return lambda *words: CliRunner().invoke(main, words)


def graph_file(tmp_path, body, name="mine.py"):
    """Write a graph whose loss is ``body``; return its path."""
    path = tmp_path / name
    path.write_text(
        "import numpy as np, flowml as fl\n"
        "@fl.value_and_grad\n"
        f"def loss(w, batch):\n    {body}\n"
        "w = fl.table('w', np.zeros(3))\n"
        "batch = fl.load((np.ones((8, 3)), np.ones(8)), batch_size=2)\n"
        "mean = fl.aggregate('mean', fl.gradient(loss, w, batch))\n"
        "graph = fl.Graph(fl.update(w, mean, fl.sgd(0.1)), name='mine')\n"
    )
    return str(path)


# -- run ------------------------------------------------------------------------------------------


def test_run_a_published_algorithm_prints_losses_and_accuracy(flowml):
    found = flowml("run", "ssgd", "--executor", "serial", "--replicas", "2", "--epochs", "3")
    assert (found.exit_code, found.stderr) == (0, "")
    lines = found.stdout.splitlines()
    assert lines[0].endswith("ssgd · digits · softmax 64 -> 10 · 2 replicas · serial")
    assert lines[1].startswith("done: 18 steps in ")
    digits = lines[2].removeprefix("training loss ").partition(".")[2]
    assert len(digits) == 10
    assert lines[4].startswith("test accuracy 0.")


OWN_DATA = {
    "rotated_mf": np.random.default_rng(0).integers(0, 9, (40, 2)),
    "skip_gram": np.random.default_rng(0).integers(-1, 30, (40, 9)),
}
"""Rows for the algorithms that nothing can be made of digits by."""


@pytest.mark.parametrize("name", graph_names())
def test_every_published_algorithm_runs_by_name(flowml, name):
    words = ()
    if name in OWN_DATA:
        np.savez("own.npz", X=OWN_DATA[name], y=np.zeros(len(OWN_DATA[name])))
        words = ("--data", "own.npz")
    found = flowml("run", name, *words, *SERIAL)
    assert (found.exit_code, found.stderr) == (0, "")


def test_run_json_is_one_object(flowml):
    found = flowml("run", "ssgd", *SERIAL, "--json")
    result = json.loads(found.stdout)
    assert (result["status"], result["steps"], result["replicas"]) == ("done", 5, 2)
    assert result["test_accuracy"] > 0.1


def test_run_writes_a_report_and_a_trace_where_asked(flowml, tmp_path):
    found = flowml("run", "ssgd", *SERIAL, "--report", "run.html", "--trace", "run.json")
    assert found.stdout.splitlines()[-2:] == ["wrote run.html", "wrote run.json"]
    assert "Run of ssgd" in (tmp_path / "run.html").read_text()
    assert json.loads((tmp_path / "run.json").read_text())["traceEvents"]
    assert len(list(tmp_path.iterdir())) == 2


def test_total_batch_is_cut_among_replicas(flowml):
    words = ("run", "ssgd", "--executor", "serial", "--steps", "4", "--json", "--lr", "0.1")
    whole = flowml(*words, "--replicas", "1", "--total-batch", "64")
    cut = flowml(*words, "--replicas", "2", "--batch", "32")
    shared = flowml(*words, "--replicas", "2", "--total-batch", "64")
    losses = [json.loads(r.stdout)["training_loss"] for r in (whole, cut, shared)]
    assert losses[1] == losses[2]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_a_schedule_is_as_long_as_the_run(flowml):
    words = ("run", "ssgd", *SERIAL, "--json")
    constant = json.loads(flowml(*words, "--lr", "0.5").stdout)["training_loss"]
    cosine = json.loads(flowml(*words, "--lr", "0.5", "--schedule", "cosine").stdout)
    assert cosine["training_loss"] > constant  # its rate is lower all the way


def test_options_of_the_model_and_set_reach_build(flowml):
    found = flowml(
        "run",
        "local_sgd",
        *SERIAL,
        "--model",
        "mlp",
        "--hidden",
        "16,8",
        "--l2",
        "0.01",
        "--set",
        "period=2",
        "--dtype",
        "float64",
        "--momentum",
        "0.9",
    )
    assert found.exit_code == 0
    assert "mlp 64 -> 16 -> 8 -> 10" in found.stdout


def test_a_file_with_a_graph_runs(flowml, tmp_path):
    found = flowml("run", graph_file(tmp_path, "return 1.0, w"), *SERIAL)
    assert (found.exit_code, found.stderr) == (0, "")
    assert "last loss 1.0000000000" in found.stdout


def test_new_writes_a_file_that_shows_and_runs(flowml):
    assert flowml("new", "my_graph.py").exit_code == 0
    assert "loss" in flowml("show", "my_graph.py").stdout
    found = flowml("run", "my_graph.py", "--executor", "serial", "--replicas", "2", "--epochs", "2")
    assert (found.exit_code, found.stderr) == (0, "")
    again = flowml("new", "my_graph.py")
    assert again.exit_code == 2
    assert "is there already" in again.stderr


def test_demo_learns_the_digits(flowml):
    for words in ((), ("--every", "8")):
        found = flowml("demo", "--executor", "serial", "--epochs", "30", *words)
        assert (found.exit_code, found.stderr) == (0, "")
        accuracy = float(found.stdout.partition("test accuracy ")[2].split()[0])
        assert accuracy >= 0.95
        assert ("every(8)" if words else "sync") in found.stdout


# -- how it ends ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GraphError("a", "b"), 1),
        (DataError("a", "b"), 1),
        (PlanError("a", "b"), 1),
        (CheckpointError("a", "b"), 1),
        (ZeroDivisionError(), 1),
        (DivergedError("a", "b"), 3),
        (WorkerLostError("a", "b"), 4),
        (OperatorError("a", "b"), 5),
        (StalledError("a", "b"), 5),
        (KeyboardInterrupt(), 130),
        (Terminated(), 143),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_exit_codes(error, code):
    assert exit_code(error) == code


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("return np.nan, w", 3, "the loss must be finite"),
        ("raise KeyError('x')", 5, "raised KeyError"),
        ("return 1.0, w[:1]", 5, "the gradient must have the structure, shapes"),
    ],
)
def test_a_failing_operator_ends_with_one_line(flowml, tmp_path, body, code, words):
    found = flowml("run", graph_file(tmp_path, body), *SERIAL)
    assert found.exit_code == code
    assert found.stderr.startswith("flowml: error: operator 'gradient' (mine.py:")
    assert words in found.stderr
    assert len(found.stderr.splitlines()) == 1


def test_the_input_of_a_failing_operator_is_written_where_asked(flowml, tmp_path):
    file = graph_file(tmp_path, "raise KeyError('x')")
    found = flowml("run", file, *SERIAL)
    assert found.stderr.endswith(". --failures FOLDER keeps its input.\n")
    found = flowml("run", file, *SERIAL, "--failures", "calls")
    assert "graph.failed_call('calls/gradient-replica0-step0.npz').again()" in found.stderr
    assert [p.name for p in (tmp_path / "calls").iterdir()] == ["gradient-replica0-step0.npz"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import flowml as fl\nfl.gradiant\n", "AttributeError"),
        ("graph = \n", "SyntaxError"),
        ("x = 1\n", "a file needs build(...) or a fl.Graph called graph, got neither"),
        ("import flowml as fl\nfl.load([1.0], batch_size=0)\n", "mine.py:2"),
        ("def build(source):\n    return 1\n", "must return a fl.Graph, got int"),
        ("def build(source):\n    return source.nothing\n", "mine.py:2: AttributeError"),
    ],
)
def test_a_wrong_file_ends_with_its_place(flowml, tmp_path, text, words):
    path = tmp_path / "mine.py"
    path.write_text(text)
    found = flowml("run", str(path), *SERIAL)
    assert found.exit_code == 1
    assert found.stderr.startswith("flowml: error: ")
    assert words in found.stderr
    assert "Traceback" not in found.stderr


def test_traceback_is_there_for_who_asks(flowml, tmp_path):
    found = flowml("run", graph_file(tmp_path, "raise KeyError('x')"), *SERIAL, "--traceback")
    assert found.exit_code == 5
    assert "Traceback (most recent call last)" in found.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "ssdg"), "no graph 'ssdg'. Did you mean 'ssgd'?"),
        (("run", "nothing/there.py"), "no such file"),
        (("run", "ssgd", "--replicas", "0"), "not in the range"),
        (("run", "ssgd", "--total-batch", "5", "--replicas", "2"), "cannot be cut evenly"),
        (("run", "ssgd", "--batch", "5", "--total-batch", "5"), "not both"),
        (("run", "ssgd", "--set", "perod=3"), "ssgd takes no 'perod'"),
        (("run", "ssgd", "--set", "period"), "needs key=value"),
        (("run", "kmeans", "--lr", "0.1"), "kmeans takes no lr"),
        (("run", "ssgd", "--schedule", "cosine", "--cluster", "tcp://x"), "needs --replicas"),
        (("explain", "ssgd", "--groups", "some"), "--groups needs host, a number or lists"),
        (("nonsense",), "No such command"),
    ],
)
def test_usage_errors_exit_with_2(flowml, words, message):
    found = flowml(*words)
    assert found.exit_code == 2
    assert message in found.stderr


def test_missing_data_names_what_is_there(flowml, tmp_path, monkeypatch):
    assert "FLOWML_DATA" in flowml("run", "ssgd", "--data", "mnist").stderr
    (tmp_path / "fashion-mnist").mkdir()
    monkeypatch.setenv("FLOWML_DATA", str(tmp_path))
    found = flowml("run", "ssgd", "--data", "fashion-minst")
    assert found.exit_code == 1
    assert "There is fashion-mnist" in found.stderr


# -- show, explain, doctor ------------------------------------------------------------------------


def test_show_in_each_form(flowml, tmp_path):
    assert "↺ w -> gradient -> mean -> update_w" in flowml("show", "ssgd").stdout
    assert flowml("show", "ssgd", "--format", "mermaid").stdout.startswith("flowchart TD")
    found = flowml("show", "ssgd", "--format", "svg", "--output", "ssgd.svg")
    assert found.stdout == "wrote ssgd.svg\n"
    assert ET.parse(tmp_path / "ssgd.svg").getroot().tag.endswith("svg")


def test_explain_text_and_json(flowml):
    assert "graph ssgd with 3 replicas" in flowml("explain", "ssgd", "--replicas", "3").stdout
    found = json.loads(flowml("explain", "ssgd", "--json").stdout)
    assert found["replicas"] == 2
    assert found["stages"][0][0] == "check"


def test_explain_calibrates_on_the_cluster_that_is_named(flowml, cluster):
    words = ("explain", "ssgd", "--calibrate", "--cluster", cluster.scheduler_address)
    found = json.loads(flowml(*words, "--json").stdout)
    assert found["timed"] == 2
    assert found["prediction"]["seconds"] > 0
    assert [point["replicas"] for point in found["curve"]] == [1, 2, 4, 8]
    assert found["advice"][0].startswith("communication is ")


def test_doctor_says_ok_or_what_to_do(flowml, monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    found = flowml("doctor")
    assert found.exit_code == 0
    assert "unset MALLOC_TRIM_THRESHOLD_" in found.stdout
    lines = json.loads(flowml("doctor", "--json").stdout)
    assert {line["status"] for line in lines} <= {"ok", "warn"}
    assert all(line["advice"] for line in lines if line["status"] == "warn")
    names = {line["name"] for line in lines}
    assert {"versions", "BLAS", "memfd", "unix sockets", "loopback", "configuration"} <= names


def test_it_is_a_command_of_dask():
    (found,) = (e for e in entry_points(group="dask_cli") if e.name == "flowml")
    assert found.value == "flowml.cli:main"
    assert isinstance(main, click.Group)
    assert main.name == "flowml"


def test_help_of_every_command(flowml):
    assert sorted(main.commands) == "compare demo doctor explain new run show".split()
    for name in main.commands:
        found = flowml(name, "--help")
        assert found.exit_code == 0
        assert "--traceback" in found.stdout


@pytest.mark.parametrize(
    ("text", "groups"), [(None, None), ("host", "host"), ("2", 2), ("[[0,1],[2]]", [[0, 1], [2]])]
)
def test_groups(text, groups):
    assert groups_of(text) == groups


# -- data -----------------------------------------------------------------------------------------


def write_idx(path, values):
    head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    with gzip.open(path, "wb") as file:
        file.write(head + values.astype("u1").tobytes())


def test_idx_folder_with_its_test_set(tmp_path):
    for part, count in (("train", 6), ("t10k", 4)):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", np.full((count, 2, 2), 255))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", np.arange(count))
    found = find_dataset(str(tmp_path))
    assert (len(found.train.rows()), len(found.test.rows())) == (6, 4)
    assert found.train.rows().columns[0].max() == 1.0  # pixels are scaled
    assert found.train.rows().columns[0].dtype == np.float32


def test_libsvm_pair_gets_one_width(tmp_path, monkeypatch):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "tiny").write_text("1 1:1 5:2\n-1 2:1\n")
    (folder / "tiny.t").write_text("1 3:1\n")
    monkeypatch.setenv("FLOWML_DATA", str(tmp_path))
    found = find_dataset("tiny", dtype="float64")
    assert (width_of(found.train), width_of(found.test)) == (5, 5)


@pytest.mark.parametrize("form", ["npz", "csv", "parquet"])
def test_files_by_their_ending(tmp_path, form):
    X, y = np.arange(12.0, dtype="float32").reshape(4, 3), np.array([0, 1, 0, 1])
    path = tmp_path / f"rows.{form}"
    if form == "npz":
        np.savez(path, X=X, y=y)
    else:
        pandas = pytest.importorskip("pandas")
        frame = pandas.DataFrame(X, columns=["a", "b", "c"]).assign(y=y)
        frame.to_csv(path, index=False) if form == "csv" else frame.to_parquet(path)
    found = find_dataset(str(path), test=str(path))
    assert (width_of(found.train), width_of(found.test)) == (3, 3)


def test_digits_are_cut_in_two():
    found = find_dataset("digits")
    assert (len(found.train.rows()), len(found.test.rows())) == (1438, 359)


def test_steps_of_an_epoch_are_those_of_the_longest_share():
    whole = fl.data.arrays(np.zeros((10, 1)))
    assert [steps_of_epoch(whole, k, 2) for k in (1, 2, 3)] == [5, 3, 2]
    assert steps_of_epoch(whole, 2, None) == 1
    parts = fl.data.parts([np.zeros((n, 1)) for n in (4, 1, 2)])
    assert steps_of_epoch(parts, 2, 2) == 3


# -- real processes -------------------------------------------------------------------------------


def started(*words, cwd):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "flowml", *words],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_ends_a_run_with_one_line(tmp_path, number, code, word):
    once = "globals().get('told') or globals().update(told=1) or print('going', flush=True)"
    file = graph_file(tmp_path, f"{once}; return 1.0, w")
    running = started("run", file, "--executor", "serial", "--epochs", "1000000000", cwd=tmp_path)
    try:
        assert "going\n" in iter(running.stdout.readline, "")
        running.send_signal(number)
        _, errors = running.communicate(timeout=DEADLINE)
    finally:
        running.kill()  # one that goes on would take a core from all later tests
    assert running.returncode == code
    assert errors.startswith(f"flowml: {word} after step ")
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize("executor", ["resident", "tasks"])
def test_an_operator_that_fails_on_a_worker_is_one_line(tmp_path, executor):
    """Nothing of Dask's own in between: no key, no traceback of our inside."""
    file = graph_file(
        tmp_path, "if np.any(w < -0.35): raise KeyError('x')\n    return 1.0, w * 0 + 1"
    )
    words = ("run", file, "--executor", executor, "--replicas", "2", "--steps", "9")
    running = started(*words, cwd=tmp_path)
    try:
        _, errors = running.communicate(timeout=DEADLINE)
    finally:
        running.kill()
    assert running.returncode == 5
    assert errors.startswith("flowml: error: operator 'gradient' (mine.py:8) in replica ")
    assert "step 4, on worker tcp://127.0.0.1:" in errors
    assert "raised KeyError: 'x' at mine.py:4 in loss" in errors
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ("go()", mainguard.MESSAGE.format(place="script.py:7") + "\n"),
        ('if __name__ == "__main__":\n    go()', ""),
    ],
)
def test_a_missing_main_guard_is_one_line(tmp_path, last, message):
    script = tmp_path / "script.py"
    script.write_text(
        "from importlib.util import module_from_spec, spec_from_file_location\n"
        f"spec = spec_from_file_location('mainguard', {mainguard.__file__!r})\n"  # imports no Dask
        "guard = module_from_spec(spec)\n"
        "spec.loader.exec_module(guard)\n"
        "def go():\n"
        "    guard.refuse_inherited_start()\n"
        f"{last}\n"
    )
    found = subprocess.run(
        [sys.executable, str(script)], text=True, capture_output=True, timeout=DEADLINE, check=False
    )
    assert (found.returncode, found.stderr) == (int(bool(message)), message)


@pytest.mark.parametrize("last", ["graph.run(steps=2)", "fl.compare({'mine': graph}, steps=2)"])
def test_a_script_without_the_guard_ends_with_one_line(tmp_path, last):
    path = Path(graph_file(tmp_path, "return 1.0, w", "script.py"))
    path.write_text(f"{path.read_text()}{last}\n")
    line = len(path.read_text().splitlines())
    found = subprocess.run(
        [sys.executable, str(path)],
        text=True,
        capture_output=True,
        timeout=DEADLINE,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert found.returncode == 1
    assert found.stderr == f"{mainguard.MESSAGE.format(place=f'script.py:{line}')}\n"


def test_the_guard_lets_pytest_start_clusters():
    assert mainguard.unguarded_line() is None
    mainguard.refuse_inherited_start()
