"""The ledger: rows by name, and what they come to by edge, beside counts of the test's own."""

from __future__ import annotations

import builtins
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

import flowml as fl
from flowml.ledger import Entry, Ledger
from flowml.protocol.failures import ProtocolError
from flowml.protocol.promise_rule import PromiseRule
from flowml.runtime.loose_rank import EVENT
from flowml.simulate.models import Compute, Network
from tests.conformance.mixed_graphs import MIXED

REPLICAS, STEPS = 3, 12
UNEVEN = Compute(0.01, slow={1: 2.6, 2: 5.3})
ROWS = np.zeros((60, 2))
BYTES = np.zeros(4).nbytes


def counted(mark: Any, how: str | None = "sum") -> fl.Graph:
    """Return a graph whose table says how many contributions have been taken."""
    w = fl.table("w", np.zeros(4))
    value = fl.map(lambda w, b: np.ones(4), w, fl.load(ROWS, batch_size=4), name="value")
    marked = mark(value)
    return fl.Graph(fl.update(w, marked if how is None else fl.aggregate(how, marked), fl.add()))


def uneven(graph: fl.Graph, seed: int = 0, steps: int = STEPS) -> Any:
    """Run a graph with replicas of unequal speed."""
    options = {"compute": UNEVEN, "network": Network(1e-3), "seed": seed, "record": True}
    return graph.simulate(replicas=REPLICAS, steps=steps, **options)


def retold(ledger: Ledger, quorum: int, *, carries: bool) -> Counter[str]:
    """Count what becomes of contributions to a quorum, from the order of the events alone."""
    fired, clocks, found = 0, [0] * REPLICAS, Counter[str]()
    there: list[int] = []
    """Who is on time for the next firing."""
    waiting = 0
    live = set(range(REPLICAS))
    for entry in ledger:
        if entry.kind == "leave":
            live.discard(entry.replica)
        elif entry.kind in ("deliver", "skip"):
            stamp, clocks[entry.replica] = clocks[entry.replica], clocks[entry.replica] + 1
            assert stamp == entry.clock
            if entry.kind == "skip":
                found["skipped"] += 1
            elif stamp == fired:
                there.append(entry.replica)
            elif carries:
                waiting += 1
            else:
                found["dropped"] += 1
        while there or waiting:
            come = sum(clocks[r] <= fired for r in live)
            if len(there) < min(quorum, len(there) + come):
                break
            found["taken"], found["carried"] = (
                found["taken"] + len(there),
                found["carried"] + waiting,
            )
            there, waiting, fired = [], 0, fired + 1
    found["queued"] = len(there) + waiting
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("quorum", [1, 2])
@pytest.mark.parametrize("late", ["carry", "drop"])
def test_what_a_quorum_took_carried_and_dropped(late: str, quorum: int, seed: int) -> None:
    run = uneven(counted(lambda v: v.quorum(quorum, late=late)), seed)
    edge, mine = (
        run.ledger.edge("value -> sum"),
        retold(run.ledger, quorum, carries=late == "carry"),
    )
    got = {
        name: getattr(edge, name) for name in ("taken", "carried", "dropped", "queued", "skipped")
    }
    assert got == {name: mine[name] for name in got}
    assert run.tables["w"].tolist() == [edge.taken + edge.carried] * 4
    assert edge.deliveries == edge.taken + edge.carried + edge.dropped + edge.queued
    assert edge.deliveries + edge.skipped == REPLICAS * STEPS
    assert edge.skipped > 0
    assert (edge.dropped if late == "drop" else edge.carried) > 0
    assert (edge.carried if late == "drop" else edge.dropped) == 0


def test_a_period_counts_only_the_steps_that_it_skips_for() -> None:
    run = uneven(counted(lambda v: v.every(3).quorum(1, late="drop")))
    edge, skips = run.ledger.edge("value -> sum"), run.ledger["kind"] == "skip"
    assert edge.skipped == int(((run.ledger["clock"][skips] + 1) % 3 == 0).sum()) > 0
    assert edge.deliveries + edge.skipped == REPLICAS * STEPS // 3


@pytest.mark.parametrize("how", [None, "sum"])
def test_what_nobody_took_by_the_end_is_queued(how: str | None) -> None:
    """A run that is stopped leaves contributions to a sum that wait for the slowest."""
    w = fl.table("w", np.zeros(4))
    batch = fl.load(ROWS, batch_size=4)
    value = fl.map(lambda w, b: np.ones(4), w.async_(), batch, name="value")
    summed = value.async_() if how is None else fl.aggregate(how, value.sync()).sync()
    graph = fl.Graph(fl.update(w, summed, fl.add()))
    run = graph.simulate(
        replicas=REPLICAS, steps=10**6, max_seconds=0.3, compute=UNEVEN, record=True
    )
    edge = run.ledger.edge(f"value -> {how or 'update_w'}")
    assert run.tables["w"].tolist() == [edge.taken] * 4
    assert edge.queued == edge.deliveries - edge.taken
    assert (edge.queued > 0) == (how is not None)


def test_who_had_no_example_delivers_nothing() -> None:
    """50 rows are 17, 17 and 16: in the fifth step the last replica has none left."""
    w = fl.table("w", np.zeros(4))
    batch = fl.load(ROWS[:50], batch_size=4)
    value = fl.map(lambda w, b: np.ones(4), w.async_(), batch, name="value")
    run = fl.Graph(fl.update(w, value, fl.add())).run(
        steps=5, replicas=REPLICAS, executor="serial", record=True
    )
    edge = run.ledger.edge("value -> update_w")
    nothing = int((run.ledger["bytes"][run.ledger["kind"] == "deliver"] == 0).sum())
    assert (edge.empty, edge.taken) == (nothing, 15 - nothing) == (1, 14)
    assert run.tables["w"][0] == edge.taken


# -- columns -----------------------------------------------------------------------------------


def plain(**options: Any) -> Any:
    w = fl.table("w", np.zeros(4))
    value = fl.map(lambda w, b: np.ones(4), w.stale(2), fl.load(ROWS, batch_size=4), name="value")
    return uneven(fl.Graph(fl.update(w, value, fl.add())), **options)


def test_the_histogram_is_the_lead_of_each_read() -> None:
    ledger = plain().ledger
    clocks, leads = [0.0] * REPLICAS, Counter[int]()
    for entry in ledger:
        if entry.kind == "read":
            lead = max(0, int(entry.clock - min(clocks))) if min(clocks) < math.inf else 0
            leads[lead] += 1
        clocks[entry.replica] += entry.kind == "deliver"
        if entry.kind == "leave":
            clocks[entry.replica] = math.inf
    assert ledger.histogram("w -> value") == ledger.histogram() == dict(sorted(leads.items()))
    assert len(leads) == 3
    edge = ledger.edge("w -> value")
    assert edge.most_stale == max(leads) == 2
    assert edge.mean_staleness == pytest.approx(
        sum(lead * n for lead, n in leads.items()) / leads.total()
    )
    assert ledger.histogram("value -> update_w").keys() <= leads.keys()


def test_rows_columns_and_selections() -> None:
    ledger = plain().ledger
    assert len(ledger) == len(ledger.events) == 2 * REPLICAS * STEPS + REPLICAS
    assert ledger.events.dtype == EVENT
    assert ledger.edges == ("w -> value", "value -> update_w")
    reads = ledger[ledger["kind"] == "read"]
    assert len(reads) == REPLICAS * STEPS
    assert set(reads["edge"]) == {"w -> value"}
    assert set(reads["fate"]) == {""}
    assert set(ledger["edge"][ledger["kind"] == "leave"]) == {""}
    assert reads.edge("value -> update_w").deliveries == 0
    assert math.isnan(reads.edge("value -> update_w").mean_staleness)
    one = ledger[1]
    assert one == list(ledger)[1]
    assert ledger[-1] == list(ledger)[-1]
    assert one == Entry(**{name: ledger[name].tolist()[1] for name in Entry._fields})
    assert len(ledger[4:9]) == 5
    with pytest.raises(IndexError):
        ledger[len(ledger)]
    with pytest.raises(
        KeyError, match="a ledger has no column 'staleness_bound': it has event, kind"
    ):
        ledger["staleness_bound"]
    with pytest.raises(fl.PlanError, match=r"an edge is one of 'w -> value', .*, got 'w -> sum'"):
        ledger.edge("w -> sum")


def test_waits_and_bytes_are_added_by_edge() -> None:
    run = plain()
    record = run.outcome.record.copy()
    record["wait_seconds"] = np.arange(len(record)) / 8
    ledger = Ledger.of(run.outcome.plan, record)
    for number, (name, edge) in enumerate(ledger.counts().items()):
        rows = [e for e in record.tolist() if e[7] == number]
        assert name == edge.edge
        assert edge.bytes == sum(e[3] for e in rows)
        assert edge.wait_seconds == pytest.approx(sum(e[4] for e in rows))
    assert ledger.edge("value -> update_w").bytes == BYTES * REPLICAS * STEPS


def test_a_record_with_a_gap_says_that_it_does_not_know() -> None:
    run = uneven(counted(lambda v: v.quorum(1, late="drop")))
    record = run.outcome.record
    whole = run.ledger.edge("value -> sum")
    at = int(np.flatnonzero(record["kind"] == 1)[0])
    edge = Ledger.of(run.outcome.plan, np.delete(record, at)).edge("value -> sum")
    assert (edge.taken, edge.dropped, edge.unknown) == (0, 0, whole.deliveries - 1)
    assert (edge.skipped, edge.bytes) == (whole.skipped, whole.bytes - BYTES)


@pytest.mark.parametrize("name", MIXED)
def test_every_contribution_of_a_mixed_graph_has_one_fate(name: str) -> None:
    """What is left queued at the end is what the rule's own counter holds."""
    begin = PromiseRule.begin
    rules: list[PromiseRule] = []

    def noted(rule: PromiseRule) -> None:
        rules.append(rule)
        begin(rule)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PromiseRule, "begin", noted)
        groups = [[0, 1], [2, 3]] if name == "hybrid" else None
        run = MIXED[name]().run(
            steps=STEPS, replicas=4, groups=groups, executor="serial", record=True
        )
    held = [gate.queued for gate in rules[0].gates]
    dropped = [gate.dropped for gate in rules[0].gates]
    ledger = run.ledger
    mine = [ledger.edge(e) for e in ledger.edges[len(ledger.edges) - len(held) :]]
    for edge, queued, lost in zip(mine, held, dropped, strict=True):
        assert edge.deliveries > 0
        assert (edge.queued, edge.dropped, edge.unknown) == (queued, lost, 0)
        assert (
            edge.deliveries == edge.empty + edge.taken + edge.carried + edge.dropped + edge.queued
        )


def test_a_frame_has_names() -> None:
    pd = pytest.importorskip("pandas")
    ledger = plain().ledger
    frame = ledger.to_pandas()
    assert tuple(frame.columns) == Entry._fields
    assert list(frame.itertuples(index=False, name=None)) == [tuple(entry) for entry in ledger]
    sums = frame[frame.kind == "deliver"].groupby("edge").bytes.sum()
    assert sums.to_dict() == {"value -> update_w": BYTES * REPLICAS * STEPS}
    assert isinstance(frame, pd.DataFrame)


def test_without_pandas_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuses(name: str, *rest: Any, **more: Any) -> Any:
        if name == "pandas":
            raise ImportError(name)
        return real(name, *rest, **more)

    ledger = plain().ledger
    monkeypatch.setattr(builtins, "__import__", refuses)
    with pytest.raises(ImportError, match=r'to_pandas needs pandas: pip install "flowml'):
        ledger.to_pandas()


def test_it_prints_as_a_table_of_its_edges() -> None:
    lines = str(uneven(counted(lambda v: v.quorum(1, late="drop"))).ledger).splitlines()
    assert lines[0].startswith("<Ledger of ")
    assert lines[0].endswith(" events>")
    assert lines[1].split() == [
        "edge",
        "reads",
        "deliveries",
        "taken",
        "dropped",
        "skipped",
        "bytes",
    ]
    assert [line.split("  ")[0] for line in lines[2:]] == ["w -> value", "value -> sum"]
    empty = plain().ledger[:0]
    assert str(empty).splitlines() == [
        "<Ledger of 0 rows: 0 events>",
        "edge",
        "w -> value",
        "value -> update_w",
    ]


# -- the bound ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [None, "sum"])
def test_a_read_later_than_its_promise_ends_the_run(
    how: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The staleness that the ledger notes is checked at each read, whatever was waited for."""
    monkeypatch.setattr(PromiseRule, "missing", lambda rule, reads, step: None)
    w = fl.table("w", np.zeros(4))
    value = fl.map(lambda w, b: np.ones(4), w.stale(2), fl.load(ROWS, batch_size=4), name="value")
    graph = fl.Graph(fl.update(w, value if how is None else fl.aggregate(how, value), fl.add()))
    with pytest.raises(ProtocolError, match=r"edge w -> value, .* at most 2 steps late, got 3"):
        uneven(graph, steps=30)
