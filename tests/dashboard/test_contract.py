"""The JSON is what its contract says: every field, of its type, and no other."""

import json
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

import pytest

from flowml.dashboard.contract import VERSION, State
from flowml.dashboard.runs import Runs
from flowml.events import Evaluated, ReplicaDone, RunStarted, WindowDone, WorkerLost
from tests.dashboard.stories import WORKERS, opened, report, ssp_graph, tell


def misfits(value: Any, kind: Any, at: str = "$") -> list[str]:
    """Return where JSON is not of a type that the contract is written in."""
    if is_typeddict(kind):
        hints = get_type_hints(kind)
        if not isinstance(value, dict) or value.keys() != hints.keys():
            return [f"{at}: {value} has not the fields {sorted(hints)}"]
        return [
            m for name, hint in hints.items() for m in misfits(value[name], hint, f"{at}.{name}")
        ]
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return [] if value in inner else [f"{at}: {value!r} is none of {inner}"]
    if origin is list:
        return [m for n, item in enumerate(value) for m in misfits(item, inner[0], f"{at}[{n}]")]
    if origin is tuple:
        pairs = enumerate(zip(value, inner, strict=True))
        return [m for n, (item, hint) in pairs for m in misfits(item, hint, f"{at}[{n}]")]
    if origin is dict:
        return [m for key, item in value.items() for m in misfits(item, inner[1], f"{at}.{key}")]
    if origin in (Union, UnionType):
        found = [misfits(value, hint, at) for hint in inner]
        return [] if [] in found else found[0]
    wanted = (int, float) if kind is float else kind
    fits = isinstance(value, wanted) and not (isinstance(value, bool) and kind is not bool)
    return [] if fits or (kind is NoneType and value is None) else [f"{at}: {value!r} is no {kind}"]


def whole_state() -> State:
    """Return a state in which every list has something in it."""
    run = opened(ssp_graph())
    tell(run, RunStarted("f00d", "ssp", "resident", 2, 1000), 0.5)
    for rank in range(2):
        tell(run, ReplicaDone(rank, WORKERS[rank], 49, 50, 0.5, 1.0, 0.4, {0: 40, 2: 10}), 2.0)
    tell(run, WindowDone(49, 1.0, 50, 0.7), 2.0)
    tell(run, Evaluated(50, "test", {"loss": 0.5}), 2.1)
    tell(run, WorkerLost("tcp://b:2", 50), 2.2)
    for at in (3.0, 3.5):
        for worker in range(2):
            spent = {
                ("compute", "gradient"): at,
                ("wait", "w -> gradient"): at,
                ("transfer", ""): at,
            }
            lags = [("w -> gradient", worker, 1, 3)]
            sent = [("gradient -> update_w", 100, 50)]
            run.report(report(worker, 60, spent, lags=lags, sent=sent), 100.0 + at)
    runs = Runs()
    runs.add(run)
    return runs.state(None, 104.0, 1e9)


def test_the_state_keeps_the_contract():
    state = json.loads(json.dumps(whole_state(), allow_nan=False))
    assert misfits(state, State) == []
    run = state["run"]
    for name in ("replicas", "losses", "evaluations", "marks", "operators", "edges", "elsewhere"):
        assert run[name], name
    assert state["version"] == VERSION == 1


def test_a_scheduler_without_runs_keeps_it_too():
    assert misfits(json.loads(json.dumps(Runs().state(None, 1.0, 2.0))), State) == []


def test_a_run_of_which_nothing_is_known_keeps_it_too():
    runs = Runs()
    runs.add(opened(ssp_graph()))
    assert misfits(json.loads(json.dumps(runs.state(None, 101.0, 2.0))), State) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s["run"].pop("loss"), "$.run"),
        (lambda s: s["run"].update(more=1), "$.run"),
        (lambda s: s["run"].update(step=1.5), "$.run.step"),
        (lambda s: s["run"]["edges"][0].update(loose=0), "$.run.edges[0].loose"),
        (lambda s: s["run"].update(status="well"), "$.run.status"),
    ],
)
def test_the_check_itself(change, words):
    state = json.loads(json.dumps(whole_state()))
    change(state)
    assert any(words in misfit for misfit in misfits(state, State))
