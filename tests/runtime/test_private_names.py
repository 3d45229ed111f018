"""Every name of Dask that is not public is used in one file, and is still where it was."""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from distributed import Client, LocalCluster
from tornado.web import RequestHandler

from flowml.runtime import _dask, _dask_pages
from tests.faults.bed import eventually

PACKAGE = Path(__file__).resolve().parents[2] / "flowml"
PUBLIC = {
    "dask",
    "dask.base",
    "dask.config",
    "dask.highlevelgraph",
    "dask.sizeof",
    "dask.task_spec",
    "dask.typing",
    "dask.utils",
    "distributed",
    "distributed.diagnostics.plugin",
}
ADAPTERS = {"_dask.py", "_dask_pages.py"}
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.name not in ADAPTERS)


@pytest.fixture(scope="module")
def cluster_of_one():
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        yield cluster, client


def dask_modules(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the modules and private names of Dask that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            private = [a.name for a in node.names if a.name.startswith("_")]
            found = [module, *(f"{module}.{name}" for name in private)]
        else:
            continue
        yield from (
            (node.lineno, name)
            for name in found
            if name.partition(".")[0] in ("dask", "distributed")
        )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_one_file_imports_what_is_not_public(path):
    wrong = [f"line {line}: {name}" for line, name in dask_modules(path) if name not in PUBLIC]
    assert wrong == []


def test_every_function_of_the_file_says_what_it_wraps():
    functions = [
        f
        for name, f in inspect.getmembers(_dask, inspect.isfunction)
        if f.__module__ == _dask.__name__ and not name.startswith("_")
    ]
    assert functions
    assert [f.__name__ for f in functions if not f.__doc__] == []


def test_arrays_are_marked_and_functions_pickled():
    assert type(_dask.as_payload(b"x")).__name__ == "Serialize"
    assert isinstance(_dask.pickled(lambda: 1), bytes)


def test_a_worker_has_handlers_connections_and_a_profiler(cluster_of_one):
    cluster, _ = cluster_of_one
    worker = next(iter(cluster.workers.values()))
    _dask.add_request(worker, "flowml_test", print)
    _dask.add_stream(worker, "flowml-test", print)
    assert worker.handlers["flowml_test"] is print
    assert "flowml-test" in worker.stream_handlers
    _dask.remove_names(worker, "flowml_test", "flowml-test")
    assert "flowml_test" not in worker.handlers
    assert "flowml-test" not in worker.stream_handlers
    assert _dask.worker_rpc(worker, worker.address).address == worker.address
    assert _dask.event_loop(worker).is_running()
    often = _dask.interruptions(worker)
    assert set(often) == set(_dask.INTERRUPTIONS)
    assert all(callback.callback_time > 0 for callback in often.values())


def test_a_scheduler_tells_workers_and_has_handlers(cluster_of_one):
    cluster, client = cluster_of_one
    scheduler = cluster.scheduler
    assert isinstance(scheduler.handlers, dict)
    assert isinstance(scheduler.stream_handlers, dict)
    assert (
        client.run_on_scheduler(lambda dask_scheduler: _dask.tell_workers(dask_scheduler, {}))
        is None
    )


def test_values_are_fetched_within_a_time(cluster_of_one):
    _, client = cluster_of_one
    ready = client.submit(int, 3)
    assert _dask.gather_within(client, [ready], 10.0) == [3]
    assert _dask.gather_within(client, [client.submit(int, "x")], 10.0) is None
    gathering = _dask.start_gathering(client, [ready, ready])
    assert gathering.result(10.0) == [3, 3]


def test_functions_run_on_workers_within_a_time(cluster_of_one):
    cluster, client = cluster_of_one
    address = next(iter(client.nthreads()))
    found = _dask.run_within(client, pow, 2, 3, workers=[address], seconds=10.0)
    assert found == {address: 8}
    assert _dask.silences(cluster.scheduler, [address, "tcp://nobody:1"]) == {}


def test_routes_are_added_once_below_the_prefix(cluster_of_one):
    cluster, _ = cluster_of_one
    scheduler = cluster.scheduler
    assert _dask.http_prefix(scheduler) == "/"
    rules = scheduler.http_application.default_router.rules
    for _ in range(2):
        _dask.add_route(scheduler, "flowml/test", RequestHandler, {})
    found = [r for host in rules if hasattr(host.target, "rules") for r in host.target.rules]
    assert [r.matcher.regex.pattern for r in found].count("/flowml/test$") == 1


def test_one_way_messages_reach_the_scheduler(cluster_of_one):
    cluster, client = cluster_of_one
    (worker,) = cluster.workers.values()
    taken = []
    _dask.add_stream(cluster.scheduler, "flowml-test", lambda **message: taken.append(message))
    try:
        _dask.tell_from_client(client, {"op": "flowml-test", "text": "from a client"})
        worker.loop.add_callback(
            _dask.tell_from_worker, worker, {"op": "flowml-test", "text": "from a worker"}
        )
        eventually(lambda: len(taken) == 2)
    finally:
        _dask.remove_names(cluster.scheduler, "flowml-test")
    assert {m["text"]: m.get("client") or m.get("worker") for m in taken} == {
        "from a client": client.id,
        "from a worker": worker.address,
    }


def test_seconds_of_a_task_are_digested(cluster_of_one):
    cluster, client = cluster_of_one

    def metered():
        _dask.digest("flowml test", 0.25)

    client.submit(metered, key=("flowml:digest-a.1", 0), pure=False).result()
    (worker,) = cluster.workers.values()

    def found():
        told = worker.digests_total.items()
        return [v for k, v in told if k[0] == "execute" and k[-2:] == ("flowml test", "seconds")]

    eventually(found)
    assert found() == [0.25]


def test_a_page_is_added_once_with_its_entry(cluster_of_one):
    cluster, _ = cluster_of_one
    scheduler = cluster.scheduler
    template = _dask_pages.page_template(PACKAGE / "dashboard", "page.html")

    def document(server, variables, found):
        _dask_pages.dress(found, template, variables)

    assert [_dask_pages.add_page(scheduler, "test-page", document) for _ in range(2)] == [True] * 2
    pages = [a for a in scheduler.http_application.applications if "/test-page" in a.app_paths]
    assert len(pages) == 1
    with urlopen(f"http://127.0.0.1:{scheduler.http_server.port}/status") as answer:
        assert answer.read().decode().count('href="test-page"') == 1
