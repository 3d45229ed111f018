"""Rules against plain loops over numbers; bits under slicing and aliasing; composition."""

from __future__ import annotations

import math
import pickle
from itertools import pairwise

import numpy as np
import pytest
from dask.base import tokenize

import flowml as fl
from flowml.clipping import global_norm
from flowml.errors import GraphError
from flowml.rules import At, Rule

LR = fl.schedules.step(0.1, every=2, factor=0.5)

RULES = {
    "sgd": fl.sgd(LR),
    "sgd decay": fl.sgd(LR, weight_decay=0.1),
    "momentum": fl.sgd(LR, momentum=0.9),
    "momentum decay": fl.sgd(LR, momentum=0.9, weight_decay=0.1),
    "nesterov": fl.sgd(LR, momentum=0.9, nesterov=True),
    "nesterov decay": fl.sgd(LR, momentum=0.9, nesterov=True, weight_decay=0.1),
    "add": fl.add(),
    "add -1": fl.add(-1.0),
    "add 0.3": fl.add(0.3),
    "adagrad": fl.adagrad(LR, initial=0.1),
    "rmsprop": fl.rmsprop(LR),
    "adam": fl.adam(LR),
    "adamw": fl.adamw(LR, weight_decay=0.1),
    "ftrl": fl.ftrl(0.3, beta=0.5, l1=0.4, l2=0.2),
    "proximal": fl.proximal(LR, l1=0.4, l2=0.2),
}


def soft(x, limit):
    return 0.0 if abs(x) <= limit else x - math.copysign(limit, x)


def reference(name, p, gradients):
    """Return one number after several updates, by the formula as it is printed."""
    v = s = 0.0
    if name == "ftrl":
        v = -p * (0.5 / 0.3 + 0.2) - math.copysign(0.4, p)
    if name == "adagrad":
        s = 0.1
    for i, g in enumerate(gradients):
        lr = LR(3 * i)
        if name.startswith(("sgd", "momentum", "nesterov")):
            g = g + (0.1 * p if "decay" in name else 0.0)
            if name.startswith("sgd"):
                p = p - lr * g
                continue
            v = 0.9 * v + g
            p = p - lr * (g + 0.9 * v if "nesterov" in name else v)
        elif name.startswith("add"):
            p = p + {"add": 1.0, "add -1": -1.0, "add 0.3": 0.3}[name] * g
        elif name == "adagrad":
            s = s + g * g
            p = p - lr * g / (math.sqrt(s) + 1e-10)
        elif name == "ftrl":
            v = v + g - (math.sqrt(s + g * g) - math.sqrt(s)) / 0.3 * p
            s = s + g * g
            p = -soft(v, 0.4) / ((0.5 + math.sqrt(s)) / 0.3 + 0.2)
        elif name == "proximal":
            p = soft(p - lr * g, lr * 0.4) / (1 + lr * 0.2)
        elif name == "rmsprop":
            s = 0.99 * s + 0.01 * g * g
            p = p - lr * g / (math.sqrt(s) + 1e-8)
        else:
            t = i + 1
            v = 0.9 * v + 0.1 * g
            s = 0.999 * s + 0.001 * g * g
            direction = v / (1 - 0.9**t) / (math.sqrt(s / (1 - 0.999**t)) + 1e-8)
            p = p - lr * (direction + (0.1 * p if name == "adamw" else 0.0))
    return p


def run(rule, params, updates, *, in_place=False, read=None):
    """Apply updates; the writer's step is 3 times the number applied."""
    params = {k: v.copy() for k, v in params.items()} if read is dict else params.copy()
    state = rule.init(params)
    for i, update in enumerate(updates):
        if read is dict:
            out = params if in_place else {k: np.empty_like(v) for k, v in params.items()}
        else:
            # Another view of the same memory, as a runtime with flat buffers has it.
            out = params[:] if in_place else np.full_like(params, np.nan)
        rule.step(params, update, state, At(step=3 * i, applied=i), out)
        params = out
    return params, state


def sample(dtype, n=37, steps=5):
    rng = np.random.default_rng(3)
    return rng.normal(size=n).astype(dtype), list(rng.normal(size=(steps, n)).astype(dtype))


@pytest.mark.parametrize("name", RULES)
def test_rule_is_the_printed_formula(name):
    params, updates = sample(np.float64)
    found, _ = run(RULES[name], params, updates)
    expected = [reference(name, p, [u[j] for u in updates]) for j, p in enumerate(params)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("name", RULES)
def test_slices_aliasing_and_repetition_do_not_change_a_bit(name, dtype):
    rule = RULES[name]
    if dtype == np.float16 and name in ("adagrad", "rmsprop", "adam", "adamw"):
        with pytest.raises(GraphError, match="eps must not be zero in float16"):
            rule.init(np.ones(3, dtype))
        return
    params, updates = sample(dtype, n=101)
    whole, state = run(rule, params, updates)
    assert whole.dtype == dtype
    assert all(a.dtype == dtype and a.shape == whole.shape for a in state.values())
    assert np.array_equal(whole, run(rule, params, updates)[0])
    assert np.array_equal(whole, run(rule, params, updates, in_place=True)[0])
    for cuts in ([0, 50, 101], [0, 1, 2, 67, 68, 101]):
        for a, b in pairwise(cuts):
            part, part_state = run(rule, params[a:b], [u[a:b] for u in updates])
            assert np.array_equal(whole[a:b], part)
            assert all(np.array_equal(state[k][a:b], part_state[k]) for k in state)


@pytest.mark.parametrize("name", RULES)
def test_only_out_and_state_change(name):
    params, updates = sample(np.float32)
    update, out = updates[0], np.empty_like(params)
    params.flags.writeable = update.flags.writeable = False
    before = params.copy(), update.copy()
    state = RULES[name].init(params)
    arrays = dict(state)
    RULES[name].step(params, update, state, At(0, 0), out)
    assert np.array_equal(before[0], params)
    assert np.array_equal(before[1], update)
    assert state.keys() == arrays.keys()
    assert all(state[k] is arrays[k] for k in state)


@pytest.mark.parametrize("name", RULES)
def test_pickled_rule_is_the_same_rule_with_the_same_token(name):
    rule = RULES[name]
    again = pickle.loads(pickle.dumps(rule))
    assert tokenize(again, ensure_deterministic=True) == tokenize(rule, ensure_deterministic=True)
    params, updates = sample(np.float32)
    assert np.array_equal(run(rule, params, updates)[0], run(again, params, updates)[0])


def test_schedule_counts_the_writers_step_and_adam_the_applications():
    lr = fl.schedules.step(1.0, every=1, factor=0.5)
    w = np.zeros(1)
    fl.sgd(lr).step(w, np.ones(1), {}, At(step=2, applied=7), w)
    assert w[0] == -0.25
    rule, out = fl.adam(lr, b1=0.5, b2=0.5), np.empty(1)
    rule.step(np.zeros(1), np.ones(1), rule.init(out), At(step=1, applied=2), out)
    corrected = (0.5 / (1 - 0.5**3)) / math.sqrt(0.5 / (1 - 0.5**3))
    assert out[0] == pytest.approx(-0.5 * corrected)


@pytest.mark.parametrize("rule", [fl.ftrl(0.3, l1=0.4, l2=0.1), fl.proximal(1.0, l1=0.3)])
def test_rules_with_an_l1_penalty_leave_exact_zeros(rule):
    start, updates = np.zeros(400), list(np.random.default_rng(1).normal(size=(4, 400)) / 3)
    found, _ = run(rule, start, updates)
    assert 50 < np.count_nonzero(found == 0) < 350
    assert not np.signbit(found[found == 0]).any()


def test_ftrl_keeps_initial_parameters_and_is_adagrad_without_penalties():
    params, updates = sample(np.float64)
    still, _ = run(fl.ftrl(0.3, l1=0.4, l2=0.1), params, [np.zeros_like(params)])
    np.testing.assert_allclose(still, params, rtol=1e-14)
    plain, _ = run(fl.ftrl(0.3, beta=0.5), params, updates)
    np.testing.assert_allclose(plain, run(fl.adagrad(0.3, eps=0.5), params, updates)[0], rtol=1e-12)


@pytest.mark.parametrize("rule", [fl.ftrl(1e-9), fl.ftrl(0.1, beta=1e-9)])
def test_ftrl_refuses_a_rate_that_rounds_to_nothing(rule):
    with pytest.raises(GraphError, match=r"(alpha|beta) must be > 0 in float16, got 1e-09"):
        rule.init(np.ones(3, np.float16))


@pytest.mark.parametrize("rule", [fl.ftrl(0.1), fl.proximal(0.1)])
def test_penalties_need_floats(rule):
    with pytest.raises(GraphError, match=rf"fl.{rule.name}: the table must hold floats, got int"):
        rule.init(np.arange(3))


def test_add_works_on_integers_where_the_scale_is_whole():
    counts = np.array([1, 2], np.int64)
    rule = fl.add(3.0)
    rule.step(counts, np.array([1, 10]), rule.init(counts), At(0, 0), counts)
    assert counts.tolist() == [4, 32]
    with pytest.raises(GraphError, match=r"scale must be whole for a table of int64, got 0\.5"):
        fl.add(0.5).init(counts)
    with pytest.raises(GraphError, match="the table must hold floats, got int64"):
        fl.sgd(0.1).init(counts)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fl.sgd(-1), r"^fl.sgd: lr must be a finite number >= 0, got -1$"),
        (lambda: fl.sgd(0.1, momentum=1.0), "momentum must be a finite number >= 0 and < 1"),
        (lambda: fl.sgd(0.1, nesterov=True), "nesterov needs momentum > 0"),
        (lambda: fl.sgd(0.1, weight_decay=-1), "weight_decay must be"),
        (lambda: fl.add("x"), "fl.add: scale must be a finite number, got 'x'"),
        (lambda: fl.adagrad(0.1, eps=-1), "fl.adagrad: eps must be"),
        (lambda: fl.rmsprop(0.1, decay=1.5), "fl.rmsprop: decay must be"),
        (lambda: fl.adam(0.1, b2=1), "fl.adam: b2 must be"),
        (lambda: fl.ftrl(0.0), r"^fl.ftrl: alpha must be > 0, got 0"),
        (lambda: fl.ftrl(0.1, beta=0), "fl.ftrl: beta must be > 0"),
        (lambda: fl.ftrl(0.1, l1=-1), "fl.ftrl: l1 must be"),
        (lambda: fl.proximal(0.1, l2=math.inf), "fl.proximal: l2 must be"),
        (lambda: fl.adamw(0.1, weight_decay=math.nan), "fl.adamw: weight_decay must be"),
        (lambda: fl.clip_norm(0, fl.sgd(0.1)), "fl.clip_norm: limit must be > 0"),
        (lambda: fl.clip_norm(1, 0.1), "fl.clip_norm: rule must be a Rule, got 0.1"),
        (lambda: fl.by_leaf({}), "fl.by_leaf: there must be at least one pattern"),
        (lambda: fl.by_leaf({"W": 0.1}), "fl.by_leaf: 'W' must be a Rule, got 0.1"),
    ],
)
def test_hyper_parameters_are_checked_at_declaration(make, message):
    with pytest.raises(GraphError, match=message):
        make()


def leaves(seed):
    rng = np.random.default_rng(seed)
    return {
        "W": rng.normal(size=(4, 3)).astype("f4"),
        "b": rng.normal(size=3).astype("f4"),
        "s": np.array(rng.normal(), "f4"),
    }


@pytest.mark.parametrize("in_place", [False, True])
def test_clip_norm_scales_all_leaves_by_one_factor(in_place):
    params, update = leaves(0), leaves(1)
    norm = math.sqrt(sum(float((g.astype("f8") ** 2).sum()) for g in update.values()))
    assert global_norm(update) == pytest.approx(norm, rel=1e-12)
    rule = fl.clip_norm(norm / 4, fl.sgd(0.5))
    assert not rule.elementwise
    found, _ = run(rule, params, [update], in_place=in_place, read=dict)
    for path in params:
        np.testing.assert_allclose(found[path], params[path] - 0.125 * update[path], rtol=1e-5)


def test_clip_norm_leaves_a_short_update_alone_to_the_bit():
    params, updates = leaves(0), [leaves(1), leaves(2)]
    clipped, state = run(fl.clip_norm(1e3, fl.adam(0.1)), params, updates, read=dict)
    for path, leaf in params.items():
        plain, plain_state = run(fl.adam(0.1), leaf.reshape(-1), [u[path].ravel() for u in updates])
        assert np.array_equal(clipped[path].ravel(), plain)
        assert all(np.array_equal(state[path][k], plain_state[k]) for k in plain_state)


def test_clip_norm_does_not_hide_what_is_not_finite():
    params, update = leaves(0), leaves(1)
    update["b"][0] = np.nan
    found, _ = run(fl.clip_norm(0.1, fl.sgd(0.5)), params, [update], read=dict)
    assert np.isnan(found["b"][0])


def test_by_leaf_gives_each_leaf_the_first_rule_that_matches():
    rules = {"b": fl.sgd(0.0), "[Ws]": fl.sgd(0.1, momentum=0.9), "*": fl.sgd(9.0)}
    params, updates = leaves(0), [leaves(1), leaves(2)]
    found, state = run(fl.by_leaf(rules), params, updates, read=dict)
    assert np.array_equal(found["b"], params["b"])
    for path in ("W", "s"):
        expected, _ = run(rules["[Ws]"], params[path].ravel(), [u[path].ravel() for u in updates])
        assert np.array_equal(found[path].ravel(), expected)
    assert {path: list(arrays) for path, arrays in state.items()} == {
        "b": [],
        "W": ["velocity"],
        "s": ["velocity"],
    }


def test_by_leaf_gives_a_rule_over_leaves_all_of_its_pattern():
    params, update = leaves(0), leaves(1)
    rule = fl.by_leaf({"[Wb]": fl.clip_norm(0.5, fl.sgd(1.0)), "*": fl.sgd(1.0)})
    found, _ = run(rule, params, [update], read=dict)
    moved = {path: params[path] - found[path] for path in ("W", "b")}
    assert global_norm(moved) == pytest.approx(0.5, rel=1e-5)
    assert found["s"] == params["s"] - update["s"]


def test_by_leaf_names_the_leaf_that_no_pattern_matches():
    with pytest.raises(GraphError, match=r"leaf 's' must match one of the patterns, got 'W', 'b'"):
        fl.by_leaf({"W": fl.sgd(0.1), "b": fl.sgd(0.1)}).init(leaves(0))


def test_table_of_one_array_has_the_empty_path():
    rule = fl.by_leaf({"*": fl.clip_norm(1.0, fl.sgd(1.0))})
    found, _ = run(rule, {"": np.zeros(2)}, [{"": np.array([3.0, 4.0])}], read=dict)
    np.testing.assert_allclose(found[""], [-0.6, -0.8])


def towards_read(params, update, state, at, out):
    np.add(params, at.read - update, out=out)


def no_state(params):
    return {}


def test_composed_rules_hand_on_what_was_read():
    reading = Rule(no_state, towards_read, reads=True)
    rule = fl.by_leaf({"W": fl.clip_norm(1e9, reading), "*": fl.sgd(1.0)})
    assert rule.reads
    params, update, read = leaves(0), leaves(1), leaves(2)
    out = {path: np.empty_like(leaf) for path, leaf in params.items()}
    rule.step(params, update, rule.init(params), At(0, 0, read=read), out)
    np.testing.assert_allclose(out["W"], params["W"] + (read["W"] - update["W"]), rtol=1e-6)


@pytest.mark.parametrize("rule", [fl.clip_norm(1, fl.adam(0.1)), fl.by_leaf({"*": fl.sgd(0.1)})])
def test_composed_rule_is_picklable_with_a_token(rule):
    again = pickle.loads(pickle.dumps(rule))
    assert again.name == rule.name
    assert tokenize(again, ensure_deterministic=True) == tokenize(rule, ensure_deterministic=True)
