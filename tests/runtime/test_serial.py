"""The serial executor against arithmetic done by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import optree
import pytest
from hypothesis import given, settings

import flowml as fl
from flowml.compiler.stages import compile_graph
from flowml.events import Evaluated
from flowml.runtime.feeding import local_feed, open_stream
from flowml.runtime.outcome import Outcome
from tests.compiler.declared import graphs

RNG = np.random.default_rng(0)
X = RNG.normal(size=(23, 3))
Y = RNG.integers(0, 2, 23)
NOTHING = fl.Rule(lambda p: (), lambda p, u, s, at, out: np.copyto(out, p), name="nothing")


def ran(*sinks: Any, replicas: int = 1, **options: Any) -> fl.Run:
    return fl.Graph(*sinks).run(executor="serial", replicas=replicas, **options)


def cell(name: str, start: float = 0.0, scope: str = "global") -> Any:
    """Return a table that holds one number."""
    return fl.table(name, np.array(start), scope=scope)


def ticks(batch_size: int | None = None, rows: int = 8, **load: Any) -> tuple[Any, Any]:
    """Return a load and a value that is the number of the step, standing for its examples."""
    x = fl.load(np.ones((rows, 1)), batch_size=batch_size, **load)
    return x, fl.map(lambda x, here: np.array(float(here.clock)), x, fl.here(), name="tick")


def kept_values(sinks: Any, table: Any, steps: int, replicas: int = 1) -> list[Any]:
    """Return a table after each step."""
    run = ran(*sinks, steps=steps, replicas=replicas, snapshots=range(1, steps + 1))
    name = table.of.name
    return [float(run.outcome.snapshots[s][name][0]) for s in range(1, steps + 1)]


# K x b = K*b, weights and empties


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("replicas", [1, 2, 3, 5])
def test_a_step_of_several_replicas_is_one_of_all_their_examples(replicas: int, dtype: str) -> None:
    """A step by hand, from the batches that the replicas get: sum of (n g) over sum of n."""
    model = fl.models.softmax(3, 2, dtype=dtype)
    w = fl.table("w", model.init(seed=1))
    grad = fl.gradient(model, w, fl.load((X, Y), batch_size=5))
    graph = fl.Graph(fl.update(w, fl.aggregate("mean", grad), fl.sgd(0.5)))
    run = graph.run(steps=1, replicas=replicas, executor="serial")
    load = compile_graph(graph.logical, replicas).operator("load")
    feed, parts = local_feed(load, replicas, 0)
    batches = [open_stream(feed, r, parts[r], prefetch=False).batch(0)[0] for r in range(replicas)]
    joined = tuple(np.concatenate(column) for column in zip(*batches, strict=True))
    start = model.init(seed=1)
    _, slope = model.value_and_grad(start, joined)
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    for name in start:
        np.testing.assert_allclose(
            run.tables["w"][name], start[name] - 0.5 * slope[name], rtol=tolerance, atol=tolerance
        )


def parted(*sizes: int) -> Any:
    """Return a source with partitions of such sizes."""
    return fl.data.parts([np.ones((n, 1)) for n in sizes])


def test_a_replica_without_examples_is_left_out() -> None:
    called: list[int] = []

    def rank_of(x: Any, here: Any) -> Any:
        called.append(here.replica)
        return np.array(float(here.replica))

    w = cell("w")
    value = fl.map(rank_of, fl.load(parted(3, 0, 1), batch_size=4), fl.here())
    run = ran(fl.assign(w, fl.aggregate("mean", value)), steps=1, replicas=3)
    assert called == [0, 2]
    assert float(run.tables["w"]) == (3 * 0 + 1 * 2) / 4
    run = ran(fl.assign(w, fl.aggregate("mean", value, weight="equal")), steps=1, replicas=3)
    assert float(run.tables["w"]) == 1.0
    run = ran(fl.assign(w, fl.aggregate("sum", value)), steps=1, replicas=3)
    assert float(run.tables["w"]) == 2.0


def test_a_weight_of_zero_times_nan_is_nothing() -> None:
    w, x = cell("w"), fl.load(parted(1, 1, 1), batch_size=1)
    both = fl.map(
        lambda x, here: (np.array([2.0, np.nan, 4.0][here.replica]), [1.0, 0.0, 3.0][here.replica]),
        x,
        fl.here(),
        outputs=2,
    )
    for how, found in (("mean", (2 * 1 + 4 * 3) / 4), ("sum", 2 * 1 + 4 * 3)):
        mean = fl.aggregate(how, both[0], weight=both[1])
        assert float(ran(fl.assign(w, mean), steps=1, replicas=3).tables["w"]) == found


def test_a_firing_of_total_zero_applies_nothing() -> None:
    """Of the two steps of an epoch, the group of rank 1 has examples in the first alone."""
    copy, w = cell("copy", 7.0, scope="host"), cell("w", 7.0)
    x = fl.load(parted(2, 1), batch_size=1)
    inside = fl.aggregate("mean", fl.map(lambda x: np.array(1.0), x), within="host")
    clock = fl.map(lambda i, h: np.array(float(h.clock)), inside, fl.here(), name="clock")
    moved = fl.update(copy, inside, fl.add())
    across = fl.update(w, fl.aggregate("sum", clock), fl.add())
    run = ran(moved, across, epochs=2, replicas=2, groups=2, snapshots=(1, 2, 3, 4))
    found = [[float(v) for v in run.outcome.snapshots[s]["copy"]] for s in (1, 2, 3, 4)]
    assert found == [[8, 8], [9, 8], [10, 9], [11, 9]]
    assert float(run.tables["w"]) == 7 + 0 + 0 + 1 + 2 + 2 + 3


def test_all_replicas_of_weight_zero_apply_nothing() -> None:
    w, x = cell("w", 7.0), fl.load(parted(1, 1), batch_size=1)
    value, weight = fl.map(lambda x: (np.array(1.0), 0.0), x, outputs=2)
    for how in ("mean", "sum", "median"):
        run = ran(fl.assign(w, fl.aggregate(how, value, weight=weight)), steps=2, replicas=2)
        assert float(run.tables["w"]) == 7.0


def test_examples_must_agree() -> None:
    w = cell("w")
    one, two = fl.load(parted(3), batch_size=4), fl.load(parted(2), batch_size=4, name="two")
    value = fl.map(lambda a, b: np.array(1.0), one, two, name="joined")
    with pytest.raises(fl.OperatorError, match="its inputs stand for 2 and 3 examples"):
        ran(fl.assign(w, fl.aggregate("mean", value)), steps=1)


def test_sample_weights_count_as_examples() -> None:
    w = cell("w")
    source = fl.data.parts(
        [(np.full((1, 1), v), np.zeros(1), np.array([c])) for v, c in ((1.0, 2.0), (5.0, 6.0))]
    )
    value = fl.map(lambda b: np.array(float(b[0][0, 0])), fl.load(source, batch_size=1))
    run = ran(fl.assign(w, fl.aggregate("mean", value)), steps=1, replicas=2)
    assert float(run.tables["w"]) == (1 * 2 + 5 * 6) / 8


# Periods


def test_a_sum_every_three_steps_into_an_update() -> None:
    w, (_, tick) = cell("w"), ticks()
    total = fl.update(w, fl.aggregate("sum", tick).every(3), fl.add())
    assert kept_values([total], w, 7) == [0, 0, 3, 3, 3, 15, 15]


@pytest.mark.parametrize(
    ("keep", "found"),
    [(None, [0, 0, 3, 3, 3, 12]), ("sum", [0, 0, 3, 3, 3, 12]), ("mean", [0, 0, 1, 1, 1, 4]),
     ("last", [0, 0, 2, 2, 2, 5])],
)  # fmt: skip
def test_what_an_update_gets_of_the_steps_between(keep: Any, found: list[float]) -> None:
    w, (_, tick) = cell("w"), ticks()
    replaced = fl.Rule(lambda p: (), lambda p, u, s, at, out: np.copyto(out, u), name="replaced")
    value = fl.aggregate("sum", tick).every(3, keep=keep)
    assert kept_values([fl.update(w, value, replaced)], w, 6) == found


@pytest.mark.parametrize(
    ("how", "keep", "found"),
    [("mean", None, [1, 4]), ("sum", None, [3, 12]), ("mean", "sum", [3, 12]),
     ("sum", "mean", [1, 4]), ("mean", "last", [2, 5]), ("median", None, [2, 5])],
)  # fmt: skip
def test_what_an_aggregate_gets_of_the_steps_between(
    how: str, keep: Any, found: list[float]
) -> None:
    w, (_, tick) = cell("w"), ticks()
    out = fl.assign(w, fl.aggregate(how, tick.every(3, keep=keep)))
    assert kept_values([out], w, 6)[2::3] == found


def test_means_over_steps_weigh_by_examples() -> None:
    """Batches of 3, 3 and 2 rows: steps 0 to 2 are (0 x 3 + 1 x 3 + 2 x 2) / 8."""
    w, (_, tick) = cell("w"), ticks(batch_size=3, rows=8)
    out = fl.assign(w, fl.aggregate("mean", tick.every(3)))
    assert kept_values([out], w, 3)[2] == (0 * 3 + 1 * 3 + 2 * 2) / 8


def test_replicas_weigh_by_the_examples_of_all_their_steps() -> None:
    """Rank 0 has 4 rows in 2 steps, rank 1 has 1 row in the first; keep="last" keeps counts too."""
    w, x = cell("w"), fl.load(parted(4, 1), batch_size=2)
    rank = fl.map(lambda x, here: np.array(float(here.replica)), x, fl.here())
    for keep in ("mean", "last"):
        out = fl.assign(w, fl.aggregate("mean", rank.every(2, keep=keep)))
        assert kept_values([out], w, 2, replicas=2)[1] == 1 / 5


@pytest.mark.parametrize(
    ("keep", "found"), [(None, [0, 1, 1, 3, 3, 5]), ("sum", [0, 1, 1, 5, 5, 9]),
                        ("mean", [0, 0.5, 0.5, 2.5, 2.5, 4.5])]
)  # fmt: skip
def test_what_a_map_gets_of_the_steps_between(keep: Any, found: list[float]) -> None:
    w, (_, tick) = cell("w"), ticks()
    out = fl.assign(w, fl.aggregate("sum", fl.map(lambda t: t + 0, tick.every(2, keep=keep))))
    assert kept_values([out], w, 6) == found


def test_a_slower_input_is_held() -> None:
    """The faster input drives; before the slower has come there is nothing to do."""
    w, mine, (_, tick) = cell("w", -1.0), cell("mine", scope="replica"), ticks()
    newest = fl.assign(mine, tick)
    joined = fl.map(lambda fast, slow: 100 * fast + slow, tick, newest.every(3))
    out = fl.assign(w, fl.aggregate("sum", joined))
    assert kept_values([newest, out], w, 7) == [-1, -1, 202, 302, 402, 505, 605]


def test_a_fast_and_a_slow_value_stand_for_other_examples() -> None:
    w, (_, tick) = cell("w"), ticks()
    joined = fl.map(np.add, tick, tick.every(3))
    with pytest.raises(fl.OperatorError, match="stand for 8 and 24 examples; they must agree"):
        ran(fl.assign(w, fl.aggregate("sum", joined)), steps=3)


def test_a_table_is_held_between_the_steps_in_which_it_is_read() -> None:
    w, (_, tick) = cell("w"), ticks()
    seen = cell("seen")
    read = fl.map(lambda w, t: w + 0 * t, w.every(3), tick)
    sinks = (
        fl.update(w, fl.aggregate("sum", fl.map(lambda t: np.array(1.0), tick)), fl.add()),
        fl.assign(seen, fl.aggregate("sum", read)),
    )
    assert kept_values(sinks, seen, 7) == [0, 0, 0, 3, 3, 3, 6]


def test_an_operator_of_tables_alone_fires_with_the_fastest() -> None:
    w, seen, (_, tick) = cell("w"), cell("seen", -1.0), ticks()
    step = fl.update(w, fl.aggregate("sum", fl.map(lambda t: np.array(1.0), tick)), fl.add())
    seen_by = fl.assign(seen, fl.map(lambda a, b: 100 * a + b, w.every(2), w.every(3)))
    assert kept_values([step, seen_by], seen, 7) == [0, 0, 200, 203, 403, 403, 606]


def test_what_is_unsent_is_named_by_its_edge() -> None:
    w, v, (_, tick) = cell("w"), cell("v"), ticks()
    total = fl.aggregate("sum", tick, name="total")
    sinks = (fl.update(w, total.every(3), fl.add()), fl.update(v, total.every(2), fl.add()))
    assert ran(*sinks, steps=5).outcome.unsent == ("total -> update_v", "total -> update_w")
    assert ran(*sinks, steps=4).outcome.unsent == ("total -> update_w",)
    assert ran(*sinks, steps=6).outcome.unsent == ()


# Writes


def test_a_write_returns_the_table_after_it_and_others_see_the_step_before() -> None:
    w, old, new, (_, tick) = cell("w"), cell("old"), cell("new"), ticks()
    one = fl.aggregate("sum", fl.map(lambda t: np.array(1.0), tick))
    first = fl.update(w, one, fl.add())
    second = fl.update(w, fl.map(lambda w: 10 * w, first), fl.add())
    sinks = (
        first,
        second,
        fl.assign(old, fl.map(np.copy, w)),
        fl.assign(new, fl.map(np.copy, second)),
    )
    # w: 0 -> 1 -> 1 + 10; 11 -> 12 -> 12 + 120
    assert kept_values(sinks, w, 2) == [11, 132]
    assert kept_values(sinks, old, 2) == [0, 11]
    assert kept_values(sinks, new, 2) == [11, 132]


def test_a_write_that_does_not_fire_returns_the_table_unchanged() -> None:
    w, seen, (_, tick) = cell("w"), cell("seen", -1.0), ticks()
    slow = fl.update(w, fl.aggregate("sum", tick).every(2), fl.add())
    both = fl.map(lambda w, t: w + 0 * t, slow, tick)
    assert kept_values([slow, fl.assign(seen, fl.aggregate("sum", both))], seen, 5) == [
        -1,
        1,
        1,
        6,
        6,
    ]


def test_pushes_are_applied_in_the_order_of_ranks() -> None:
    digits = fl.Rule(lambda p: (), lambda p, u, s, at, out: np.add(10 * p, u, out=out))
    w, x = cell("w"), fl.load(parted(1, 1, 1), batch_size=1)
    rank = fl.map(lambda x, here: np.array(here.replica + 1.0), x, fl.here())
    assert kept_values([fl.update(w, rank, digits)], w, 2, replicas=3) == [123, 123123]


def test_a_push_into_a_group_takes_its_own_ranks_only() -> None:
    w, x = cell("w", scope="host"), fl.load(parted(1, 1, 1, 1), batch_size=1)
    rank = fl.map(lambda x, here: np.array(here.replica + 1.0), x, fl.here())
    run = ran(fl.update(w, rank, fl.add()), steps=1, replicas=4, groups=[[0, 3], [1, 2]])
    assert [float(v) for v in run.tables["w"]] == [1 + 4, 2 + 3]


def test_tables_of_replicas_are_averaged_and_pushed_like_values() -> None:
    w, v = cell("w"), cell("v")
    local = fl.table("local", lambda here: np.array(here.replica + 1.0), scope="replica")
    x = fl.load(parted(1, 1, 1), batch_size=1)
    moved = fl.update(local, fl.map(lambda x: np.array(10.0), x), fl.add())
    sinks = (moved, fl.assign(w, fl.aggregate("mean", local)), fl.update(v, local, fl.add()))
    assert kept_values(sinks, w, 2, replicas=3) == [2, 12]
    assert kept_values(sinks, v, 2, replicas=3) == [6, 6 + 36]
    slow = (moved, fl.assign(w, fl.aggregate("sum", local.every(2))))
    assert kept_values(slow, w, 4, replicas=3) == [6, 6, 66, 66]


def test_a_coarser_value_is_written_to_each_finer_table() -> None:
    local, x = cell("local", scope="replica"), fl.load(parted(1, 3), batch_size=3)
    mean = fl.aggregate("mean", fl.map(lambda x, h: np.array(float(h.replica)), x, fl.here()))
    run = ran(fl.assign(local, mean), steps=1, replicas=2)
    assert [float(v) for v in run.tables["local"]] == [0.75, 0.75]


def test_what_a_rule_is_told() -> None:
    told: list[tuple[int, int, int, float]] = []

    def step(params: Any, update: Any, state: Any, at: Any, out: Any) -> None:
        told.append((at.step, at.applied, at.writer, at.examples))
        out[...] = params + update

    w, x = cell("w"), fl.load(parted(2, 0, 1), batch_size=2)
    value = fl.map(lambda x: np.array(1.0), x)
    ran(fl.update(w, value, fl.Rule(lambda p: (), step)), steps=2, replicas=3)
    assert told == [(0, 0, 0, 2.0), (0, 1, 2, 1.0), (1, 2, 0, 2.0), (1, 3, 2, 1.0)]


# Places, random numbers, starts


def draws(replicas: int, name: str = "draw", seed: int = 3, run_seed: int = 0) -> Any:
    w = fl.table("w", np.zeros((4, 2)))
    noise = fl.map(
        lambda x, here: np.eye(4)[:, [here.replica]] * here.rng().normal(size=2),
        fl.load(np.ones((8, 1)), batch_size=2),
        fl.here(seed=seed),
        name=name,
    )
    run = ran(
        fl.assign(w, fl.aggregate("sum", noise)),
        steps=2,
        replicas=replicas,
        seed=run_seed,
        snapshots=(1, 2),
    )
    return [run.outcome.snapshots[s]["w"][0] for s in (1, 2)]


def test_random_numbers_of_a_rank_do_not_depend_on_how_many_there_are() -> None:
    two, four = draws(2), draws(4)
    for a, b in zip(two, four, strict=True):
        np.testing.assert_array_equal(a[:2], b[:2])
    assert len({tuple(row) for step in four for row in step}) == 8


def test_random_numbers_depend_on_seeds_alone() -> None:
    np.testing.assert_array_equal(draws(2), draws(2, name="other"))
    assert not np.array_equal(draws(2), draws(2, seed=4))
    assert not np.array_equal(draws(2), draws(2, run_seed=1))


def test_two_places_are_two_streams() -> None:
    w, v = cell("w"), cell("v")
    x = fl.load(np.ones((8, 1)), batch_size=2)
    noise = [fl.map(lambda x, h: np.array(h.rng().normal()), x, fl.here()) for _ in range(2)]
    run = ran(
        *(fl.assign(t, fl.aggregate("sum", n)) for t, n in zip((w, v), noise, strict=True)), steps=1
    )
    assert float(run.tables["w"]) != float(run.tables["v"])


def test_the_place_of_an_instance() -> None:
    found: set[tuple[int, int, int, int]] = set()

    def note(x: Any, here: Any) -> Any:
        found.add((here.replica, here.replicas, here.group, here.clock))
        return np.array(0.0)

    w, x = cell("w"), fl.load(parted(1, 1, 1), batch_size=1)
    ran(fl.update(w, fl.map(note, x, fl.here()), fl.add()), steps=2, replicas=3, groups=2)
    assert found == {(r, 3, g, c) for r, g in ((0, 0), (1, 0), (2, 1)) for c in (0, 1)}


def test_tables_that_start_from_random_numbers_start_apart() -> None:
    def start(here: Any) -> Any:
        return here.rng().normal(size=2)

    tables = [fl.table(n, start, scope="replica") for n in "ab"]
    x = fl.load(parted(1, 1), batch_size=1)
    run = ran(
        *(fl.update(t, fl.map(lambda x: np.zeros(2), x), fl.add()) for t in tables),
        steps=1,
        replicas=2,
    )
    starts = [tuple(v) for name in "ab" for v in run.tables[name]]
    assert len(set(starts)) == 4


def test_a_start_that_is_no_array_is_refused() -> None:
    w = fl.table("w", lambda here: "text")
    x = fl.load(parted(1), batch_size=1)
    with pytest.raises(fl.GraphError, match=r"table 'w' \(test_serial.*init\(here\) must"):
        ran(fl.assign(w, fl.aggregate("sum", fl.map(lambda x: np.zeros(2), x))), steps=1)


# Ends


def test_nonfinite_values_stop_or_are_ignored() -> None:
    def broken(w: Any, x: Any, here: Any) -> Any:
        slope = np.nan if here.clock == 1 else 1.0
        return np.sum(w) * slope

    w, x = fl.table("w", np.ones(2)), fl.load(np.ones((8, 1)), batch_size=2)
    update = fl.update(w, fl.aggregate("mean", fl.gradient(broken, w, x, fl.here())), fl.sgd(0.5))
    with pytest.raises(fl.DivergedError) as caught:
        ran(update, steps=3)
    run = caught.value.run  # type: ignore[attr-defined]
    assert run.status == "failed"
    assert run.steps == 1
    assert run.tables["w"].tolist() == [0.5, 0.5]
    ignored = ran(update, steps=3, on_nonfinite="ignore")
    assert ignored.status == "done"
    assert np.isnan(ignored.tables["w"]).all()
    assert np.isnan(ignored.history["loss"]).tolist() == [False, True, True]


def test_a_failed_step_changes_no_table() -> None:
    def late(x: Any, here: Any) -> Any:
        return np.array(1.0) if here.clock < 2 else 1 / 0

    a, b, (_, tick) = cell("a"), cell("b"), ticks()
    first = fl.update(a, fl.aggregate("sum", fl.map(lambda t: np.array(1.0), tick)), fl.add())
    second = fl.update(b, fl.aggregate("sum", fl.map(late, tick, fl.here())), fl.add())
    with pytest.raises(fl.OperatorError) as caught:
        ran(first, second, steps=5)
    run = caught.value.run  # type: ignore[attr-defined]
    assert (float(run.tables["a"]), float(run.tables["b"]), run.steps) == (2.0, 2.0, 2)


def test_until_ends_after_the_step_in_which_it_is_true() -> None:
    w, (_, tick) = cell("w"), ticks()
    total = fl.update(w, fl.aggregate("sum", tick), fl.add())
    run = ran(total, fl.until(lambda w: w >= 3, total), steps=99)
    assert (run.status, run.steps, float(run.tables["w"])) == ("until", 3, 3.0)
    slow = ran(total, fl.until(lambda w: w >= 3, total.every(5)), steps=99)
    assert (slow.status, slow.steps) == ("until", 5)
    never = ran(total, fl.until(lambda w: False, w), steps=4)
    assert (never.status, never.steps) == ("done", 4)


def test_time_ends_a_run_after_a_whole_step() -> None:
    w, (_, tick) = cell("w"), ticks()
    run = ran(fl.update(w, fl.aggregate("sum", tick), fl.add()), steps=99, max_seconds=1e-9)
    assert (run.status, run.steps) == ("stopped", 1)


def test_stop_ends_a_run_after_the_step_in_progress() -> None:
    w, (_, tick) = cell("w"), ticks()
    started: list[fl.Run] = []

    def listen(value: Any) -> Any:
        if float(value) == 4 and started:
            started[0].stop()
        return value

    heard = fl.map(listen, fl.aggregate("sum", tick))
    graph = fl.Graph(fl.update(w, heard, fl.add()))
    started.append(graph.start(steps=10**7, executor="serial"))
    run = started[0].wait(60)
    assert run.status == "stopped"
    assert float(run.tables["w"]) == run.steps * (run.steps - 1) / 2


@pytest.mark.parametrize(
    ("asked", "steps"),
    [({"steps": 7}, 7), ({"epochs": 2}, 6), ({"steps": 4, "epochs": 9}, 4),
     ({"steps": 99, "epochs": 1}, 3)],
)  # fmt: skip
def test_steps_or_epochs_whichever_comes_first(asked: dict[str, int], steps: int) -> None:
    """23 rows over 2 replicas are 12 and 11: three batches of 4 each."""
    w = cell("w")
    value = fl.map(lambda x: np.array(float(len(x))), fl.load(X, batch_size=4))
    run = ran(fl.update(w, value, fl.add()), replicas=2, **asked)
    assert run.steps == steps
    assert run.outcome.steps_per_epoch == 3
    if steps % 3 == 0:
        assert float(run.tables["w"]) == steps / 3 * 23


# Evaluations, history and what was dropped


def evaluated(every: Any, **asked: Any) -> tuple[list[int], list[float], list[Any]]:
    told: list[Any] = []
    w, (_, tick) = cell("w"), ticks(batch_size=4)
    total = fl.update(w, fl.aggregate("sum", tick), fl.add())
    test = fl.evaluate(lambda p, x: {"w": p}, total, X, every=every, name="test")
    run = ran(total, test, on_event=told.append, **asked)
    heard = [e for e in told if isinstance(e, Evaluated)]
    return [m["step"] for m in run.metrics], [m["w"] for m in run.metrics], heard


def test_evaluations_come_every_few_steps_and_at_the_end() -> None:
    steps, values, heard = evaluated(3, steps=8)
    assert steps == [3, 6, 8]
    assert values == [3.0, 15.0, 28.0]
    assert [(e.step, e.name, e.metrics["w"]) for e in heard] == [
        (3, "test", 3.0),
        (6, "test", 15.0),
        (8, "test", 28.0),
    ]


@pytest.mark.parametrize(
    ("every", "asked", "steps"),
    [("1 epoch", {"epochs": 2}, [2, 4]), ("2 epochs", {"epochs": 5}, [4, 8, 10]),
     ("5 steps", {"epochs": 3}, [5, 6]), ("1 epoch", {"steps": 3}, [2, 3])],
)  # fmt: skip
def test_evaluations_by_epochs(every: str, asked: dict[str, int], steps: list[int]) -> None:
    assert evaluated(every, **asked)[0] == steps


def test_an_evaluation_is_a_mean_over_all_examples_by_weight() -> None:
    w, (_, tick) = cell("w", 2.0), ticks()
    source = fl.data.parts(
        [
            (np.array([[1.0], [2.0]]), np.zeros(2), np.array([1.0, 3.0])),
            (np.array([[5.0]]), np.zeros(1), np.array([4.0])),
        ]
    )
    test = fl.evaluate(
        lambda p, rows: float(np.average(rows[0][:, 0], weights=rows[2]) + p), w, source
    )
    run = ran(fl.update(w, fl.aggregate("sum", tick), NOTHING), test, steps=1)
    assert run.metrics[0]["value"] == pytest.approx((1 * 1 + 2 * 3 + 5 * 4) / 8 + 2, rel=1e-15)


@pytest.mark.parametrize(
    ("metric", "says"),
    [(lambda p, x: None, "metric 'value' must be one number, got None. Is a return missing?"),
     (lambda p, x: {"a": x}, "metric 'a' must be one number, got shape (23, 3)"),
     (lambda p, x: x.fill(0), "copy first"), (lambda p, x: p.fill(0), "copy first"),
     (lambda p, x: 1 / 0, "raised ZeroDivisionError")],
)  # fmt: skip
def test_evaluations_that_fail(metric: Any, says: str) -> None:
    w, (_, tick) = cell("w"), ticks()
    test = fl.evaluate(metric, w, X, every=1, name="test")
    with pytest.raises(fl.OperatorError, match=r"operator 'test' \(test_serial") as caught:
        ran(fl.update(w, fl.aggregate("sum", tick), fl.add()), test, steps=1)
    assert says in str(caught.value)


def test_dropped_rows_are_counted() -> None:
    w = cell("w")
    x = fl.load(X, batch_size=5, drop_last=True)
    value = fl.map(lambda x: np.array(float(len(x))), x)
    run = ran(fl.update(w, value, fl.add()), epochs=1, replicas=2)
    assert run.outcome.dropped_rows == {"load": 23 - 20}
    assert float(run.tables["w"]) == 20
    with pytest.raises(fl.DataError, match="Use fewer replicas"):
        ran(fl.update(w, value, fl.add()), epochs=1, replicas=6)


def history(steps: int, replicas: int) -> Any:
    model = fl.models.linear(1)
    w, x = (
        fl.table("w", model.init(seed=0)),
        fl.load((np.ones((4, 1), "f4"), np.ones(4, "f4")), batch_size=2),
    )
    update = fl.update(w, fl.aggregate("mean", fl.gradient(model, w, x)), fl.sgd(0.01))
    return ran(update, steps=steps, replicas=replicas).history


def test_the_history_has_a_row_a_step_and_replica() -> None:
    found = history(3, 2)
    assert found["step"].tolist() == [0, 0, 1, 1, 2, 2]
    assert found["replica"].tolist() == [0, 1] * 3
    assert np.all(np.diff(found["loss"][::2]) < 0)
    assert np.all(found["staleness"] == 0)


def test_the_history_is_thinned_after_a_thousand_steps() -> None:
    found = history(1105, 1)["step"].tolist()
    assert found == [*range(1000), *range(1000, 1105, 10)]


def test_a_replica_without_examples_has_no_loss() -> None:
    model = fl.models.linear(1)
    source = fl.data.parts([(np.ones((n, 1), "f4"), np.ones(n, "f4")) for n in (2, 1)])
    w, x = fl.table("w", model.init(seed=0)), fl.load(source, batch_size=1)
    update = fl.update(w, fl.aggregate("mean", fl.gradient(model, w, x)), fl.sgd(0.01))
    loss = ran(update, epochs=1, replicas=2).history["loss"]
    assert np.isnan(loss).tolist() == [False, False, False, True]


# Purity


def leaves(outcome: Outcome) -> list[bytes]:
    tables: Any = [outcome.snapshots[s] for s in sorted(outcome.snapshots)] + [outcome.tables]
    return [np.asarray(leaf).tobytes() for leaf in optree.tree_leaves(tables)]


@settings(max_examples=40)
@given(graphs())
def test_any_graph_runs_twice_to_the_same_bytes(declare: Callable[[], fl.Graph]) -> None:
    graph = declare()

    def result() -> list[bytes] | str:
        try:
            run = graph.run(
                steps=5,
                replicas=3,
                groups=2,
                executor="serial",
                snapshots=(1, 2),
                on_nonfinite="ignore",
            )
        except fl.FlowmlError as error:
            return str(error)
        return leaves(run.outcome)

    first = result()
    assert result() == first


def test_what_a_run_gives_out_is_its_own() -> None:
    w, (_, tick) = cell("w"), ticks()
    run = ran(fl.update(w, fl.aggregate("sum", tick), fl.add()), steps=3, snapshots=(3,))
    run.tables["w"][...] = 99
    assert float(run.outcome.snapshots[3]["w"][0]) == 3
