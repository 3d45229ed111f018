"""On a cluster: what is served where, and that workers are asked only while somebody looks."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import dask
import pytest
from distributed import Client, LocalCluster, Scheduler
from tornado.httpclient import AsyncHTTPClient

import flowml as fl
from flowml.dashboard.contract import State
from flowml.dashboard.plugin import NAME, FlowDashboard
from flowml.dashboard.serving import serve
from flowml.events import PageOpened
from flowml.runtime._dask import http_prefix
from tests.dashboard.stories import card, ssp_graph, sync_graph
from tests.dashboard.test_contract import misfits

WAIT_SECONDS = 60.0
STEPS = 10_000_000


def state(client: Client, query: str = "") -> Any:
    with urlopen(client.dashboard_link.replace("/status", f"/flowml/state.json{query}")) as answer:
        assert answer.headers["Content-Type"].startswith("application/json")
        return json.load(answer)


def until(holds: Callable[[], Any]) -> Any:
    """Wait until something holds, and return it."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not (found := holds()):
        assert time.monotonic() < deadline
        threading.Event().wait(0.05)
    return found


@contextmanager
def going(client: Client, graph: fl.Graph, **options: Any) -> Iterator[fl.Run]:
    """Run a graph during a block."""
    run = graph.start(steps=STEPS, replicas=2, cluster=client, **options)
    try:
        until(lambda: run.dashboard or run.status != "running")
        yield run
    finally:
        run.stop()
        run.wait(WAIT_SECONDS)


def is_reporting(client: Client) -> bool:
    def ticks(dask_worker: Any) -> bool:
        return bool(dask_worker.plugins["flowml"].reporter._ticks.is_running())

    return any(client.run(ticks).values())


def test_a_run_is_told_step_by_step(client: Client) -> None:
    with going(client, ssp_graph()) as run:
        assert run.dashboard == client.dashboard_link.replace("/status", "/flowml")
        found = until(lambda: (s := state(client))["run"]["step"] > 0 and s)
        assert misfits(found, State) == []
        assert found["run"]["graph"] == "ssp"
        assert found["run"]["status"] == "running"
        later = until(lambda: (s := state(client))["run"]["step"] > found["run"]["step"] and s)
        assert later["run"]["id"] == found["run"]["id"]
    ended = until(
        lambda: (
            (s := state(client, f"?run={found['run']['id']}"))["run"]["status"] == "stopped" and s
        )
    )
    assert ended["run"]["step"] == run.steps
    assert ended["run"]["steps"] == STEPS


def test_workers_report_only_while_somebody_looks(client: Client) -> None:
    with going(client, ssp_graph()):
        until(lambda: not is_reporting(client))
        looked = until(lambda: (s := state(client))["run"]["looked_at"] and s)
        assert is_reporting(client)
        parts = {
            (o["name"], p["part"])
            for o in until(lambda: [o for o in state(client)["run"]["operators"] if o["parts"]])
            for p in o["parts"]
        }
        assert parts >= {("load", "compute"), ("gradient", "compute"), ("update_w", "apply")}
        assert {o["share"] for o in looked["run"]["operators"] if o["kind"] == "table"} == {None}
        until(lambda: not is_reporting(client))  # nobody has asked again


def test_several_runs_are_listed_newest_first(client: Client) -> None:
    with going(client, ssp_graph(name="one")):
        until(lambda: state(client)["run"]["status"] == "running")
    with going(client, sync_graph("two")):
        found = until(lambda: (s := state(client))["run"]["graph"] == "two" and s)
        names = [run["graph"] for run in found["runs"]]
        assert names[:2] == ["two", "one"]
        one = found["runs"][1]["id"]
        assert state(client, f"?run={one}")["run"]["graph"] == "one"


def test_a_run_that_is_not_known_is_not_found(client: Client) -> None:
    sync_graph().run(steps=2, replicas=2, cluster=client)
    with pytest.raises(HTTPError, match="404"):
        state(client, "?run=nobody")


def test_each_operator_of_the_tasks_executor_is_drawn_too(client: Client) -> None:
    heard: list[Any] = []
    run = sync_graph("by tasks").run(
        steps=3, replicas=2, cluster=client, executor="tasks", on_event=heard.append
    )
    assert [e.link for e in heard if isinstance(e, PageOpened)] == [run.dashboard]
    found = until(lambda: (s := state(client))["run"]["status"] == "done" and s)
    assert (found["run"]["graph"], found["run"]["executor"]) == ("by tasks", "tasks")
    assert found["run"]["loss"] is not None


def test_a_run_that_fails_is_told_with_its_operator(client: Client) -> None:
    def fall(gradient: Any, place: Any) -> Any:
        if place.clock == 3:
            raise ValueError("the milk is spilt")
        return gradient

    model = fl.models.softmax(16, 4)
    w = fl.table("w", model.init(seed=0))
    source = sync_graph().logical.loads()[0].action.source
    grads = fl.gradient(model, w, fl.load(source, batch_size=16))
    spilt = fl.map(fall, grads, fl.here(), name="spilt")
    graph = fl.Graph(fl.update(w, fl.aggregate("mean", spilt), fl.sgd(0.1)), name="falls")
    with pytest.raises(fl.OperatorError):
        graph.run(steps=10, replicas=2, cluster=client)
    found = until(lambda: (s := state(client))["run"]["status"] == "failed" and s)["run"]
    assert next(o["state"] for o in found["operators"] if o["name"] == "spilt") == "failed"
    assert "the milk is spilt" in found["events"][0]["text"]


def test_the_page_has_its_entry_once(client: Client) -> None:
    for _ in range(2):
        sync_graph().run(steps=2, replicas=2, cluster=client)
    with urlopen(client.dashboard_link.replace("/status", "/flowml")) as answer:
        html = answer.read().decode()
    assert html.count('<a href="flowml">Flowml</a>') == 1
    assert "window.flowml" in html
    assert 'id="flowml-graph"' in html


def test_the_page_can_be_turned_off() -> None:
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
        dask.config.set({"flowml.dashboard": False}),
    ):
        run = sync_graph().run(steps=2, replicas=1, cluster=client)
        assert run.dashboard == ""
        assert NAME not in cluster.scheduler.plugins


def test_spans_and_fine_metrics_name_the_graph_and_its_operators(client: Client) -> None:
    def metrics(dask_scheduler: Any) -> tuple[list[str], list[Any]]:
        spans = dask_scheduler.extensions["spans"]
        return list(spans.spans_search_by_tag), list(dask_scheduler.cumulative_worker_metrics)

    sync_graph("spanned").run(steps=200, replicas=2, cluster=client)
    wanted = {("execute", "flowml:superstep", label, "seconds") for label in ("gradient", "mean")}

    def are_told() -> bool:
        tags, found = client.run_on_scheduler(metrics)
        return {"flowml", "spanned"} <= set(tags) and wanted <= set(map(tuple, found))

    until(are_told)


# -- schedulers of other kinds -------------------------------------------------------------------


async def fetched(scheduler: Scheduler, path: str) -> tuple[int, bytes]:
    found = await AsyncHTTPClient().fetch(
        f"http://127.0.0.1:{scheduler.http_server.port}{path}", raise_error=False
    )
    return found.code, found.body


def on_a_scheduler(check: Callable[[Scheduler], Any], **options: Any) -> None:
    async def go() -> None:
        async with Scheduler(
            host="127.0.0.1", port=0, dashboard_address="127.0.0.1:0", **options
        ) as scheduler:
            await scheduler.register_scheduler_plugin(FlowDashboard(), idempotent=True)
            await check(scheduler)

    asyncio.run(go())


def test_behind_a_prefix_of_the_server() -> None:
    async def check(scheduler: Scheduler) -> None:
        assert http_prefix(scheduler) == "/dask/here/"
        code, body = await fetched(scheduler, "/dask/here/flowml/state.json")
        assert (code, json.loads(body)["runs"]) == (200, [])
        code, body = await fetched(scheduler, "/dask/here/flowml")
        assert (code, b'href="flowml"' in body) == (200, True)
        assert (await fetched(scheduler, "/flowml/state.json"))[0] == 404

    on_a_scheduler(check, http_prefix="/dask/here")


@pytest.mark.parametrize("prefix", ["/", "/dask"])
def test_without_a_dashboard_there_is_the_json(prefix: str) -> None:
    async def check(scheduler: Scheduler) -> None:
        plugin = scheduler.plugins[NAME]
        assert not plugin.has_page
        path = f"{prefix.rstrip('/')}/flowml/state.json"
        assert (await fetched(scheduler, path))[0] == 200
        reply = await plugin.open_run("ab12", "client", card(ssp_graph()).as_message())
        assert reply == {"status": "OK", "page": False}
        assert json.loads((await fetched(scheduler, path))[1])["run"]["graph"] == "ssp"

    on_a_scheduler(check, dashboard=False, http_prefix=prefix)


def test_without_bokeh_there_is_the_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flowml.dashboard.page", None)

    async def check(scheduler: Scheduler) -> None:
        assert not scheduler.plugins[NAME].has_page
        assert (await fetched(scheduler, "/flowml/state.json"))[0] == 200
        assert (await fetched(scheduler, "/flowml"))[0] == 404

    on_a_scheduler(check)


def test_a_page_that_cannot_be_added_fails_no_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def add_to(scheduler: Any, plugin: str) -> bool:
        raise AttributeError("another release of Dask")

    monkeypatch.setattr("flowml.dashboard.page.add_to", add_to)

    async def check(scheduler: Scheduler) -> None:
        assert not scheduler.plugins[NAME].has_page
        assert (await fetched(scheduler, "/flowml/state.json"))[0] == 200

    on_a_scheduler(check)
    assert "another release of Dask" in caplog.text


def test_a_plugin_that_comes_again_is_the_one_that_is_asked() -> None:
    async def check(scheduler: Scheduler) -> None:
        await scheduler.plugins[NAME].close()
        await scheduler.unregister_scheduler_plugin(NAME)
        assert (await fetched(scheduler, "/flowml/state.json"))[0] == 404
        scheduler.stream_handlers["flowml-event"](key="ab12", event={}, client="late")
        await scheduler.register_scheduler_plugin(FlowDashboard(), idempotent=True)
        await scheduler.plugins[NAME].open_run("ab12", "client", card(ssp_graph()).as_message())
        body = (await fetched(scheduler, "/flowml/state.json"))[1]
        assert json.loads(body)["run"]["id"] == "ab12"
        pages = [a for a in scheduler.http_application.applications if "/flowml" in a.app_paths]
        assert len(pages) == 1
        assert serve(scheduler, NAME)

    on_a_scheduler(check)


def test_runs_of_a_client_that_is_gone_are_lost() -> None:
    async def check(scheduler: Scheduler) -> None:
        plugin = scheduler.plugins[NAME]
        for key, client in (("one", "client-1"), ("two", "client-2")):
            await plugin.open_run(key, client, card(ssp_graph()).as_message())
        plugin.remove_client(scheduler, "client-1")
        assert [run.status for run in plugin.runs] == ["lost", "waiting"]
        plugin.restart(scheduler)
        assert [run.status for run in plugin.runs] == ["lost", "lost"]

    on_a_scheduler(check)


def test_several_viewers_are_shown_one_state(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("flowml.dashboard.plugin.monotonic", lambda: now[0])

    async def check(scheduler: Scheduler) -> None:
        plugin = scheduler.plugins[NAME]
        await plugin.open_run("ab", "client", card(ssp_graph()).as_message())
        first = plugin.look()
        now[0] += 0.3
        assert plugin.look() is first
        assert plugin.look("ab") is not first
        now[0] += 0.3
        assert plugin.look() is not first

    on_a_scheduler(check)


def test_messages_of_nobody_do_no_harm() -> None:
    async def check(scheduler: Scheduler) -> None:
        take = scheduler.stream_handlers
        take["flowml-event"](key="nobody", event={"kind": "Warned", "text": "x"}, client="c")
        take["flowml-report"](run="nobody", worker="tcp://a:1", ranks=[], lags=[], sent=[])
        await scheduler.plugins[NAME].open_run("ab", "c", card(ssp_graph()).as_message())
        take["flowml-event"](key="ab", event={"kind": "Unheard"}, client="c")
        assert scheduler.plugins[NAME].runs.get("ab").status == "waiting"

    on_a_scheduler(check)


def test_a_cluster_may_be_told_of_flowml_before_its_first_run() -> None:
    async def go() -> None:
        async with Scheduler(
            host="127.0.0.1",
            port=0,
            dashboard_address="127.0.0.1:0",
            preload=["flowml.preload"],
        ) as scheduler:
            assert {"flowml", NAME} <= set(scheduler.plugins)
            assert (await fetched(scheduler, "/flowml"))[0] == 200

    asyncio.run(go())
