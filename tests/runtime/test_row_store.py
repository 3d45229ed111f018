"""Rows in place: against a dict, with writers that end in the middle, in memory that grows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowml as fl
from flowml.compiler.stages import compile_graph
from flowml.errors import DataError
from flowml.protocol.failures import ProtocolError
from flowml.rules import At
from flowml.runtime.arena import Arena
from flowml.runtime.center_writes import NotFinite, RowWriter
from flowml.runtime.private_rows import PrivateRows
from flowml.runtime.row_index import DirectIndex, EveryKey, HashIndex, places_for
from flowml.runtime.row_memory import row_store
from flowml.runtime.row_store import RowStore
from flowml.runtime.row_tables import row_spec

RULES = [fl.sgd(0.1), fl.sgd(0.1, momentum=0.9), fl.adagrad(0.5), fl.adam(0.1)]


def made(
    rule: Any = None, rows: int | None = None, capacity: int = 200, notes: int = 64
) -> tuple[RowStore, RowWriter, list[tuple[int, int]]]:
    """Return a store, a writer of it, and the memory that was asked for."""
    table = fl.sparse_table("s", 3, fl.init.normal(1.0), "float64", rows=rows, capacity=capacity)
    ids = fl.map(lambda x: x[:, 0].astype(int), fl.load(np.zeros((4, 2)), batch_size=2))
    rows_ = fl.map(lambda r: r, table.at(ids))
    graph = fl.Graph(fl.update(table.at(ids), rows_, rule or fl.sgd(0.1)))
    plan = compile_graph(graph.logical, 1)
    declared = plan.table("s")
    spec = row_spec(declared, None)
    counted = Arena(), Arena()
    row_store(*counted, plan, declared, spec, 0, notes)
    asked: list[tuple[int, int]] = []
    fixed = Arena(np.zeros(counted[0].nbytes, np.uint8))
    grows = Arena(np.zeros(counted[1].nbytes, np.uint8), lambda at, n: asked.append((at, n)))
    store = row_store(fixed, grows, plan, declared, spec, 0, notes)
    return store, RowWriter(plan.operator("update_s"), store, checks=True), asked


def graph_of_rows(start: Any) -> fl.Graph:
    ids = fl.load(np.array([[4, 1], [1, 5]]), batch_size=1)
    ones = fl.map(lambda i: np.ones((*i.shape, 2)), ids, name="ones")
    return fl.Graph(fl.update(fl.table("t", start).at(ids), ones, fl.add()))


def rows_of(graph: fl.Graph) -> PrivateRows:
    plan = compile_graph(graph.logical, 1)
    return PrivateRows.make(plan, plan.table("t"), 0, 0)


# -- indices -----------------------------------------------------------------------------------


@settings(max_examples=200)
@given(st.lists(st.lists(st.integers(0, 40), max_size=12), max_size=8), st.booleans())
def test_an_index_is_a_dict(batches: list[list[int]], hashed: bool) -> None:
    keys, model = np.zeros(64, np.int64), {}
    if hashed:
        index: Any = HashIndex(np.zeros(places_for(41), np.int64), keys)
    else:
        index = DirectIndex(np.zeros(41, np.int64))
    for batch in batches:
        asked = np.array(batch, np.int64)
        found = index.find(asked)
        assert found.tolist() == [model.get(key, -1) for key in batch]
        fresh = np.unique(asked[found < 0])
        slots = np.arange(len(model), len(model) + len(fresh))
        keys[slots] = fresh
        index.insert(fresh, slots)
        model |= dict(zip(fresh.tolist(), slots.tolist(), strict=True))
    assert index.find(np.arange(41)).tolist() == [model.get(key, -1) for key in range(41)]


def test_a_hash_index_takes_keys_that_collide() -> None:
    keys = np.arange(0, 2**40, 2**31, dtype=np.int64)
    index = HashIndex(np.zeros(places_for(len(keys)), np.int64), keys)
    index.insert(keys, np.arange(len(keys)))
    assert index.find(keys).tolist() == list(range(len(keys)))
    assert (index.find(keys + 1) == -1).all()


def test_rows_of_an_array_lie_at_their_numbers() -> None:
    index = EveryKey()
    index.insert(np.arange(4), np.arange(4))
    assert index.find(np.array([3, 0])).tolist() == [3, 0]
    with pytest.raises(ProtocolError, match="each key must be its own slot"):
        index.insert(np.array([4, 6]), np.array([4, 5]))


def test_a_table_that_was_declared_as_an_array_needs_no_search() -> None:
    start = np.arange(12, dtype=np.float64).reshape(6, 2)
    graph = graph_of_rows(start)
    found = rows_of(graph)
    assert isinstance(found.store._index, EveryKey)
    assert found.store.read(np.array([4, 1])).tolist() == [[8.0, 9.0], [2.0, 3.0]]
    run = graph.run(steps=2, replicas=1, executor="serial")
    start[[4, 1, 5]] += [[1.0], [2.0], [1.0]]
    assert run.tables["t"].tobytes() == start.tobytes()


def test_rows_may_be_without_items() -> None:
    ids = fl.load(np.array([[4, 1], [1, 5]]), batch_size=1)
    none = fl.map(lambda i: np.ones((*i.shape, 0)), ids, name="none")
    graph = fl.Graph(fl.update(fl.table("t", np.zeros((6, 0))).at(ids), none, fl.add()))
    assert graph.run(steps=2, replicas=1, executor="serial").tables["t"].shape == (6, 0)


# -- a store against a dict --------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rows", [None, 30])
def test_a_rule_by_rows_is_the_rule_on_each_row(rule: Any, rows: int | None) -> None:
    store, writer, _ = made(rule, rows)
    rng = np.random.default_rng(1)
    model: dict[int, Any] = {}
    for number in range(20):
        keys = np.sort(rng.choice(30, size=rng.integers(1, 9), replace=False))
        update = rng.normal(size=(len(keys), 3))
        at = At(number, number)
        for key, change in zip(keys.tolist(), update, strict=True):
            if key not in model:
                first = store.read(np.array([key]))[0]
                model[key] = [first, rule.init(first)]
            row, state = model[key]
            rule.step(row, change, state, at, row)
        writer.write([((update,), keys, at)])
    found = store.copy()
    assert found.keys.tolist() == sorted(model)
    for key, row in zip(found.keys.tolist(), found.rows, strict=True):
        assert row.tobytes() == model[key][0].tobytes()
    assert store.read(np.array([29, 3])).tobytes() == found.at([29, 3]).tobytes()


def test_reading_touches_nothing() -> None:
    store, _, _ = made()
    keys = np.array([5, 1 << 40, 5])
    found = store.read(keys)
    assert store.count == 0
    assert found[0].tobytes() == found[2].tobytes() != found[1].tobytes()


# -- writers that do not end -------------------------------------------------------------------


def test_a_write_that_ends_in_the_middle_is_rolled_back() -> None:
    store, writer, _ = made(fl.sgd(0.1, momentum=0.9))
    keys = np.array([2, 7])
    writer.write([((np.ones((2, 3)),), keys, At(0, 0))])
    before = store.copy()
    slots, rows, states = store.open(keys)
    store._arrays.rows[slots[:1]] = np.nan  # a death here: one row is written, the other is not
    assert store.copy().rows.tobytes() == before.rows.tobytes()
    store.give_up()
    assert store.copy().rows.tobytes() == before.rows.tobytes()
    assert store.read(keys).tobytes() == before.at(keys).tobytes()
    store.give_up()
    writer.write([((np.ones((2, 3)),), keys, At(1, 1))])
    assert store.copy().rows.tobytes() != before.rows.tobytes()
    assert rows.shape == (2, 3)
    assert set(states) == {"update_s/velocity"}


def test_states_are_rolled_back_too() -> None:
    one, two = made(fl.adagrad(0.5)), made(fl.adagrad(0.5))
    keys = np.array([3])
    for store, writer, _ in (one, two):
        writer.write([((np.ones((1, 3)),), keys, At(0, 0))])
        if store is one[0]:
            slots, rows, states = store.open(keys)
            store.close(slots, rows + 1, {name: state * 9 for name, state in states.items()})
            store.give_up()
        writer.write([((np.ones((1, 3)),), keys, At(1, 1))])
    assert one[0].read(keys).tobytes() == two[0].read(keys).tobytes()


@pytest.mark.parametrize("rows", [None, 50])
def test_the_next_holder_of_the_lock_mends_the_table_before_it_writes(rows: int | None) -> None:
    """A writer died with one of two rows written; the next write starts from what was before."""
    (store, writer, _), (other, healthy, _) = (made(fl.adagrad(0.5), rows=rows) for _ in range(2))
    both, update = np.array([2, 7]), np.ones((2, 3))
    for one in (writer, healthy):
        one.write([((update,), both, At(0, 0))])
    slots, *_ = store.open(both)
    store._arrays.rows[slots[:1]] = np.nan
    for state in store._arrays.states.values():
        state[slots] = np.nan
    for one in (writer, healthy):
        one.write([((update[:1],), both[1:], At(1, 1))])
    assert store.copy().rows.tobytes() == other.copy().rows.tobytes()
    for one in (writer, healthy):
        one.write([((update,), both, At(2, 2))])
    assert store.copy().rows.tobytes() == other.copy().rows.tobytes()


@pytest.mark.parametrize("rows", [None, 50])
@pytest.mark.parametrize("placed", range(4))
def test_rows_that_were_being_let_in_are_let_in(placed: int, rows: int | None) -> None:
    """A writer died when some of three new keys had their place: none is lost, or another's."""
    store, writer, _ = made(rows=rows)
    writer.write([((np.ones((1, 3)),), np.array([4]), At(0, 0))])
    new, (first, keys) = np.array([9, 3, 30]), (store.read(np.array([4])), np.array([4, 9, 3, 30]))
    before = store.read(keys)

    class Dies(Exception):
        pass

    insert = store._index.insert

    def dying(given: Any, slots: Any) -> None:
        insert(given[:placed], slots[:placed])
        raise Dies

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store._index, "insert", dying)
        with pytest.raises(Dies):
            store.open(new)
    assert store.count == 1
    store.mend()
    assert store.count == 4
    assert store.read(keys).tobytes() == before.tobytes()
    store.mend()
    writer.write([((np.ones((2, 3)),), np.array([5, 30]), At(1, 1))])
    assert store.count == 5
    assert store.read(np.array([4])).tobytes() == first.tobytes()
    assert store.read(keys[:3]).tobytes() == before[:3].tobytes()
    assert sorted(store.copy().keys.tolist()) == [3, 4, 5, 9, 30]


def test_what_is_not_finite_is_not_written() -> None:
    store, writer, _ = made()
    writer.write([((np.ones((1, 3)),), np.array([4]), At(0, 0))])
    before = store.copy()
    with pytest.raises(NotFinite):
        writer.write([((np.full((2, 3), np.inf),), np.array([4, 9]), At(1, 1))])
    assert store.read(np.array([4])).tobytes() == before.rows.tobytes()


Updates = list[tuple[tuple[Any], Any, At]]


def firing(*second: float) -> Updates:
    """Return the updates of two members that name some rows both, and new ones."""
    first = np.array([2, 7, 11]), np.ones((3, 3))
    again = np.array([7, 2, 5, 20]), np.ones((4, 3)) * np.array([[*second, 1.0, 1.0, 1.0]]).T
    return [((rows,), keys, At(1, n, writer=n)) for n, (keys, rows) in enumerate((first, again))]


@pytest.mark.parametrize("rows", [None, 50])
def test_updates_of_one_firing_are_written_all_or_none(rows: int | None) -> None:
    store, writer, _ = made(fl.sgd(0.1, momentum=0.9), rows=rows)
    start = np.array([2, 5, 7])
    writer.write([((np.ones((3, 3)),), start, At(0, 0))])
    before, states = store.copy(), [s[:3].copy() for s in store._arrays.states.values()]
    with pytest.raises(NotFinite):
        writer.write(firing(np.inf))
    assert store.read(start).tobytes() == before.at(start).tobytes()
    assert [s[:3].tobytes() for s in store._arrays.states.values()] == [s.tobytes() for s in states]

    (other, one_by_one, _), healthy = made(fl.sgd(0.1, momentum=0.9), rows=rows), firing(2.0)
    for update in ([((np.ones((3, 3)),), start, At(0, 0))], healthy[:1], healthy[1:]):
        one_by_one.write(update)
    writer.write(healthy)
    asked = np.array([2, 5, 7, 11, 20])
    assert store.read(asked).tobytes() == other.read(asked).tobytes()


@pytest.mark.parametrize("rows", [None, 50])
def test_a_writer_who_dies_between_two_updates_leaves_neither(rows: int | None) -> None:
    store, writer, _ = made(fl.adagrad(0.5), rows=rows)
    start = np.array([2, 5, 7])
    writer.write([((np.ones((3, 3)),), start, At(0, 0))])
    before = store.read(start)
    first, second = firing(1.0)
    slots, old, states = store.open(first[1])
    store.close(slots, old + 1.0, states)
    slots, old, states = store.open(second[1])
    store._arrays.rows[slots[:2]] = np.nan
    found = store.copy()
    assert found.at(start).tobytes() == before.tobytes()
    store.mend()
    assert store.read(start).tobytes() == before.tobytes()


def test_two_writes_of_a_step_are_seen_after_it() -> None:
    found = rows_of(graph_of_rows(np.zeros((6, 2))))
    keys = np.array([1, 4])
    for value in (1.0, 2.0):
        slots, old, states = found.store.open(keys)
        found.store.close(slots, old + value, states)
    assert not found.copy().any()
    found.commit(2)
    assert found.copy()[keys].tolist() == [[3.0, 3.0]] * 2


# -- memory ------------------------------------------------------------------------------------


def test_a_full_table_says_so() -> None:
    _, writer, _ = made(capacity=3)
    with pytest.raises(DataError, match=r"has room for 3 rows, got 4 keys so far.*capacity="):
        writer.write([((np.ones((4, 3)),), np.arange(4), At(0, 0))])


def test_memory_is_asked_for_as_rows_come() -> None:
    store, writer, asked = made(capacity=1_000_000, notes=64)
    writer.write([((np.ones((2, 3)),), np.array([1, 2]), At(0, 0))])
    first = sum(nbytes for _, nbytes in asked)
    assert 0 < first < 20 << 20
    asked.clear()
    writer.write([((np.ones((2, 3)),), np.array([1, 2]), At(1, 1))])
    assert asked == []
    for start in range(0, 60_000, 60):
        writer.write([((np.ones((60, 3)),), np.arange(start, start + 60), At(2, 2))])
    assert 0 < len(asked) < 60
    assert store.count == 60_000


@pytest.mark.parametrize(
    ("rows", "ids", "said"),
    [
        (30, [3, 30, 1], "key 30"),
        (30, [3, -1, 40], "key -1"),
        (None, [-7, 5], "key -7"),
        (None, np.array([2**63], np.uint64), f"key {2**63}"),
    ],
)
def test_ids_that_are_no_keys_are_refused(rows: int | None, ids: Any, said: str) -> None:
    table = fl.sparse_table("s", 3, rows=rows)
    named = fl.map(lambda x: x[:, 0].astype(int), fl.load(np.zeros((4, 2)), batch_size=2))
    graph = fl.Graph(fl.update(table.at(named), fl.map(lambda r: r, table.at(named)), fl.add()))
    spec = row_spec(compile_graph(graph.logical, 1).table("s"), None)
    with pytest.raises(DataError, match=said):
        spec.check_ids(ids, "here")
    good = np.array([[0, 29], [5, 7]], np.int32)
    assert spec.check_ids(good, "here").tolist() == good.tolist()


def test_a_firing_may_write_the_rows_of_many_members() -> None:
    """Six replicas push twenty rows each at once: more than one contribution may have."""
    replicas, rows = 6, 20
    ids = fl.load(np.arange(4 * replicas * rows).reshape(-1, rows), batch_size=1, shuffle=False)
    table = fl.table("t", np.zeros((4 * replicas * rows, 2)))
    read = table.sync(until=3).async_().at(ids)
    ones = fl.map(lambda r, i: r + 1.0, read, ids, name="ones")
    graph = fl.Graph(fl.update(table.at(ids), ones, fl.add()))
    run = graph.run(steps=4, replicas=replicas, executor="serial")
    assert run.tables["t"].tolist() == [[1.0, 1.0]] * (4 * replicas * rows)
