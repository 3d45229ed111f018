"""The report of a run: one file, no network, and what it must say."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client

import flowml as fl
from flowml.compiler.stages import compile_graph
from flowml.execution import Run
from flowml.report import write_report
from flowml.report.figures import smoothed
from flowml.runtime.outcome import HistoryBuilder, Outcome, history_block
from flowml.runtime.spans import as_spans
from tests.report.browser import opened

LARGEST = 5 * 2**20
"""Bytes, of 10,000 steps."""
X = np.random.default_rng(0).normal(size=(120, 6)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 120)
SECTIONS = [
    "Graph", "Loss", "Evaluations", "Replicas", "Staleness", "Bytes", "Plan",
    "Versions and options",
]  # fmt: skip


def graph(promise: Any = lambda w: w, *, evaluated: bool = True, codec: Any = None) -> fl.Graph:
    model = fl.models.softmax(6, 3)
    w = fl.table("w", model.init(seed=0))
    grads = fl.gradient(model, promise(w), fl.load((X, Y), batch_size=4))
    sent = grads if codec is None else grads.compress(codec)
    sinks = [fl.update(w, fl.aggregate("mean", sent), fl.sgd(0.1))]
    if evaluated:
        metrics = lambda p, rows: {"loss": model.loss(p, rows), "score": model.score(p, *rows)}  # noqa: E731
        sinks.append(fl.evaluate(metrics, w, (X, Y), every=10, name="test"))
    return fl.Graph(*sinks, name="three classes")


class Text(HTMLParser):
    """The text of a page by section, and what it would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.titles: list[str] = []
        self.loads: list[str] = []
        self.text: dict[str, str] = {"": ""}
        self._inside: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside.append(tag)
        for name, value in attrs:
            if name in ("src", "href") and value and not value.startswith(("#", "data:")):
                self.loads.append(value)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._inside:
            while self._inside.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if "script" in self._inside or "style" in self._inside:
            return
        if self._inside[-1:] == ["h2"]:
            self.titles.append(data)
            self.text[data] = ""
        self.text[self.titles[-1] if self.titles else ""] += f"{data} "


def report(run: Run, folder: Path) -> tuple[Path, Text]:
    path = run.report(folder / "report.html")
    assert path == folder / "report.html"
    return path, Text(path.read_text())


def slowed(replicas: int = 4, steps: int = 30, **options: Any) -> Run:
    compute = fl.simulate.Compute(0.01, spread=0.2, slow={2: 5.0})
    return graph(lambda w: w.stale(2)).simulate(
        replicas=replicas, steps=steps, seed=3, compute=compute, **options
    )


def test_all_sections_are_there_in_their_order(tmp_path: Path) -> None:
    run = graph().run(steps=30, replicas=2, executor="serial")
    _, page = report(run, tmp_path)
    assert page.titles == SECTIONS
    head = page.text[""]
    assert "Run of three classes" in head
    assert re.search(r"status done steps 30 seconds [\d.e-]+ ", head)
    assert "executor serial" in head
    assert "The time of a replica goes to" in head
    assert "All edges are sync: every read was fresh." in page.text["Staleness"]
    assert "phase 1" in page.text["Plan"]
    assert "sum (0, 1)" in page.text["Plan"]
    assert f"numpy {np.__version__}" in page.text["Versions and options"]
    assert "seed 0" in page.text["Versions and options"]


def test_it_is_one_file_that_asks_for_nothing(tmp_path: Path) -> None:
    path, page = report(graph().run(steps=10, replicas=2, executor="serial"), tmp_path)
    assert page.loads == []
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_evaluations_and_their_times_are_shown(tmp_path: Path) -> None:
    run = graph().run(steps=30, replicas=2, executor="serial")
    _, page = report(run, tmp_path)
    last = run.metrics[-1]
    assert f"test loss {last['loss']:.6g}" in page.text["Evaluations"]
    assert f"test score {last['score']:.6g}" in page.text["Evaluations"]


def test_a_straggler_is_named_in_the_head_and_marked(tmp_path: Path) -> None:
    path, page = report(slowed(), tmp_path)
    assert re.search(
        r"Replica 2 is a straggler: its steps take (4\.\d|5\.\d) times as long as the median of "
        r"the others; they wait \d\d% of their time\.",
        page.text[""],
    )
    assert "<tr class=warn><td>replica 2</td>" in path.read_text()
    assert page.text["Replicas"].index("replica 2") < page.text["Replicas"].index("replica 0")


def test_a_straggler_on_a_cluster_is_named_with_its_worker(client: Client, tmp_path: Path) -> None:
    run = graph(evaluated=False).run(steps=12, replicas=2, cluster=client, progress=False)
    slow = 1
    history = run.outcome.history
    mine = history["replica"] == slow
    history["seconds"][mine], history["wait_seconds"][mine] = 0.5, 0.0
    history["seconds"][~mine], history["wait_seconds"][~mine] = 0.5, 0.4
    _, page = report(run, tmp_path)
    worker = run.timeline.workers[slow]
    words = f"Replica {slow} on worker {worker} is a straggler: its steps take 5.0 times"
    assert words in page.text[""]


def test_without_one_nobody_is_blamed(tmp_path: Path) -> None:
    run = graph().simulate(replicas=3, steps=10)
    _, page = report(run, tmp_path)
    assert "straggler" not in page.text[""]


def test_virtual_time_is_called_so(tmp_path: Path) -> None:
    path, page = report(slowed(), tmp_path)
    assert "virtual seconds" in page.text[""]
    assert "by virtual seconds" in path.read_text()


def test_staleness_has_its_bound(tmp_path: Path) -> None:
    run = slowed()
    _, page = report(run, tmp_path)
    seen = run.history["staleness"]
    assert (
        f"at most {seen.max()}, {seen.mean():.2f} on average; the bound is 2."
        in (page.text["Staleness"])
    )


def test_bytes_of_each_edge_and_what_a_codec_saves(tmp_path: Path) -> None:
    run = graph(lambda w: w.async_(), codec=fl.codecs.float16()).run(
        steps=20, replicas=2, executor="serial", record=True
    )
    _, page = report(run, tmp_path)
    text = page.text["Bytes"]
    assert "w -> gradient async 168 B" in text, "21 numbers of 4 bytes for each of two replicas"
    assert re.search(r"gradient -> mean async float16\S* 84 B \S+ \S+ 2\.0 x", text)
    counted = run.ledger
    for kind, words in (("read", "read"), ("deliver", "delivered")):
        total = int(counted["bytes"][counted["kind"] == kind].sum())
        assert re.search(rf"{total / 1024:.2f} kiB {words}", text)


def test_a_graph_without_a_gradient_has_no_loss(tmp_path: Path) -> None:
    total = fl.table("total", np.zeros(()))
    share = fl.map(lambda rows: float(len(rows)), fl.load(X, batch_size=4))
    run = fl.Graph(fl.update(total, fl.aggregate("sum", share), fl.add())).run(
        steps=5, replicas=2, executor="serial"
    )
    _, page = report(run, tmp_path)
    assert "The graph has no gradient, so there is no loss." in page.text["Loss"]


def test_a_run_that_failed_shows_its_error_escaped(tmp_path: Path) -> None:
    def fails(grad: Any, here: Any) -> Any:
        if here.clock == 4:
            raise ValueError("<b>not</b> & never")
        return grad

    model = fl.models.softmax(6, 3)
    w = fl.table("w", model.init(seed=0))
    grads = fl.gradient(model, w, fl.load((X, Y), batch_size=4))
    mine = fl.map(fails, grads, fl.here(), name="mine")
    failing = fl.Graph(fl.update(w, fl.aggregate("mean", mine), fl.sgd(0.1)))
    with pytest.raises(fl.OperatorError) as caught:
        failing.run(steps=9, replicas=2, executor="serial")
    path, page = report(caught.value.run, tmp_path)
    assert "status failed steps 4" in page.text[""]
    assert "raised ValueError: <b>not</b> & never" in page.text[""]
    assert "&lt;b&gt;not&lt;/b&gt; &amp; never" in path.read_text()


def test_a_run_that_made_no_step_has_a_report(tmp_path: Path) -> None:
    logical = graph().logical
    outcome = Outcome(compile_graph(logical, 2), history=HistoryBuilder().columns())
    page = Text(write_report(tmp_path / "empty.html", logical, outcome).read_text())
    assert "Graph" in page.titles
    assert "Loss" not in page.titles


def long_outcome(steps: int, replicas: int) -> Outcome:
    """Return an outcome of so many steps, made up: what a report costs does not depend on it."""
    rng, builder = np.random.default_rng(0), HistoryBuilder()
    for replica in range(replicas):
        seconds = rng.gamma(2.0, 1e-3, steps) * (1 + 4 * (replica == 1))
        waits = 0.3 * seconds * (replica != 1)
        late = rng.integers(0, 5, steps)
        loss = np.exp(-np.arange(steps) / steps) + rng.normal(0, 0.01, steps)
        builder.add(history_block(range(steps), replica, loss, seconds, waits, late))
    plan = compile_graph(graph(lambda w: w.stale(4)).logical, replicas)
    spans = as_spans((r, s, o, 0.01 * s, 1e-3) for r in range(replicas) for s in range(3, 900, 17)
                     for o in range(4))  # fmt: skip
    metrics = [{"step": s, "name": "test", "loss": 1.0 / s} for s in range(10, steps, 10)]
    return Outcome(
        plan, steps=steps, history=builder.columns(), spans=spans, metrics=metrics, seconds=30.0
    )


@pytest.mark.parametrize("replicas", [2, 16, 300])
def test_ten_thousand_steps_stay_below_five_megabytes(replicas: int, tmp_path: Path) -> None:
    steps = 10_000 if replicas < 100 else 500
    logical = graph(lambda w: w.stale(4)).logical
    path = write_report(tmp_path / "long.html", logical, long_outcome(steps, replicas))
    assert path.stat().st_size < LARGEST
    page = Text(path.read_text())
    assert "Replica 1 is a straggler" in page.text[""]
    assert page.text["Replicas"].count("driver") <= 24
    if replicas == 300:
        assert "24 of 300 replicas" in page.text["Replicas"]


def test_bokeh_is_not_imported_before_there_is_a_page() -> None:
    """Workers import flowml too, and it takes a second."""
    asked = "import sys, flowml; print('bokeh' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, check=True
    )
    assert found.stdout == "False\n"


def test_a_smoothed_loss_keeps_its_mean_and_its_length() -> None:
    values = np.random.default_rng(0).normal(size=1000) + 3
    found = smoothed(values)
    assert len(found) == 1000
    assert found.std() < values.std() / 3
    assert found.mean() == pytest.approx(values.mean(), rel=0.01)
    assert smoothed(np.ones(7)).tolist() == [1.0] * 7


@pytest.mark.parametrize("width", [1280, 1920])
def test_a_browser_opens_it_with_the_network_off(width: int, tmp_path: Path) -> None:
    path, _ = report(slowed(record=True), tmp_path)
    seen = opened(path, figures=6, width=width)
    assert seen.complaints == ()
    assert seen.requests == ()
    assert seen.canvases >= 6
    assert "Replica 2 is a straggler" in seen.text


def test_a_browser_opens_a_long_one(tmp_path: Path) -> None:
    logical = graph(lambda w: w.stale(4)).logical
    path = write_report(tmp_path / "long.html", logical, long_outcome(10_000, 8))
    seen = opened(path, figures=5)
    assert seen.complaints == ()
    assert "Replica 1 is a straggler" in seen.text
