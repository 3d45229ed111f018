"""The delay-compensated rule against its formula, its bits, and where it is refused."""

import math
import pickle
from itertools import pairwise

import numpy as np
import pytest
from dask.base import tokenize

import flowml as fl
from flowml.rules import At

LR = fl.schedules.step(0.1, every=2, factor=0.5)
RULES = {
    "constant": (fl.delay_compensated(LR, variance=0.7), 0.7, None),
    "adaptive": (fl.delay_compensated(LR, variance=2.0, decay=0.9, eps=1e-6), 2.0, 0.9),
    "last gradient": (fl.delay_compensated(LR, variance=2.0, decay=0.0, eps=1e-6), 2.0, 0.0),
}
ALL = pytest.mark.parametrize("name", RULES)


def reference(variance, decay, p, gradients, reads):
    """Return one number after several updates, by the formula as it is printed."""
    s = 0.0
    for i, (g, read) in enumerate(zip(gradients, reads, strict=True)):
        factor = variance
        if decay is not None:
            s = decay * s + (1 - decay) * g * g
            factor = variance / math.sqrt(s + 1e-6)
        p = p - LR(3 * i) * (g + factor * g * g * (p - read))
    return p


def run(rule, params, updates, reads, *, in_place=False):
    """Apply updates; the writer's step is 3 times the number applied."""
    params = params.copy()
    state = rule.init(params)
    for i, (update, read) in enumerate(zip(updates, reads, strict=True)):
        out = params[:] if in_place else np.full_like(params, np.nan)
        rule.step(params, update, state, At(step=3 * i, applied=i, read=read), out)
        params = out
    return params, state


def sample(dtype, n=37, steps=5):
    rng = np.random.default_rng(3)
    return [rng.normal(size=shape).astype(dtype) for shape in (n, (steps, n), (steps, n))]


@ALL
def test_it_is_the_printed_formula(name):
    rule, variance, decay = RULES[name]
    params, updates, reads = sample(np.float64)
    found, state = run(rule, params, updates, reads)
    columns = zip(params, updates.T, reads.T, strict=True)
    expected = [reference(variance, decay, *column) for column in columns]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert list(state) == ([] if decay is None else ["squares"])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@ALL
def test_slices_aliasing_and_repetition_do_not_change_a_bit(name, dtype):
    rule, *_ = RULES[name]
    params, updates, reads = sample(dtype, n=101)
    whole, state = run(rule, params, updates, reads)
    assert whole.dtype == dtype
    assert np.isfinite(whole).all()
    assert np.array_equal(whole, run(rule, params, updates, reads)[0])
    assert np.array_equal(whole, run(rule, params, updates, reads, in_place=True)[0])
    for a, b in pairwise([0, 1, 2, 67, 68, 101]):
        part, part_state = run(rule, params[a:b], updates[:, a:b], reads[:, a:b])
        assert np.array_equal(whole[a:b], part)
        assert all(np.array_equal(state[k][a:b], part_state[k]) for k in state)


@ALL
def test_only_out_and_state_change(name):
    rule, *_ = RULES[name]
    params, (update, *_), (read, *_) = sample(np.float32)
    for given in (params, update, read):
        given.flags.writeable = False
    before = params.copy(), update.copy(), read.copy()
    rule.step(params, update, rule.init(params), At(0, 0, read=read), np.empty_like(params))
    assert all(np.array_equal(a, b) for a, b in zip(before, (params, update, read), strict=True))


@ALL
def test_what_was_read_now_makes_it_sgd(name):
    rule, *_ = RULES[name]
    params, (update, *_), _ = sample(np.float64)
    found, plain = np.empty_like(params), np.empty_like(params)
    rule.step(params, update, rule.init(params), At(0, 0, read=params), found)
    fl.sgd(LR).step(params, update, {}, At(0, 0), plain)
    assert np.array_equal(found, plain)


def test_a_gradient_is_brought_to_where_the_parameters_are():
    """Of a sum of squared errors of one the correction is exact: its Hessian is g * g."""
    rng = np.random.default_rng(0)
    slopes, read, now = rng.normal(size=(3, 200))
    errors = np.sign(rng.normal(size=200))  # slopes * read - target
    there, here = slopes * errors, slopes * (errors + slopes * (now - read))
    rule, out = fl.delay_compensated(1.0, variance=1.0), np.empty(200)
    rule.step(now, there, rule.init(now), At(0, 0, read=read), out)
    np.testing.assert_allclose(now - out, here, rtol=1e-9, atol=1e-12)


@ALL
def test_a_pickled_rule_is_the_same_rule_with_the_same_token(name):
    rule, *_ = RULES[name]
    again = pickle.loads(pickle.dumps(rule))
    assert again.reads
    assert tokenize(again, ensure_deterministic=True) == tokenize(rule, ensure_deterministic=True)
    assert np.array_equal(run(rule, *sample(np.float32))[0], run(again, *sample(np.float32))[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fl.delay_compensated(-1), "^fl.delay_compensated: lr must be a finite number"),
        (lambda: fl.delay_compensated(0.1, variance=-1), "variance must be a finite number >= 0"),
        (lambda: fl.delay_compensated(0.1, decay=1.0), "decay must be a finite number >= 0 and <"),
        (lambda: fl.delay_compensated(0.1, eps=math.nan), "eps must be a finite number >= 0"),
    ],
)
def test_hyper_parameters_are_checked_at_declaration(make, message):
    with pytest.raises(fl.GraphError, match=message):
        make()


@pytest.mark.parametrize(
    ("rule", "table", "message"),
    [
        (fl.delay_compensated(0.1), np.ones(2, int), "the table must hold floats, got int64"),
        (fl.delay_compensated(0.1, decay=0.9, eps=1e-9), np.ones(2, "f2"), "eps must not be zero"),
    ],
)
def test_a_table_in_which_it_cannot_work_is_refused(rule, table, message):
    with pytest.raises(fl.GraphError, match=message):
        rule.init(table)


def test_a_mean_is_of_several_who_have_read_and_is_refused():
    model = fl.models.softmax(4, 2)
    w, rows = fl.table("w", model.init(seed=0)), (np.zeros((8, 4), "f4"), np.zeros(8, int))
    mean = fl.aggregate("mean", fl.gradient(model, w.async_(), fl.load(rows, batch_size=2)))
    graph = fl.Graph(fl.update(w, mean, fl.delay_compensated(0.1)))
    with pytest.raises(fl.PlanError, match="a rule that compares with what the writer had read is"):
        graph.run(steps=1, replicas=2, executor="serial")
