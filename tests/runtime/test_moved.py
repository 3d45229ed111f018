"""Counting what moves: windows of any length are the sum of their steps."""

import pytest

from flowml.cluster_run import probe_here
from flowml.compiler.stages import compile_graph
from flowml.runtime import program
from flowml.runtime.feeding import OneBatch, first_batch, loads
from flowml.runtime.moved import Moved
from flowml.runtime.outcome import Order
from flowml.runtime.program import Programs
from flowml.runtime.threads import thread_ranks
from tests.conformance.catalogue import CATALOGUE

ORDER = Order(1, None)


def programs_of(name, replicas=2):
    """Return the programs of rank 0."""
    plan = compile_graph(CATALOGUE[name]().logical, replicas, 1)
    streams = {o.name: OneBatch(*first_batch(o, replicas, 0)) for o in loads(plan)}
    ranks = thread_ranks(plan, probe_here(plan, ORDER), ORDER, [streams] * replicas)
    return Programs(ranks[0])


@pytest.mark.parametrize("name", ["momentum", "slow_pull", "median_kept", "local_sgd"])
@pytest.mark.parametrize(("start", "stop"), [(0, 0), (0, 1), (0, 50), (3, 5), (13, 14), (17, 75)])
def test_a_window_moves_what_its_steps_move(name, start, stop):
    programs, by_steps = programs_of(name), Moved()
    for step in range(start, stop):
        by_steps.add(programs.of(step).moved)
    assert programs.moved(start, stop) == by_steps


def test_where_programs_are_not_tabulated_steps_are_counted_as_they_come(monkeypatch):
    programs = programs_of("slow_pull")
    expected = programs.moved(0, 20)
    monkeypatch.setattr(program, "LONGEST_CYCLE", 1)
    programs = programs_of("slow_pull")
    for step in range(20):
        programs.of(step)
    assert programs.moved(0, 20) == expected
    assert programs.moved(20, 20) == Moved()


def test_counts_add_up_by_edge():
    one, other = Moved(), Moved(messages=1, message_bytes=10)
    one.written["a -> b"] += 3
    other.written["a -> b"] += 4
    other.read["c -> d"] += 5
    one.add(other, times=2)
    assert one.written == {"a -> b": 11}
    assert one.read == {"c -> d": 10}
    assert (one.messages, one.message_bytes) == (2, 20)
