"""The page in a browser, during a run: filled, moving, and the same behind a proxy."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
import pytest
from distributed import Client, LocalCluster

import flowml as fl
from tests.dashboard.proxy import reverse_proxy

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)
WAIT_MS = 60_000
"""Nothing is waited for longer."""
NOTHING = "\N{EN DASH}"
"""What stands where a number is not known."""
STEPS = 10_000_000
"""More than any test waits for: it stops its runs."""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")


@dataclass(frozen=True)
class Watched:
    """A cluster with its dashboard, and runs that go on until the test ends."""

    client: Client
    runs: list[fl.Run] = field(default_factory=list)

    def start(self, graph: fl.Graph) -> fl.Run:
        run = graph.start(steps=STEPS, replicas=2, cluster=self.client, progress=False)
        self.runs.append(run)
        return run

    @property
    def port(self) -> int:
        found = urlsplit(self.client.dashboard_link).port
        assert found is not None
        return found

    def paths(self) -> set[str]:
        """Return what the server has: asking for each page would keep all of them at work."""
        application = self.client.cluster.scheduler.http_application
        hosts = [r.target for r in application.default_router.rules if hasattr(r.target, "rules")]
        routes = [*application.wildcard_router.rules, *(r for h in hosts for r in h.rules)]
        found = {r.matcher.regex.pattern.rstrip("$").replace("\\", "") for r in routes}
        return found.union(*(page.app_paths for page in application.applications))

    @property
    def page(self) -> str:
        """The address of the first run's page, below that of the server."""
        run = self.runs[0]
        while not run.dashboard:
            assert run.status == "running", run.error
        with urlopen(f"http://127.0.0.1:{self.port}/flowml/state.json") as answer:
            return f"/flowml?run={json.load(answer)['runs'][-1]['id']}"


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    """Give a cluster on which a stale graph trains: replica 1 is slower, so that reads are late."""
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=2,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        found = Watched(client)
        try:
            found.start(late_graph())
            yield found
        finally:
            for run in found.runs:
                run.stop()
            for run in found.runs:
                run.wait(60)


def examples() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(600, 16)).astype("float32")
    return X, np.argmax(X @ rng.normal(size=(16, 4)), axis=1)


def late_graph() -> fl.Graph:
    """Return SSP with a test set, whose replica 1 has more to do: replica 0 waits for it."""
    model = fl.models.softmax(16, 4)
    w = fl.table("w", model.init(seed=0))
    batch = fl.load(examples(), batch_size=16)
    grads = fl.gradient(Slower(model), w.stale(3), batch, fl.here())
    test = fl.evaluate(
        lambda params, rows: {
            "loss": model.loss(params, rows),
            "score": model.score(params, *rows[:2]),
        },
        w,
        examples(),
        every="1 epoch",
        name="test",
    )
    return fl.Graph(fl.update(w, grads, fl.sgd(0.01)), test, name="ssp")


def sync_graph() -> fl.Graph:
    model = fl.models.softmax(16, 4)
    w = fl.table("w", model.init(seed=0))
    grads = fl.gradient(model, w, fl.load(examples(), batch_size=16))
    return fl.Graph(fl.update(w, fl.aggregate("mean", grads), fl.sgd(0.1)), name="second")


@dataclass(frozen=True)
class Slower:
    """A model that has twenty times as much to do in replica 1."""

    inner: Any

    def value_and_grad(self, params: Any, batch: Any, place: Any) -> Any:
        for _ in range(20 if place.replica else 1):
            found = self.inner.value_and_grad(params, batch)
        return found


@dataclass(frozen=True)
class Tab:
    """A page of the browser, and what its console has said."""

    page: Any
    complaints: list[str]

    def text(self, name: str) -> str:
        return str(self.page.locator(f'#flowml [data-text="{name}"]').text_content())

    def rows(self, source: str) -> dict[str, Any]:
        """Return the data of a chart by the name of its source."""
        found: dict[str, Any] = self.page.evaluate(
            """name => {
                const model = Bokeh.documents.length
                    ? Bokeh.documents[0].get_model_by_name(name) : null;
                return model === null ? {} : Object.fromEntries(
                    Object.entries(model.data).map(([k, v]) => [k, Array.from(v)]));
            }""",
            f"rows of {source}",
        )
        return found

    def until(self, missing: Callable[[], Any]) -> None:
        """Wait until nothing is missing on the page; it is redrawn twice a second."""
        deadline = time.monotonic() + WAIT_MS / 1000
        while found := missing():
            assert time.monotonic() < deadline, found
            self.page.wait_for_timeout(200)


@pytest.fixture
def tab() -> Iterator[Tab]:
    """Give an empty page; afterwards its console must not hold an error."""
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=BROWSER, args=FLAGS.split())
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(WAIT_MS)
        complaints: list[str] = []
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        yield Tab(page, complaints)
        browser.close()
    assert complaints == []


def parts(tab: Tab) -> dict[str, Any]:
    """Return what each of the nine parts shows, in a form that can be compared."""
    return {
        "header": (tab.text("step"), tab.text("seconds"), tab.text("loss"), tab.text("rate")),
        "loss against steps and time": tab.rows("losses"),
        "evaluations": tab.rows("evaluations"),
        "live graph": [
            text
            for words in (".percent", ".words")
            for text in tab.page.locator(f"#flowml-graph {words}").all_text_contents()
            if text
        ],
        "time shares": tab.rows("shares"),
        "staleness": tab.rows("staleness"),
        "bytes": tab.rows("traffic"),
        "timeline": tab.rows("timeline"),
        "stragglers": tab.page.locator("#flowml-replicas tbody tr").all_text_contents(),
        "events": tab.page.locator("#flowml-events li").all_text_contents(),
    }


def is_filled(part: Any) -> bool:
    if isinstance(part, dict):
        return bool(part) and all(part.values())
    return bool(part) and all(word not in ("", NOTHING) for word in part)


def check_the_parts(tab: Tab) -> None:
    """Wait until every part is filled, and then until each shows something else."""
    tab.until(lambda: {name: part for name, part in parts(tab).items() if not is_filled(part)})
    first = parts(tab)
    same = set(first)

    def unmoved() -> set[str]:
        now = parts(tab)
        same.difference_update([name for name in same if now[name] != first[name]])
        return same

    tab.until(unmoved)
    graph = tab.page.locator("#flowml-graph")
    assert graph.locator("[data-vertex]").count() == 6  # w, load, here, gradient, update_w, test
    assert graph.locator(".line[stroke-dasharray='6 4']").count() == 2  # the read and the push
    edge = graph.locator("[data-words='w -> gradient']")
    tab.until(lambda: "lag " not in edge.text_content())  # seen where one is inside its step
    words = edge.text_content()
    assert "/3" in words
    assert "B/s" in words
    late = tab.rows("staleness")
    assert max(late["x"]) <= 3
    assert tab.rows("bounds")["name"] == ["w -> gradient: at most 3"]
    assert set(tab.rows("shares")["part"]) >= {"computing", "waiting", "sums and writes"}
    assert "waits for w -> gradient" in " ".join(tab.rows("shares")["text"])
    slowest = tab.page.locator("#flowml-replicas tbody tr").first.locator("td")
    assert slowest.nth(0).text_content() == "1"
    assert slowest.nth(1).text_content().startswith("127.0.0.1:")


def test_every_part_is_filled_and_moves(watched: Watched, tab: Tab) -> None:
    tab.page.goto(f"http://127.0.0.1:{watched.port}{watched.page}")
    check_the_parts(tab)
    folder = os.environ.get("FLOWML_SCREENSHOTS")
    if folder:
        tab.page.screenshot(path=f"{folder}/flowml-1280.png", full_page=True)


def test_the_navigation_leads_there_and_back(watched: Watched, tab: Tab) -> None:
    tab.page.goto(f"http://127.0.0.1:{watched.port}/status")
    tab.page.click(".navbar a[href='flowml']")
    tab.page.wait_for_url("**/flowml")
    tab.until(lambda: tab.text("graph") not in ("ssp", "second"))
    links = tab.page.locator("#flowml-links a").evaluate_all("all => all.map(a => a.pathname)")
    assert len(links) == 9
    assert set(links) <= watched.paths()
    tab.page.click(".navbar a[href='status']")
    tab.page.wait_for_url("**/status")
    tab.page.go_back()
    tab.until(lambda: tab.text("graph") not in ("ssp", "second"))


def test_another_run_is_selected(watched: Watched, tab: Tab) -> None:
    second = watched.start(sync_graph())
    tab.page.goto(f"http://127.0.0.1:{watched.port}/flowml")
    tab.until(lambda: tab.text("graph") != "second")
    choices = tab.page.locator("select option").all_text_contents()
    old = next(words for words in choices if words.startswith("ssp "))
    tab.page.select_option("select", label=old)
    tab.until(lambda: tab.text("graph") != "ssp")
    before = tab.text("step")
    tab.until(lambda: tab.text("step") == before)
    tab.page.select_option("select", label="newest run")
    tab.until(lambda: tab.text("graph") != "second")
    tab.page.goto(f"http://127.0.0.1:{watched.port}{watched.page}")
    tab.until(lambda: tab.text("graph") != "ssp")
    second.stop()
    second.wait(60)


def test_the_page_is_the_same_behind_a_proxy(watched: Watched, tab: Tab) -> None:
    with reverse_proxy(watched.port) as address:
        tab.page.goto(f"{address}/status")
        tab.page.click(".navbar a[href='flowml']")
        tab.page.wait_for_url(f"{address}/flowml")
        tab.page.goto(f"{address}{watched.page}")
        check_the_parts(tab)
        link = tab.page.locator("#flowml-links a[data-link='json']").evaluate("a => a.href")
        assert link.startswith(f"{address}/flowml/state.json?run=")
        assert tab.page.request.get(link).json()["run"]["graph"] == "ssp"
        tab.page.goto("about:blank")
