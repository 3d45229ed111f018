"""Values that no edge had sent when a run ended: each executor names the same edges."""

from __future__ import annotations

from typing import Any

import dask
import numpy as np
import pytest
from distributed import Client

import flowml as fl
from flowml.compiler.stages import compile_graph
from flowml.runtime.unsent import kept_edges
from tests.conformance.mixed_graphs import local_steps

ROWS = np.zeros((60, 2))


def kept(mark: Any, read: Any = lambda w: w, replicas: int = 2) -> fl.Graph:
    """Return a graph whose table says how many contributions came into it."""
    w = fl.table("w", np.zeros(1))
    batch = fl.load(ROWS, batch_size=4)
    ones = fl.map(lambda w, rows: np.ones(1), read(w), batch, name="ones")
    return fl.Graph(fl.update(w, mark(ones), fl.add(), name="push"))


def periods() -> fl.Graph:
    """Return a synchronous graph with edges of three periods, one of them inside a replica."""
    mine = fl.table("mine", np.zeros(1), scope="replica")
    w, v = fl.table("w", np.zeros(1)), fl.table("v", np.zeros(1))
    ones = fl.map(lambda rows: np.ones(1), fl.load(ROWS, batch_size=4), name="ones")
    total = fl.aggregate("sum", ones, name="total")
    return fl.Graph(
        fl.update(mine, ones.every(4, keep="sum"), fl.add(), name="own"),
        fl.update(w, total.every(3), fl.add(), name="third"),
        fl.update(v, total.every(2), fl.add(), name="second"),
    )


OWN, THIRD, SECOND = "ones -> own", "total -> third", "total -> second"
AFTER = {4: (THIRD,), 5: (OWN, SECOND, THIRD), 6: (OWN,), 12: (), 13: (OWN, SECOND, THIRD)}


@pytest.mark.parametrize("steps", AFTER)
def test_it_follows_from_the_plan_of_a_synchronous_run(steps: int) -> None:
    run = periods().run(steps=steps, replicas=2, executor="serial")
    assert run.unsent == AFTER[steps]
    assert kept_edges(compile_graph(periods().logical, 2), steps) == run.unsent


@pytest.mark.parametrize("executor", ["resident", "tasks"])
@pytest.mark.parametrize("steps", [5, 6])
def test_executors_name_the_same_edges(steps: int, executor: str, client: Client) -> None:
    assert periods().run(steps=steps, replicas=2, executor=executor).unsent == AFTER[steps]


@pytest.mark.parametrize("steps", [6, 7])
def test_what_a_period_had_not_sent(steps: int) -> None:
    """The values of the last step of two replicas are in no table."""
    graph = kept(lambda ones: ones.every(3, keep="sum"), lambda w: w.async_())
    run = graph.run(steps=steps, replicas=2, executor="serial", record=True)
    assert run.tables["w"][0] == 2 * 6
    assert run.unsent == (() if steps == 6 else ("ones -> push",))
    assert run.replay().unsent == run.unsent


def test_what_a_threshold_kept_back() -> None:
    """A replica sends its ones when they are more than half of the table as it has read it."""
    graph = kept(lambda ones: ones.when(0.5), lambda w: w.async_())
    seen = set()
    for steps in range(1, 9):
        run = graph.run(steps=steps, replicas=2, executor="serial", record=True)
        sent = run.tables["w"][0]
        assert (run.unsent == ("ones -> push",)) == (sent < 2 * steps)
        edge = run.ledger.edge("ones -> push")
        assert edge.deliveries == edge.empty + edge.taken == 2 * steps
        seen.add(run.unsent)
    assert seen == {(), ("ones -> push",)}


def test_local_steps_that_were_never_averaged() -> None:
    graph = local_steps()
    for steps, edges in ((6, ()), (7, ("update_local -> gone",))):
        run = graph.run(steps=steps, replicas=2, executor="serial")
        assert run.unsent == edges
        assert graph.simulate(steps=steps, replicas=2).unsent == edges


@pytest.mark.parametrize("transport", ["auto", "rpc"])
def test_replicas_at_their_own_pace_tell_theirs(transport: str, client: Client) -> None:
    with dask.config.set({"flowml.transport": transport}):
        for steps, edges in ((30, ()), (31, ("ones -> push",))):
            graph = kept(lambda ones: ones.every(3, keep="sum"), lambda w: w.async_())
            run = graph.run(steps=steps, replicas=2)
            assert run.tables["w"][0] == 2 * 30
            assert run.unsent == edges
        assert local_steps().run(steps=31, replicas=2).unsent == ("update_local -> gone",)
