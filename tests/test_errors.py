"""The tree of errors: what each is, what it says and what survives a pickle."""

import inspect
import pickle

import pytest

from flowml import errors
from flowml.errors import FlowmlError, GraphError, ManyErrors, raise_all

TREE = {
    errors.GraphError: ValueError,
    errors.DataError: ValueError,
    errors.PlanError: ValueError,
    errors.OperatorError: RuntimeError,
    errors.DivergedError: ArithmeticError,
    errors.StalledError: TimeoutError,
    errors.WorkerLostError: ConnectionError,
    errors.StaleRunError: RuntimeError,
    errors.CheckpointError: OSError,
    errors.ManyErrors: GraphError,
}


def test_the_module_holds_this_tree_and_no_other_class():
    declared = {c for _, c in inspect.getmembers(errors, inspect.isclass)}
    own = {c for c in declared if c.__module__ == errors.__name__}
    assert own == {FlowmlError, *TREE}


@pytest.mark.parametrize(("kind", "builtin"), TREE.items(), ids=lambda c: c.__name__)
def test_an_error_is_what_a_caller_would_guess_and_says_four_things(kind, builtin):
    error = kind("table 'w'", "shape must be (3,)", "(4,)", "Drop a column.", table="w", step=7)
    assert isinstance(error, FlowmlError)
    assert isinstance(error, builtin)
    assert str(error) == "table 'w': shape must be (3,), got (4,). Drop a column."
    assert (error.table, error.step) == ("w", 7)


@pytest.mark.parametrize("kind", TREE, ids=lambda c: c.__name__)
def test_an_error_comes_back_whole_from_another_process(kind):
    error = kind("edge w -> g", "it must hold", "no", "Do so.", replica=3)
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert str(back) == str(error)
    assert back.replica == 3
    assert back.fields == {"replica": 3}


def test_a_message_leaves_out_what_is_not_known():
    assert str(FlowmlError("graph 'g'", "a sink is needed")) == "graph 'g': a sink is needed"
    assert str(FlowmlError("graph 'g'", "a sink is needed", fix="Add one.")).endswith(
        "needed. Add one."
    )


def test_several_mistakes_are_raised_together_and_one_alone_as_itself():
    first, second = GraphError("a", "one"), GraphError("b", "two")
    assert raise_all("graph 'g'", []) is None
    with pytest.raises(GraphError) as alone:
        raise_all("graph 'g'", [first])
    assert alone.value is first
    with pytest.raises(ManyErrors) as both:
        raise_all("graph 'g'", [first, second])
    assert both.value.errors == (first, second)
    assert str(both.value).splitlines() == ["graph 'g': 2 mistakes", "  1. a: one", "  2. b: two"]
