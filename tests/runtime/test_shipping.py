"""Functions on their way to workers: by value where workers cannot import them, or refused."""

from __future__ import annotations

import functools
import io
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import numpy as np
import pytest

import flowml as fl
from flowml.compiler.stages import compile_graph
from flowml.errors import ManyErrors
from flowml.plan import Plan
from flowml.runtime.shipping import check_ships, ship, ship_plan

X = np.ones((8, 3))
LOCK = threading.Lock()


def mapped(function: Any, init: Any = None) -> Plan:
    w = fl.table("w", np.zeros(3) if init is None else init)
    value = fl.map(function, fl.load(X, batch_size=2), name="mine")
    return compile_graph(fl.Graph(fl.update(w, value, fl.add())).logical, 2)


def refusal(plan: Plan) -> str:
    with pytest.raises(fl.PlanError) as caught:
        check_ships(plan)
    return str(caught.value)


def closing_over(thing: Any) -> Callable[[Any], Any]:
    return lambda x: (x.sum(0), thing)[0]


def uses_a_global(x: Any) -> Any:
    return (x.sum(0), LOCK)[0]


class Sums:
    """A function with a state that cannot travel."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, x: Any) -> Any:
        return x.sum(0)

    def method(self, x: Any) -> Any:
        return x.sum(0)


def bound(x: Any, thing: Any) -> Any:
    return x.sum(0)


def inner_and_outer() -> Callable[[Any], Any]:
    inner = closing_over(threading.Event())
    return lambda x: inner(x)


def recursive() -> Callable[[Any], Any]:
    guard = threading.Lock()

    def down(x: Any, depth: int = 1) -> Any:
        return (down(x, depth - 1) if depth else x.sum(0), guard)[0]

    return down


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: closing_over(threading.Lock()), "variable 'thing' (lock)"),
        (lambda: closing_over(n for n in range(3)), "variable 'thing' (generator)"),
        (lambda: closing_over(threading.local()), "variable 'thing' (_local)"),
        (lambda: uses_a_global, "variable 'LOCK' (lock)"),
        (Sums, "variable 'lock' (lock)"),
        (lambda: Sums().method, "variable 'lock' (lock)"),
        (lambda: functools.partial(bound, thing=threading.Lock()), "variable 'thing' (lock)"),
        (
            lambda: functools.partial(lambda t, x: x.sum(0), threading.Lock()),
            "variable 'argument 1' (lock)",
        ),
        (inner_and_outer, "variable 'thing' (Event)"),
        (recursive, "variable 'guard' (lock)"),
    ],
)
def test_the_variable_that_cannot_travel_is_named(make: Callable[[], Any], named: str) -> None:
    text = refusal(mapped(make()))
    assert text.startswith("operator 'mine' (test_shipping.py:")
    assert named in text
    assert text.endswith("Open or create it inside the function.")


def test_open_things_are_named() -> None:
    with open(os.devnull, "w") as file, socket.socket() as wire:
        assert "variable 'thing' (open file '/dev/null')" in refusal(mapped(closing_over(file)))
        assert "variable 'thing' (socket)" in refusal(mapped(closing_over(wire)))


def test_all_operators_and_tables_that_cannot_travel_come_together() -> None:
    w = fl.table("w", closing_over(LOCK))
    x = fl.load(X, batch_size=2)
    one = fl.map(closing_over(LOCK), x, name="one")
    loss = fl.gradient(lambda w, x, o: (np.sum(w), LOCK)[0], w, x, one, name="two")
    test = fl.evaluate(lambda p, b: (0.0, LOCK)[0], w, X, name="three")
    end = fl.until(lambda w: (False, LOCK)[0], w, name="four")
    rule = fl.Rule(lambda p: (), lambda p, u, s, at, out: (None, LOCK)[0])
    graph = fl.Graph(fl.update(w, loss, rule, name="five"), test, end)
    with pytest.raises(ManyErrors) as caught:
        check_ships(compile_graph(graph.logical, 2))
    errors = caught.value.errors
    assert [e.fields.get("operator") for e in errors] == [
        "one",
        "two",
        "three",
        "four",
        "five",
        None,
    ]
    assert all("variable '" in str(e) and "(lock)" in str(e) for e in errors)
    assert str(errors[-1]).startswith("table 'w' (test_shipping.py:")


def test_what_can_travel_is_let_through() -> None:
    scale = np.arange(3.0)
    for function in (closing_over(scale), np.sum, functools.partial(np.sum, axis=0)):
        check_ships(mapped(function))
    check_ships(mapped(lambda x: x.sum(0), lambda here: np.zeros(3)))


def test_a_file_opened_for_reading_travels_as_what_it_holds() -> None:
    """That is what cloudpickle does with it."""
    check_ships(mapped(closing_over(io.StringIO("text"))))


NEIGHBOUR = """
import threading
{line}
SCALE = 2.0

def double(x):
    return SCALE * x.sum(0)

class Twice:
    def __call__(self, x):
        return double(x)
"""


def neighbour(folder: Path, name: str, line: str = "") -> ModuleType:
    """Import a file that stands beside the user's script, as a script does."""
    (folder / f"{name}.py").write_text(NEIGHBOUR.format(line=line))
    sys.path.insert(0, str(folder))
    try:
        return __import__(name)
    finally:
        sys.path.remove(str(folder))


@pytest.mark.parametrize("attribute", ["double", "Twice"])
def test_functions_of_the_users_other_files_go_by_value(tmp_path: Path, attribute: str) -> None:
    module = neighbour(tmp_path, f"beside_{attribute.lower()}")
    thing = getattr(module, attribute)
    function = thing if attribute == "double" else thing()
    assert made_elsewhere(mapped(function), tmp_path) == "[4. 4. 4.]"


def made_elsewhere(plan: Plan, tmp_path: Path) -> str:
    """Return what the operator makes of ones in a process that finds none of the user's files."""
    check_ships(plan)
    (tmp_path / "plan").write_bytes(ship_plan(plan, plan))
    code = (
        "import sys, cloudpickle, numpy as np\n"
        "plan = cloudpickle.load(open(sys.argv[1], 'rb'))\n"
        "print(plan.operator('mine').action.function(np.ones((2, 3))))"
    )
    (tmp_path / "away").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "plan")],
        cwd=tmp_path / "away",
        timeout=60,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_a_ufunc_is_looked_for_where_it_is_installed(tmp_path: Path) -> None:
    """pickle takes the first module that has it, which may be the user's that has imported it."""
    line = "from scipy.special import expit\ndef odds(x):\n    return expit(x.sum(0) - 2)"
    module = neighbour(tmp_path, "beside_ufunc", line)
    for name, other in list(sys.modules.items()):
        if other is not module and vars(other).get("expit") is module.expit:
            sys.modules[name] = sys.modules.pop(name)  # now later than the user's
    assert made_elsewhere(mapped(module.odds), tmp_path) == "[0.5 0.5 0.5]"


def test_a_lock_of_a_users_other_file_is_found_before_it_is_sent(tmp_path: Path) -> None:
    """By name the function could be pickled; it goes by value, and its globals with it."""
    module = neighbour(tmp_path, "beside_lock", "SCALE = LOCK = threading.Lock()")
    module.SCALE = module.LOCK  # type: ignore[attr-defined]
    assert "variable 'SCALE' (lock)" in refusal(mapped(module.double))


def test_nothing_stays_registered(tmp_path: Path) -> None:
    module = neighbour(tmp_path, "beside_again")
    before = set(cloudpickle.list_registry_pickle_by_value())
    ship(module.double, module.double)
    assert set(cloudpickle.list_registry_pickle_by_value()) == before


def test_installed_packages_go_by_name() -> None:
    assert len(ship(np.linalg.norm, np.linalg.norm)) < 200
    assert b"flowml.models" in ship(fl.models.softmax(3, 2), fl.models.softmax(3, 2))
