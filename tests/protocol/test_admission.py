"""Admission: all or nothing, strictly first come first served."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flowml.errors import PlanError
from flowml.protocol.admission import Admission, Granted, Holder, Queued

A, B, C = "a", "b", "c"


def test_concurrent_while_slots_last_then_queued_with_names() -> None:
    admission = Admission({A: 2, B: 1})
    assert admission.request("r1", "ann", {A: 1, B: 1}, "ssgd") == Granted("r1")
    assert admission.request("r2", "bob", {A: 1}, "easgd") == Granted("r2")
    third = admission.request("r3", "cyd", {A: 1}, "hogwild")
    held = (Holder("r1", "ann", "ssgd", (A,)), Holder("r2", "bob", "easgd", (A,)))
    assert third == Queued("r3", 0, held)
    assert "'ssgd' (client ann) on a, 'easgd' (client bob) on a; 0 ahead" in str(third)
    assert admission.release("r2") == ("r3",)
    assert admission.standing("r3") == Granted("r3")


def test_a_later_request_does_not_overtake_one_it_conflicts_with() -> None:
    admission = Admission({A: 1, B: 1, C: 1})
    admission.request("r1", "ann", {A: 1}, "one")
    assert isinstance(admission.request("r2", "ann", {A: 1, B: 1}, "two"), Queued)
    third = admission.request("r3", "ann", {B: 1}, "three")  # b is free, and spoken for
    assert third == Queued("r3", 1, ())
    assert "earlier requests" in str(third)
    assert admission.request("r4", "ann", {C: 1}, "four") == Granted("r4")
    assert admission.release("r1") == ("r2",)
    assert admission.release("r2") == ("r3",)


def test_what_can_never_fit_is_refused_and_leaves_no_trace() -> None:
    admission = Admission({A: 1})
    with pytest.raises(PlanError, match="worker a has 1 slots, got a request for 2"):
        admission.request("r", "ann", {A: 2}, "big")
    with pytest.raises(PlanError, match="worker z must be in the cluster"):
        admission.request("r", "ann", {"z": 1}, "gone")
    with pytest.raises(PlanError, match="at least one slot"):
        admission.request("r", "ann", {}, "empty")
    with pytest.raises(PlanError, match="at least one slot"):
        admission.request("r", "ann", {A: 0}, "none")
    with pytest.raises(PlanError, match="must have asked"):
        admission.standing("r")


def test_asking_again_is_harmless() -> None:
    admission = Admission({A: 1})
    admission.request("r1", "ann", {A: 1}, "one")
    second = admission.request("r2", "ann", {A: 1}, "two")
    assert admission.request("r1", "ann", {A: 1}, "one") == Granted("r1")
    assert admission.request("r2", "ann", {A: 1}, "two") == second
    with pytest.raises(PlanError, match="same slots again"):
        admission.request("r1", "ann", {A: 2}, "one")
    assert admission.release("unknown") == ()


def test_a_lost_worker_hits_who_holds_it_and_who_waits_for_it() -> None:
    admission = Admission({A: 1, B: 1})
    admission.request("r1", "ann", {A: 1, B: 1}, "one")
    admission.request("r2", "bob", {A: 1}, "two")
    admission.request("r3", "bob", {B: 1}, "three")
    assert admission.remove_worker(A) == ("r1", "r2")
    assert isinstance(admission.standing("r3"), Queued)  # r1 keeps b until it is released
    assert admission.release("r1") == ("r3",)
    assert isinstance(admission.standing("r2"), Queued)
    assert admission.add_worker(A, 1) == ("r2",)
    assert admission.remove_worker("unknown") == ()


def test_a_departing_client_frees_what_it_held_and_asked_for() -> None:
    admission = Admission({A: 1})
    admission.request("r1", "ann", {A: 1}, "one")
    admission.request("r2", "ann", {A: 1}, "two")
    admission.request("r3", "bob", {A: 1}, "three")
    gone = admission.remove_client("ann")
    assert (gone.released, gone.granted) == (("r1", "r2"), ("r3",))


def test_a_worker_has_at_least_one_slot() -> None:
    with pytest.raises(PlanError, match="slots must be an int >= 1, got 0"):
        Admission().add_worker(A, 0)


class AdmissionMachine(RuleBasedStateMachine):
    """Random requests and departures against the rules of the queue."""

    def __init__(self) -> None:
        super().__init__()
        self.admission = Admission({A: 1, B: 2, C: 3})
        self.slots = {A: 1, B: 2, C: 3}
        self.asked: dict[str, dict[str, int]] = {}  # in order of asking
        self.granted: set[str] = set()
        self.count = 0

    @rule(wanted=st.dictionaries(st.sampled_from([A, B, C]), st.integers(1, 3), min_size=1))
    def request(self, wanted: dict[str, int]) -> None:
        fitting = {worker: min(n, self.slots[worker]) for worker, n in wanted.items()}
        run = f"r{self.count}"
        self.count += 1
        verdict = self.admission.request(run, f"client{self.count % 3}", fitting, run)
        self.asked[run] = fitting
        if isinstance(verdict, Granted):
            self.granted.add(run)

    @precondition(lambda self: self.asked)
    @rule(choice=st.randoms(use_true_random=False))
    def release(self, choice: object) -> None:
        run = choice.choice(list(self.asked))  # type: ignore[attr-defined]
        del self.asked[run]
        self.granted.discard(run)
        self.take(self.admission.release(run))

    @rule(client=st.sampled_from(["client0", "client1", "client2"]))
    def remove_client(self, client: str) -> None:
        gone = self.admission.remove_client(client)
        for run in gone.released:
            del self.asked[run]
            self.granted.discard(run)
        self.take(gone.granted)

    def take(self, granted: tuple[str, ...]) -> None:
        assert not self.granted.intersection(granted), "granted twice"
        self.granted.update(granted)

    @invariant()
    def no_worker_is_overbooked(self) -> None:
        for worker, slots in self.slots.items():
            used = sum(self.asked[run].get(worker, 0) for run in self.granted)
            assert self.admission.free(worker) == slots - used >= 0

    @invariant()
    def a_run_waits_only_for_a_reason(self) -> None:
        spoken_for: set[str] = set()
        for run, wanted in self.asked.items():
            verdict = self.admission.standing(run)
            assert isinstance(verdict, Granted) == (run in self.granted)
            if run in self.granted:
                continue
            full = any(self.admission.free(worker) < n for worker, n in wanted.items())
            assert full or not spoken_for.isdisjoint(wanted)
            assert isinstance(verdict, Queued)
            assert verdict.holders or verdict.position
            spoken_for.update(wanted)


AdmissionMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestAdmissionMachine = AdmissionMachine.TestCase
