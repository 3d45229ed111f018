"""Operators appear by name in Dask's own task stream, groups and graph pages."""

from __future__ import annotations

from typing import Any

import pytest
from distributed import Client

from flowml.events import WindowDone
from tests.conformance.catalogue import CATALOGUE

VOCABULARY = {
    f"flowml:{kind}"
    for kind in (
        "load",
        "here",
        "map",
        "gradient",
        "aggregate",
        "update",
        "assign",
        "evaluate",
        "until",
        "table",
        "join",
        "superstep",
        "snapshot",
        "calibrate",  # graph.measure, on the same scheduler before
    )
}


def names(dask_scheduler: Any) -> tuple[list[str], list[str]]:
    return list(dask_scheduler.task_groups), list(dask_scheduler.task_prefixes)


def seen_during(client: Client, **options: Any) -> tuple[set[str], set[str]]:
    groups: set[str] = set()
    prefixes: set[str] = set()

    def look(event: object) -> None:
        if isinstance(event, WindowDone):
            found = client.run_on_scheduler(names)
            groups.update(g for g in found[0] if g.startswith("flowml:"))
            prefixes.update(p for p in found[1] if p.startswith("flowml:"))

    CATALOGUE["momentum"]().run(steps=40, replicas=2, cluster=client, on_event=look, **options)
    return groups, prefixes


@pytest.mark.parametrize("executor", ["resident", "tasks"])
def test_prefixes_are_a_fixed_vocabulary(executor: str, client: Client) -> None:
    _, prefixes = seen_during(client, executor=executor)
    assert prefixes
    assert prefixes <= VOCABULARY


def test_groups_of_tasks_are_operators(client: Client) -> None:
    groups, _ = seen_during(client, executor="tasks")
    for wanted in (
        "flowml:gradient-gradient.",
        "flowml:aggregate-mean.",
        "flowml:update-update_w.",
    ):
        assert any(g.startswith(wanted) for g in groups), (wanted, groups)


def test_groups_of_windows_name_their_operators(client: Client) -> None:
    groups, _ = seen_during(client, executor="resident")
    fused = "flowml:superstep-[load.gradient.mean.update_w]."
    assert any(g.startswith(fused) for g in groups), groups
