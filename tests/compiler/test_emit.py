"""The emitted tasks, run by Dask's own synchronous scheduler, give the bytes of serial."""

import math
from itertools import pairwise

import dask
import numpy as np
import optree
import pytest
from dask.utils import key_split
from distributed.utils import key_split_group

import flowml as fl
from flowml.compiler.emit import emit
from flowml.compiler.stages import compile_graph
from flowml.compiler.standalone import result_keys, standalone
from flowml.errors import OperatorError
from flowml.runtime.feeding import loads, local_feed
from flowml.runtime.outcome import Order
from flowml.runtime.serial import run_serial
from flowml.runtime.taskwindow import Course, RankShare, homes, table_tasks

RNG = np.random.default_rng(7)
X = RNG.standard_normal((53, 6)).astype("float32")
Y = RNG.integers(0, 3, 53)
WEIGHT = RNG.uniform(0.5, 2.0, 53)
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
        "until",
        "table",
    )
}


def softmax():
    return fl.models.softmax(6, 3)


def declared(source=None, batch_size=8, scope="global", **options):
    """Return model, table, batch and gradient."""
    model = softmax()
    table = fl.table("w", model.init(seed=0), scope=scope)
    batch = fl.load((X, Y) if source is None else source, batch_size=batch_size, **options)
    return model, table, batch, fl.gradient(model, table, batch)


def ssgd(rule=None, **options):
    _, w, _, g = declared(**options)
    return fl.Graph(fl.update(w, fl.aggregate("mean", g), rule or fl.sgd(0.1, momentum=0.9)))


def local_sgd():
    model = softmax()
    anchor = fl.table("anchor", model.init(seed=0))
    local = fl.table("local", model.init(seed=0), scope="replica")
    batch = fl.load((X, Y), batch_size=8)
    moved = fl.update(local, fl.gradient(model, local, batch), fl.adam(0.01))
    apart = fl.map(difference, anchor, moved.every(3))
    outer = fl.update(
        anchor,
        fl.aggregate("mean", apart, weight="equal"),
        fl.sgd(0.7, momentum=0.9, nesterov=True),
    )
    return fl.Graph(moved, outer, fl.assign(local, outer))


def difference(a, b):
    return {name: a[name] - b[name] for name in a}


def hierarchical():
    _, w, _, g = declared()
    inside = fl.aggregate("mean", g, within="host")
    return fl.Graph(fl.update(w, fl.aggregate("mean", inside), fl.clip_norm(0.5, fl.sgd(0.1))))


def push():
    _, w, _, g = declared()
    return fl.Graph(fl.update(w, g, fl.sgd(0.1, momentum=0.5)))


def kept_sum_and_median():
    _, w, _, g = declared()
    middle = fl.aggregate("median", g)
    return fl.Graph(fl.update(w, middle.every(2, keep="sum"), fl.adagrad(0.1)))


def kept_means():
    _, w, _, g = declared()
    mean = fl.aggregate("mean", g.every(3))
    return fl.Graph(fl.update(w, mean, fl.sgd(0.1)))


def slow_table_and_slow_input():
    """One reader holds a slow table and a slow value, and fires with the fast one."""
    model, w, batch, _ = declared()
    g = fl.gradient(model, w.every(4), batch)
    mean = fl.aggregate("mean", g)
    old = fl.map(lambda p: p, w.every(3), name="old")
    both = fl.map(lambda a, b: optree.tree_map(lambda p, q: p + 0.1 * q, a, b), mean, old)
    return fl.Graph(fl.update(w, both, fl.sgd(0.1)))


def two_writes():
    """A table is written twice a step; the second write reads what the first returned."""
    model, w, batch, g = declared()
    first = fl.update(w, fl.aggregate("mean", g), fl.adam(0.01))
    again = fl.aggregate("mean", fl.gradient(model, first, batch, name="again"))
    return fl.Graph(first, fl.update(w, again, fl.sgd(0.05, momentum=0.5)))


def outputs_places_and_handles():
    """Several outputs, several tables, aux, places and weights that are values."""
    u = fl.table("u", np.zeros((6, 2), "float32"))
    v = fl.table("v", np.ones(2, "float32"))
    batch = fl.load((X, Y), batch_size=5)
    x, y = fl.map(lambda b: (b[0], b[1]), batch, outputs=2, name="cut")
    noise = fl.map(
        lambda b, here: here.rng().standard_normal(len(b)).astype("float32"),
        x,
        fl.here(seed=3),
        name="noise",
    )

    @fl.value_and_grad
    def loss(params, rows, labels, extra):
        first, second = params
        scores = rows @ first * second
        error = scores.sum(1) - labels - 0.01 * extra
        slope = (2 * error / len(rows)).astype("float32")
        grads = (rows.T @ (slope[:, None] * second), slope @ (rows @ first))
        return (float(np.mean(error**2)), np.array([len(rows)], "float32")), grads

    gu, gv, seen = fl.gradient(loss, (u, v), x, y, noise, aux=True)
    weight = fl.map(lambda labels: float(labels.sum()), y, name="heavy")
    mean_u = fl.aggregate("mean", gu, weight=weight, name="mean-u")
    return fl.Graph(
        fl.update(u, mean_u, fl.sgd(0.1)),
        fl.update(v, fl.aggregate("sum", gv), fl.clip_norm(1.0, fl.sgd(0.01))),
        fl.assign(fl.table("n", np.zeros(1, "float32")), fl.aggregate("sum", seen, name="count")),
    )


def whole_share():
    model = softmax()
    w = fl.table("w", model.init(seed=0))
    share = fl.load(fl.data.arrays(X, Y, WEIGHT), batch_size=None)
    mean = fl.aggregate("mean", fl.gradient(model, w, share))
    return fl.Graph(fl.update(w, mean, fl.rmsprop(0.01)))


def partitioned():
    pieces = [(X[:20], Y[:20]), (X[20:23], Y[20:23]), (X[23:23], Y[23:23]), (X[23:], Y[23:])]
    return ssgd(source=fl.data.parts(pieces), batch_size=7)


def chunks():
    for start in range(0, 53, 10):
        yield X[start : start + 10], Y[start : start + 10]


def streamed(batch_size=4):
    return ssgd(source=fl.data.iterable(chunks, parts=3), batch_size=batch_size)


def short_drops():
    return ssgd(batch_size=10, drop_last=True)


def clip_groups():
    """Tables and updates of a group."""
    _, w, _, g = declared(scope="host")
    top = fl.table("top", softmax().init(seed=0))
    moved = fl.update(w, fl.aggregate("mean", g, within="host"), fl.clip_norm(0.2, fl.adam(0.05)))
    mean = fl.assign(top, fl.aggregate("mean", moved.every(2), weight="equal"))
    return fl.Graph(moved, mean, fl.assign(w, mean))


GRAPHS = [
    ssgd,
    local_sgd,
    hierarchical,
    push,
    kept_sum_and_median,
    kept_means,
    slow_table_and_slow_input,
    two_writes,
    outputs_places_and_handles,
    whole_share,
    partitioned,
    streamed,
    clip_groups,
]


def assert_same(tables, reference):
    assert tables.keys() == reference.keys()
    for name, instances in reference.items():
        assert len(tables[name]) == len(instances)
        for got, wanted in zip(tables[name], instances, strict=True):
            pairs = zip(optree.tree_leaves(got), optree.tree_leaves(wanted), strict=True)
            assert all(a.tobytes() == b.tobytes() for a, b in pairs), name


def run_dict(plan, steps):
    graph = standalone(plan, steps)
    return {name: list(dask.get(graph, keys)) for name, keys in result_keys(plan, steps).items()}


def assert_like_serial(graph, replicas, groups, steps):
    plan = compile_graph(graph.logical, replicas, groups)
    reference = run_serial(plan, Order(steps, None))
    assert reference.error is None
    assert_same(run_dict(plan, steps), reference.tables)


@pytest.mark.parametrize("replicas", [1, 2, 3, 5])
@pytest.mark.parametrize("build", GRAPHS)
def test_the_tables_of_a_standalone_graph_are_those_of_serial(build, replicas):
    groups = 2 if replicas > 1 else None
    for steps in (1, 2, 7):
        assert_like_serial(build(), replicas, groups, steps)


@pytest.mark.parametrize("rule", [fl.sgd(0.1), fl.adam(0.01), fl.adamw(0.01)], ids=str)
def test_rules_have_their_state_copied(rule):
    assert_like_serial(ssgd(rule), 4, None, 5)


@pytest.mark.parametrize(
    ("build", "replicas"), [(short_drops, 5), (lambda: streamed(None), 2), (streamed, 5)]
)
def test_dropped_rows_streamed_shares_and_more_replicas_than_partitions(build, replicas):
    assert_like_serial(build(), replicas, None, 9)


def test_replicas_without_rows_are_left_out_of_the_sums():
    few = (X[:3], Y[:3])
    assert_like_serial(ssgd(source=few, batch_size=2), 5, None, 4)
    assert_like_serial(ssgd(source=few, batch_size=None), 5, None, 4)


def test_a_weight_of_zero_vanishes_from_the_tree():
    def zero(batch, here):
        return 0.0 if here.replica % 2 else 1.0

    _, w, batch, g = declared()
    weight = fl.map(zero, batch, fl.here())
    graph = fl.Graph(fl.update(w, fl.aggregate("mean", g, weight=weight), fl.sgd(0.1)))
    assert_like_serial(graph, 5, None, 3)


def test_members_of_another_shape_are_named():
    batch = fl.load((X, Y), batch_size=8)
    odd = fl.map(lambda b, here: np.zeros(2 + (here.replica == 3)), batch, fl.here(), name="odd")
    graph = fl.Graph(fl.assign(fl.table("s", np.zeros(2)), fl.aggregate("sum", odd)))
    plan = compile_graph(graph.logical, 4)
    with pytest.raises(OperatorError, match=r"member 3 differs, got shape \(3,\) instead of"):
        run_dict(plan, 1)


def keys_and_group(plan, steps=2):
    return {(key_split(key), key_split_group(key)) for key in standalone(plan, steps)}


def test_dask_groups_tasks_by_operator_under_a_fixed_vocabulary():
    plan = compile_graph(outputs_places_and_handles().logical, 3)
    found = keys_and_group(plan)
    assert {prefix for prefix, _ in found} <= VOCABULARY
    groups = {group.rpartition(".")[0] for _, group in found}
    # a name of letters only, which Dask would join to the prefix, and one with a hyphen
    assert {
        "flowml:map-cut",
        "flowml:map-noise",
        "flowml:aggregate-mean_u",
        "flowml:table-u",
        "flowml:load-load",
    } <= groups


def test_names_that_differ_in_a_hyphen_have_keys_of_their_own():
    batch = fl.load((X, Y), batch_size=4)
    first = fl.map(lambda b: b[0].sum(), batch, name="a-b")
    second = fl.map(lambda b: b[0].min(), batch, name="a_b")
    graph = fl.Graph(
        fl.assign(fl.table("s", np.float32(0)), fl.aggregate("sum", first, name="x-y")),
        fl.assign(fl.table("t", np.float32(0)), fl.aggregate("sum", second, name="x_y")),
    )
    assert_like_serial(graph, 2, None, 2)


def loaded(plan):
    """Return feeds, and keys of data that nobody has made."""
    feeds = {o.name: local_feed(o, plan.replicas, 0)[0] for o in loads(plan)}
    shares = {
        name: tuple(
            RankShare((name, -2, rank), ((name, -2, rank, "share"),), False)
            for rank in range(plan.replicas)
        )
        for name in feeds
    }
    return feeds, shares


def windows(plan, cuts):
    """Emit windows one after the other; return each with the keys that it was given."""
    course = Course(plan, *loaded(plan), ("shipment", -1, 0), "abcd1234")
    _, carry = table_tasks(course)
    found = []
    for start, stop in pairwise(cuts):
        window = emit(course, start, stop, carry)
        found.append((window, carry.keys()))
        carry = window.carry
    return found


def updates(graph):
    return {(key[0].rpartition(".")[0], *key[1:]) for key in graph if "update" in key[0]}


def test_a_window_goes_on_from_what_the_one_before_carried():
    plan = compile_graph(local_sgd().logical, 3)
    cut = windows(plan, (0, 2, 4, 7))
    assert set().union(*(updates(w.tasks) for w, _ in cut)) == updates(standalone(plan, 7))
    for window, given in cut:
        wanted = set().union(*(task.dependencies for task in window.tasks.values()))
        assert {key for key in wanted - window.tasks.keys() if key[1] >= 0} <= given


def test_only_what_the_next_steps_need_is_carried():
    plan = compile_graph(ssgd().logical, 4)
    ((window, _),) = windows(plan, (0, 5))
    assert window.carry.kept == {}
    assert window.carry.held == {}
    assert len(window.carry.keys()) == 2  # the table, and what operators read of it
    plan = compile_graph(local_sgd().logical, 4)
    ((window, _),) = windows(plan, (0, 4))
    assert {at[0] for at in window.carry.kept} == {"difference"}


def test_sums_are_pairs_along_the_tree():
    plan = compile_graph(ssgd().logical, 5)
    ((window, _),) = windows(plan, (0, 1))
    pairs = {key[3:] for key in window.tasks if "aggregate" in key[0]}
    assert pairs == {(), (0, 1), (2, 3), (0, 3)}


def test_sums_live_with_the_lowest_rank_of_their_subtree():
    plan = compile_graph(hierarchical().logical, 4, 2)
    ((window, _),) = windows(plan, (0, 1))
    place = homes(Course(plan, *loaded(plan), "s", "abcd1234"), ("a", "b", "c", "d"))
    found = {key: place(key) for key in window.tasks}
    assert all(isinstance(address, list) for address in found.values())
    where = {(key[0].partition("-")[2], *key[2:]): address for key, (address,) in found.items()}
    assert where["mean.abcd1234", 1] == "c"  # the sum of the second group
    assert where["mean_2.abcd1234", 0] == "a"
    assert where["gradient.abcd1234", 3] == "d"


def test_tasks_hold_no_arrays_plans_or_functions_of_the_user():
    plan = compile_graph(outputs_places_and_handles().logical, 3)
    ((window, _),) = windows(plan, (0, 3))
    plain = (int, float, str, type(None))

    def flat(argument):
        if isinstance(argument, tuple | list):
            return [leaf for item in argument for leaf in flat(item)]
        return [argument]

    for task in window.tasks.values():
        assert task.func.__module__.startswith("flowml.runtime.")
        odd = [
            a
            for a in flat(list(task.args))
            if not isinstance(a, plain) and not type(a).__module__.startswith("dask.")
        ]
        assert odd == []


def test_the_number_of_tasks_grows_as_steps_times_instances():
    counts = {}
    for replicas in (8, 64):
        plan = compile_graph(ssgd().logical, replicas)
        for steps in (2, 16):
            ((window, _),) = windows(plan, (0, steps))
            counts[replicas, steps] = len(window.tasks)
    for replicas in (8, 64):
        growth = (counts[replicas, 16] - 1) / (counts[replicas, 2] - 1)
        assert growth == pytest.approx(8)
    assert math.log(counts[64, 16] / counts[8, 16], 8) < 1.01


def test_an_end_marks_every_step():
    _, w, _, g = declared()
    mean = fl.aggregate("mean", g)
    graph = fl.Graph(fl.update(w, mean, fl.sgd(0.1)), fl.until(lambda v: False, mean))
    ((window, _),) = windows(compile_graph(graph.logical, 2), (0, 4))
    assert [(mark.start, mark.stop) for mark in window.marks] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert len({mark.tables["w", 0] for mark in window.marks}) == 4
    assert all(key in window.outputs() for mark in window.marks for key in mark.tables.values())
