"""Graphs that nobody thought of: every executor gives the bytes of the serial one, or its error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask
import pytest
from distributed import Client
from hypothesis import HealthCheck, given, settings

import flowml as fl
from tests.compiler.declared import graphs
from tests.conformance.test_conformance import assert_same_bytes

pytestmark = [
    pytest.mark.slow,
    # Dask's own threads draw random numbers while a graph is drawn.
    pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies"),
]


def ended(graph: fl.Graph, **options: Any) -> Any:
    """Return what a run left, or None where an operator refused its inputs."""
    try:
        run = graph.run(
            steps=5,
            replicas=3,
            groups=2,
            snapshots=(1, 2),
            on_nonfinite="ignore",
            **options,
        )
    except fl.OperatorError:
        return None
    return run.outcome


@pytest.mark.parametrize(
    ("executor", "transport"), [("resident", "auto"), ("resident", "rpc"), ("tasks", "auto")]
)
def test_any_graph(executor: str, transport: str, client: Client) -> None:
    @settings(max_examples=60, suppress_health_check=list(HealthCheck))
    @given(graphs())
    def compare(declare: Callable[[], fl.Graph]) -> None:
        graph = declare()
        truth = ended(graph, executor="serial")
        with dask.config.set({"flowml.transport": transport}):
            found = ended(graph, executor=executor, cluster=client)
        assert (truth is None) == (found is None)
        if truth is not None:
            assert_same_bytes(truth, found)

    compare()
