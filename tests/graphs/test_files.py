"""What holds for every file in graphs/: a citation, one ``build``, and a graph without memory."""

import importlib
import inspect
import re
from pathlib import Path

import numpy as np
import optree
import pytest

import flowml as fl
from tests.conformance.catalogue import KEYED
from tests.graphs.reference import CLASSES, FEATURES, examples, softmax_loss

NAMES = sorted(p.stem for p in (Path(__file__).parents[2] / "graphs").glob("[!_]*.py"))
X, Y = examples()
MODEL = fl.models.softmax(FEATURES, CLASSES, dtype="float64")
SHORT = {
    "period": 2, "batch_size": 10, "clusters": 3, "tol": 0.0, "n_fetch": 2, "n_push": 2, "warm": 3,
}  # fmt: skip
"""Options that make a run of a few steps do something."""


def module(name):
    return importlib.import_module(f"graphs.{name}")


def parameters(name):
    return inspect.signature(module(name).build).parameters


def made(name, **options):
    wanted = parameters(name)
    given = {key: value for key, value in (SHORT | options).items() if key in wanted}
    if "model" in wanted:
        return module(name).build(MODEL, (X, Y), **given)
    source = KEYED[name]() if name in KEYED else (X, Y.astype(float))
    return module(name).build(source, **given)


def model_of(run):
    (name,) = run.tables.keys() & {"w", "anchor", "center"}
    return run.tables[name]


TRAINS = [name for name in NAMES if "model" in parameters(name)]
SHUFFLED = [name for name in NAMES if "batch_size" in parameters(name)]


@pytest.mark.parametrize("name", NAMES)
def test_it_cites_its_source(name):
    text = module(name).__doc__
    assert text is not None
    assert re.search(r"\b(19[5-9]\d|20[0-4]\d)\b", text)


@pytest.mark.parametrize("name", NAMES)
def test_build_takes_a_source_and_options_with_defaults(name):
    wanted = dict(parameters(name))
    first = [wanted.pop(n).name for n in ("model", "source") if n in wanted]
    assert list(parameters(name))[: len(first)] == first
    assert "source" in first
    assert wanted["test"].default is None
    for option in wanted.values():
        assert option.kind is inspect.Parameter.KEYWORD_ONLY
        assert option.default is None or isinstance(option.default, int | float | str)


@pytest.mark.parametrize("name", NAMES)
def test_it_has_one_public_function(name):
    own = [
        key
        for key, value in vars(module(name)).items()
        if inspect.isfunction(value)
        and value.__module__ == f"graphs.{name}"
        and not key.startswith("_")
    ]
    assert own == ["build"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("replicas", [1, 3])
def test_two_runs_of_one_graph_are_equal(name, replicas):
    graph = made(name)
    first, second = (
        optree.tree_leaves(graph.run(steps=7, replicas=replicas, executor="serial").tables)
        for _ in range(2)
    )
    assert graph.name == name
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", SHUFFLED)
@pytest.mark.parametrize("replicas", [1, 3])
def test_another_seed_of_the_run_gives_other_batches(name, replicas):
    graph = made(name)
    zero, one = (
        optree.tree_leaves(graph.run(steps=3, replicas=replicas, executor="serial", seed=s).tables)
        for s in (0, 1)
    )
    assert not all(np.array_equal(a, b) for a, b in zip(zero, one, strict=True))


@pytest.mark.parametrize("name", TRAINS)
def test_the_test_source_is_evaluated_after_each_epoch(name):
    run = made(name, test=(X[:20], Y[:20])).run(epochs=2, replicas=2, executor="serial")
    each = run.steps // 2
    assert [(m["name"], m["step"]) for m in run.metrics] == [("test", each), ("test", 2 * each)]
    w = model_of(run)
    hits = (X[:20] @ w["W"] + w["b"]).argmax(1) == Y[:20]
    assert run.metrics[-1]["score"] == pytest.approx(hits.mean())
    assert run.metrics[-1]["loss"] == pytest.approx(softmax_loss(w, X[:20], Y[:20]))


@pytest.mark.parametrize("name", TRAINS)
@pytest.mark.parametrize("replicas", [1, 2])
def test_it_trains(name, replicas):
    rate = {"lr": 0.05 if name == "diloco" else 0.3}
    run = made(name, **rate).run(steps=60, replicas=replicas, executor="serial")
    w = model_of(run)
    assert softmax_loss(w, X, Y) < 0.8 * np.log(CLASSES)
