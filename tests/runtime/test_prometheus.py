"""What the /metrics pages of scheduler and workers say, and that nothing needs them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from urllib.request import urlopen

import pytest
from distributed import Client
from prometheus_client import REGISTRY, generate_latest

from flowml.runtime.prometheus import COLLECTOR, Sample, export, withdraw
from tests.dashboard.stories import sync_graph
from tests.faults.bed import eventually


def two_workers() -> Iterator[Sample]:
    for worker, value in (("a", 1.0), ("b", 2.0)):
        yield Sample("flowml_test_steps", "Steps", "counter", value, (("worker", worker),))
    yield Sample("flowml_test_runs", "Runs", "gauge", 3.0)


def another() -> Iterator[Sample]:
    yield Sample("flowml_test_runs", "Runs", "gauge", 4.0)


def test_sources_of_one_process_are_told_together() -> None:
    export(two_workers)
    export(another)
    try:
        text = generate_latest(REGISTRY).decode()
        assert 'flowml_test_steps_total{worker="a"} 1.0' in text
        assert 'flowml_test_steps_total{worker="b"} 2.0' in text
        assert "flowml_test_runs 7.0" in text
        assert text.count("# TYPE flowml_test_runs gauge") == 1
    finally:
        withdraw(another)
        withdraw(two_workers)
    assert "flowml_test" not in generate_latest(REGISTRY).decode()
    withdraw(two_workers)  # harmless


def test_without_the_library_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    before = list(COLLECTOR.sources)
    export(two_workers)
    assert before == COLLECTOR.sources
    withdraw(two_workers)


def test_scheduler_and_workers_tell_steps_by_graph(client: Client) -> None:
    sync_graph("metered").run(steps=40, replicas=2, cluster=client)
    page = client.dashboard_link.replace("/status", "/metrics")
    wanted = ['flowml_step{graph="metered"} 40.0', 'flowml_runs{status="running"} 0.0']
    eventually(lambda: all(line in fetched(page) for line in wanted))  # news may be on their way
    found = 0.0
    for worker in client.scheduler_info()["workers"].values():
        page = fetched(f"http://{worker['host']}:{worker['services']['dashboard']}/metrics")
        (line,) = [
            line
            for line in page.splitlines()
            if line.startswith('flowml_worker_steps_total{graph="metered"}')
        ]
        found += float(line.rpartition(" ")[2])
        assert 'flowml_worker_wait_seconds_total{graph="metered"}' in page
    assert found == 2 * 40


def fetched(address: str) -> str:
    with urlopen(address) as answer:
        return str(answer.read().decode())
