"""Calls into users' functions: whatever they raise or return becomes one error with a place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from flowml.actions import Gradient, Map
from flowml.errors import (
    DataError,
    DivergedError,
    FlowmlError,
    GraphError,
    ManyErrors,
    OperatorError,
)
from flowml.layout import layout_of
from flowml.plan import PlanOperator, PlanPort
from flowml.runtime.calls import (
    Spot,
    all_finite,
    call,
    call_gradient,
    check_finite_loss,
    check_outputs,
    contained,
    is_true,
    mismatch,
    nonfinite,
    number_of,
)
from flowml.types import Site

OPERATOR = PlanOperator(
    "grad", "map", Map(abs), "replica", (PlanPort("w", 0, True), PlanPort("v", 0, True)), 1,
    Site("train.py", 14), "replica", 0, False,
)  # fmt: skip
LABEL = "operator 'grad' (train.py:14) in replica 3, step 7"
KEPT = "Its input is kept: error.call.again() repeats the call."
FIELDS = {"operator": "grad", "replica": 3, "step": 7, "worker": "tcp://w"}


def spot() -> Spot:
    return Spot(OPERATOR, 3, 7, "tcp://w")


def raiser(error: BaseException) -> Callable[[], None]:
    def broken() -> None:
        raise error

    return broken


def test_a_call_returns_what_the_function_returns() -> None:
    assert call(spot, divmod, 7, 3) == (2, 1)


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (ZeroDivisionError("division by zero"), "raised",
         "raised ZeroDivisionError: division by zero at test_calls.py:"),
        (SystemExit(3), "exited", "an operator must return, got a call of sys.exit(3)"),
        (MemoryError("4 GiB"), "memory", "ran out of memory, got 4 GiB. Use smaller batches"),
        (KeyError("W"), "raised", "raised KeyError: 'W'"),
        (GeneratorExit(), "raised", "raised GeneratorExit"),
    ],
)  # fmt: skip
def test_what_is_raised_gets_a_place(error: BaseException, kind: str, says: str) -> None:
    with pytest.raises(OperatorError) as caught:
        call(spot, raiser(error))
    assert str(caught.value).startswith(LABEL)
    assert says in str(caught.value)
    assert caught.value.__cause__ is error
    assert {k: getattr(caught.value, k) for k in (*FIELDS, "kind")} == {**FIELDS, "kind": kind}


def test_control_c_is_no_error_of_an_operator() -> None:
    with pytest.raises(KeyboardInterrupt):
        call(spot, raiser(KeyboardInterrupt()))


def test_the_users_frames_come_innermost_first() -> None:
    def outer() -> Any:
        return inner()

    def inner() -> Any:
        return np.linalg.inv(np.zeros((2, 2)))

    with pytest.raises(OperatorError) as caught:
        call(spot, outer)
    where = str(caught.value).partition(" at ")[2].removesuffix(f". {KEPT}")
    assert [part.split(" in ")[1] for part in where.split(" <- ")] == ["inner", "outer"]
    assert "linalg" not in where


def test_frames_of_a_package_are_shown_where_there_are_no_others() -> None:
    with pytest.raises(OperatorError, match=r"at _?linalg\.py:\d+ in"):
        call(spot, np.linalg.inv, np.zeros((2, 2)))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.__setitem__(0, 1), lambda x: np.add(x, 1, out=x), lambda x: x.sort(),
        lambda x: x.fill(0), lambda x: x.__iadd__(1), lambda x: np.copyto(x, 1),
    ],
)  # fmt: skip
def test_a_change_in_place_is_told_to_copy_first(change: Callable[[Any], Any]) -> None:
    array = np.ones(3)
    array.flags.writeable = False
    with pytest.raises(OperatorError, match=r"copy first, x = x\.copy\(\)"):
        call(spot, change, array)


def test_another_value_error_is_not() -> None:
    with pytest.raises(OperatorError) as caught:
        call(spot, np.add, np.ones(2), np.ones(3))
    assert "copy first" not in str(caught.value)
    assert "could not be broadcast" in str(caught.value)


@pytest.mark.parametrize("kind", [GraphError, DataError, ManyErrors])
def test_an_error_of_flowml_keeps_its_kind_and_gets_a_place(kind: type[FlowmlError]) -> None:
    with pytest.raises(kind) as caught:
        call(spot, raiser(kind("a9a:3", "expected 'index:value'", "'12:'", "Cut it.")))
    said = f"{LABEL}: a9a:3: expected 'index:value', got '12:'. Cut it. {KEPT}"
    assert str(caught.value) == said
    assert caught.value.fields["operator"] == "grad"


def test_an_error_that_has_a_place_keeps_it() -> None:
    inner = OperatorError("operator 'other'", "raised", operator="other")
    with pytest.raises(OperatorError) as caught:
        call(spot, raiser(inner))
    assert caught.value is inner or caught.value.where == "operator 'other'"


def test_an_exit_outside_of_a_step() -> None:
    with (
        pytest.raises(OperatorError, match=r"operator 'load': an operator must return"),
        contained("load"),
    ):
        raise SystemExit(1)


def test_outputs_are_counted_and_read_only() -> None:
    (one,) = check_outputs(spot, {"W": np.ones(2)}, 1)
    assert not one["W"].flags.writeable
    assert check_outputs(spot, (1, "a"), 1) == ((1, "a"),)
    first, second = check_outputs(spot, [np.ones(2), 3], 2)
    assert not first.flags.writeable
    assert second == 3


def test_an_array_that_a_function_returns_stays_its_own() -> None:
    """A function may fill the same array in every step: only the readers may not write."""
    mine = np.zeros(3)
    (shown,) = check_outputs(spot, mine, 1)
    mine[:] = 1
    assert shown.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("result", "outputs", "says"),
    [
        (None, 1, "must return a value, got None. Is a return missing?"),
        (None, 2, "must return a value, got None"),
        ((1, 2, 3), 2, "must return a tuple of 2 values (outputs=2), got 3"),
        (np.ones(2), 2, "must return a tuple of 2 values (outputs=2), got ndarray"),
    ],
)
def test_outputs_that_are_refused(result: Any, outputs: int, says: str) -> None:
    with pytest.raises(OperatorError) as caught:
        check_outputs(spot, result, outputs)
    assert says in str(caught.value)
    assert caught.value.kind == "returned"


class Model:
    """Returns what it was told to."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def value_and_grad(self, params: Any, *inputs: Any) -> Any:
        return self.result


W, V = np.zeros(3), np.zeros(2)
ONE = [layout_of(W)]
TWO = [layout_of(W), layout_of(V)]


def gradient(result: Any, tables: int = 1, aux: bool = False) -> Any:
    action = Gradient(Model(result), tables, tables > 1, aux)
    params = [W, V][:tables]
    return call_gradient(spot, action, params, [], (ONE, TWO)[tables - 1])


def test_a_gradient_and_what_stands_beside_it() -> None:
    loss, (g,), beside = gradient((np.float32(0.5), np.ones(3)))
    assert (loss, type(loss), g.tolist(), beside) == (0.5, float, [1, 1, 1], ())
    loss, (g, h), (aux,) = gradient(((2, "beside"), (np.ones(3), np.ones(2))), 2, True)
    assert (loss, len(g), len(h), aux) == (2.0, 3, 2, "beside")
    assert not g.flags.writeable


@pytest.mark.parametrize(
    ("result", "tables", "aux", "says"),
    [
        (None, 1, False, "must return (loss, gradients), got None. Is a return missing?"),
        (3.0, 1, False, "must return (loss, gradients), got a float"),
        ((1.0, W, W), 1, False, "must return (loss, gradients), got a tuple"),
        ((1.0, W), 1, True, "with aux=True the loss must return (loss, something), got a float"),
        ((W, W), 1, False, "the loss must be one number, got shape (3,). Return the mean"),
        ((None, W), 1, False, "the loss must be one number, got None. Is a return missing?"),
        (("a", W), 1, False, "the loss must be one number, got a str"),
        ((1j, W), 1, False, "the loss must be one number, got a complex"),
        ((1.0, None), 1, False, "must return a gradient, got None. Is a return missing?"),
        ((1.0, (W,)), 2, False, "must return 2 gradients, got 1"),
        ((1.0, (W, None)), 2, False, "must return a gradient, got None"),
        ((1.0, V), 1, False, "dtypes of 'w', got shape (2,) instead of (3,)"),
        ((1.0, (W, W)), 2, False, "dtypes of 'v', got shape (3,) instead of (2,)"),
        ((1.0, W.astype("f4")), 1, False, "dtypes of 'w', got dtype float32 instead of float64"),
        ((1.0, [[1, 2], [3]]), 1, False, "dtypes of 'w', got"),
        ((1.0, np.array([{}, 1, 2])), 1, False, "dtypes of 'w', got dtype object"),
    ],
)  # fmt: skip
def test_gradients_that_are_refused(result: Any, tables: int, aux: bool, says: str) -> None:
    with pytest.raises(OperatorError) as caught:
        gradient(result, tables, aux)
    assert says in str(caught.value)
    assert caught.value.kind == "returned"


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_must_be_finite(loss: float) -> None:
    check_finite_loss(spot, 1e308)
    with pytest.raises(DivergedError, match=f"the loss must be finite, got {loss}") as caught:
        check_finite_loss(spot, loss)
    assert (caught.value.operator, caught.value.step) == ("grad", 7)
    assert "Lower the learning rate" in str(caught.value)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64", "int32", "bool"])
def test_finite_arrays_are_told_from_others(dtype: str) -> None:
    array = np.ones(100, dtype)
    assert all_finite([array, array[:0]])
    if array.dtype.kind not in "fc":
        return
    for bad in (np.nan, np.inf, -np.inf):
        for place in (0, 57, 99):
            array[:] = 1
            array[place] = bad
            assert not all_finite([np.ones(3), array])


def test_squares_that_overflow_are_still_finite() -> None:
    assert all_finite([np.full(10, 3e38, "float32")])


def test_the_first_number_that_is_not_finite_is_named() -> None:
    layout = layout_of({"W": np.zeros((2, 3)), "b": np.zeros(2, "f4"), "c": np.float32(0)})
    flat = [np.arange(6.0), np.zeros(3, "f4")]
    flat[1][[0, 2]] = np.nan, np.inf
    assert nonfinite(layout, flat) == "2 that are not, the first at b[0] = nan"
    flat[0][4] = -np.inf
    assert nonfinite(layout, flat) == "3 that are not, the first at W[1, 1] = -inf"
    assert nonfinite(layout_of(np.float64(0)), [np.array([np.nan])]).endswith("first at  = nan")


@pytest.mark.parametrize(
    ("value", "found"), [(3, 3.0), (np.float32(0.5), 0.5), (np.array(2), 2.0), (True, 1.0)]
)
def test_numbers(value: Any, found: float) -> None:
    assert number_of(spot, value, "a number is needed") == found


@pytest.mark.parametrize("value", [np.ones(1), [1.0], "a", None, 1j, object()])
def test_what_is_no_number(value: Any) -> None:
    with pytest.raises(OperatorError, match="a number is needed, got"):
        number_of(spot, value, "a number is needed", "Return one.")


def test_yes_or_no() -> None:
    assert is_true(spot, lambda x: np.bool_(x > 1), 2)
    assert not is_true(spot, lambda x: 0, 2)
    with pytest.raises(OperatorError, match="truth value of an array"):
        is_true(spot, lambda x: x > 1, np.ones(3))


def test_a_mismatch_of_what_is_no_array_is_said_and_not_raised() -> None:
    layout = layout_of(np.zeros(2))
    assert mismatch(layout, np.ones(2)) is None
    assert mismatch(layout, [[1], [2, 3]]) is not None
    assert "dtype object" in str(mismatch(layout, np.array([None, None])))
