"""Edges: what may be promised, and what is refused at the call."""

import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowml.codecs import top_k
from flowml.edges import Edge, Period, Promise, Quorum, When
from flowml.errors import GraphError

DESCRIBED = [
    (Edge(), ""),
    (Edge().sync(), "sync"),
    (Edge().stale(4), "stale(4)"),
    (Edge().stale(0), "sync"),
    (Edge().async_(), "async"),
    (Edge().sync(until=500).stale(4), "sync(until=500), stale(4)"),
    (
        Edge().sync(until=10).stale(2, until=20).async_(),
        "sync(until=10), stale(2, until=20), async",
    ),
    (Edge().every(8), "every(8)"),
    (Edge().every(8, keep="mean"), "every(8, mean)"),
    (Edge().quorum(3), "quorum(3, carry)"),
    (Edge().quorum(3, late="drop"), "quorum(3, drop)"),
    (Edge().when(0.5), "when(0.5)"),
    (Edge().compress(top_k(0.01)), "top_k(0.01)"),
    (Edge().at("ids"), "at(ids)"),
    (Edge().async_().every(4, keep="sum").at("ids"), "async, every(4, sum), at(ids)"),
]

# (what is called, what the message must say was required, what it must say was found)
REFUSED = [
    (lambda e: e.stale(-1), "an integer >= 0", "got -1"),
    (lambda e: e.stale(1.5), "an integer >= 0", "got 1.5"),
    (lambda e: e.stale("3"), "an integer >= 0", "got '3'"),
    (lambda e: e.stale(True), "an integer >= 0", "got True"),
    (lambda e: e.stale(None), "an integer >= 0", "got None"),
    (lambda e: e.sync().stale(2), "one promise", "got sync and then stale(2)"),
    (lambda e: e.stale(2).sync(), "one promise", "got stale(2) and then sync"),
    (lambda e: e.async_().sync(until=5), "one promise", "got async and then sync(until=5)"),
    (lambda e: e.sync(until=0), "an integer >= 1", "got 0"),
    (lambda e: e.sync(until=5).stale(1, until=5), "an integer >= 6", "got 5"),
    (lambda e: e.every(0), "an integer >= 1", "got 0"),
    (lambda e: e.every(2.0), "an integer >= 1", "got 2.0"),
    (lambda e: e.every(2).every(3), "one period", "after every(2)"),
    (lambda e: e.every(2, keep="maen"), "'sum', 'mean', 'last'", "Did you mean 'mean'?"),
    (lambda e: e.every(2, keep=3), "'sum', 'mean', 'last'", "got 3"),
    (lambda e: e.quorum(0), "an integer >= 1", "got 0"),
    (lambda e: e.quorum(1).quorum(2), "one quorum", "after quorum(1, carry)"),
    (lambda e: e.quorum(1, late="dorp"), "'carry', 'drop'", "Did you mean 'drop'?"),
    (lambda e: e.when(-0.1), "a finite number", "got -0.1"),
    (lambda e: e.when(float("nan")), "a finite number", "got nan"),
    (lambda e: e.when("0.1"), "a finite number", "got '0.1'"),
    (lambda e: e.when(0.1).when(0.2), "one threshold", "after when(0.1)"),
    (lambda e: e.compress(None), "a codec", "got None"),
    (lambda e: e.compress("top_k"), "a codec", "got 'top_k'"),
    (lambda e: e.compress(top_k), "a codec", "got top_k"),
    (lambda e: e.compress(top_k(0.1)).compress(top_k(0.1)), "one codec", "after top_k(0.1)"),
    (lambda e: e.at(None), "row ids", "got None"),
    (lambda e: e.at("ids").at("ids"), "one row ids", "after ids"),
]


@pytest.mark.parametrize(("edge", "text"), DESCRIBED, ids=[text for _, text in DESCRIBED])
def test_an_edge_describes_what_was_said(edge, text):
    assert edge.describe() == text
    assert pickle.loads(pickle.dumps(edge)) == edge


@pytest.mark.parametrize(
    ("call", "required", "found"), REFUSED, ids=[f"{r}-{f}" for _, r, f in REFUSED]
)
def test_a_mistake_is_refused_with_its_place_and_a_remedy(call, required, found):
    with pytest.raises(GraphError) as caught:
        call(Edge())
    message = str(caught.value)
    assert re.match(r"test_edges\.py:\d+: ", message)
    assert required in message
    assert found in message
    assert caught.value.fix.endswith((".", "?"))
    assert caught.value.site.line > 0


def test_methods_return_a_new_edge_and_leave_the_old_one():
    unmarked = Edge()
    marked = unmarked.stale(2).every(3).quorum(4).when(0.5)
    assert unmarked == Edge()
    assert marked.promise == Promise("stale", 2)
    assert marked.period == Period(3, None)
    assert marked.members == Quorum(4, "carry")
    assert marked.filter == When(0.5)


@given(st.permutations(["stale", "every", "quorum", "when"]))
def test_the_order_of_the_calls_does_not_matter(order):
    arguments = {"stale": 2, "every": 3, "quorum": 4, "when": 0.5}
    edge = Edge()
    for method in order:
        edge = getattr(edge, method)(arguments[method])
    assert edge == Edge().stale(2).every(3).quorum(4).when(0.5)


@given(st.lists(st.integers(1, 50), unique=True, max_size=5), st.integers(0, 60))
def test_the_promise_of_a_step_is_the_first_whose_end_is_later(ends, step):
    edge = Edge()
    for end in sorted(ends):
        edge = edge.stale(end, until=end)
    edge = edge.async_()
    later = [end for end in sorted(ends) if step < end]
    expected = Promise("stale", later[0]) if later else Promise("async")
    assert edge.promise_at(step) == expected


def test_promises_that_mean_the_same_are_equal():
    assert Promise("stale", 0) == Promise("sync") == Promise("sync", 0)
    assert Promise("async").staleness is None
    assert Promise("sync").staleness == 0
    with pytest.raises(GraphError, match="Did you mean 'async'"):
        Promise("asyn")
    with pytest.raises(GraphError, match="got None"):
        Promise("stale")
