"""The waits of one replica: what they look at, when they end, whom they tell."""

from __future__ import annotations

from typing import Any

import pytest

from flowml.protocol.promise_specs import Missing
from flowml.runtime import patience as module
from flowml.runtime.patience import Patience, StoppedInStep

MISSING = Missing("a -> b", (1,), 3)


def never() -> bool:
    return False


def always() -> bool:
    return True


def nobody(missing: Missing, waited: float) -> None:
    raise AssertionError("nobody waits so long")


def after(looks: int) -> Any:
    """Return a look that finds something missing so many times."""
    left = [looks]

    def look() -> Missing | None:
        left[0] -= 1
        return MISSING if left[0] >= 0 else None

    return look


@pytest.mark.parametrize("stops", [True, False])
def test_what_is_there_is_not_waited_for(stops: bool) -> None:
    patience = Patience(nobody)
    assert patience.until(after(0), never, stops=stops) == 0.0
    assert patience.waited == 0.0


@pytest.mark.parametrize("looks", [1, 2, 50])
def test_a_wait_ends_when_nothing_is_missing(looks: int) -> None:
    patience = Patience(nobody)
    first = patience.until(after(looks), never, stops=False)
    second = patience.until(after(looks), never, stops=True)
    assert first > 0.0
    assert patience.waited == first + second


def test_a_step_does_not_begin_once_somebody_has_asked_to_stop() -> None:
    with pytest.raises(StoppedInStep):
        Patience(nobody).until(after(0), always, stops=True)


def test_a_step_that_has_begun_goes_on_with_what_is_there() -> None:
    assert Patience(nobody).until(after(0), always, stops=False) == 0.0


@pytest.mark.parametrize("stops", [True, False])
def test_what_is_missing_when_all_stop_will_not_come(stops: bool) -> None:
    with pytest.raises(StoppedInStep):
        Patience(nobody).until(after(3), always, stops=stops)


def test_a_request_to_stop_ends_a_wait_that_has_begun() -> None:
    asked = iter([False] * 5)
    with pytest.raises(StoppedInStep):
        Patience(nobody).until(after(1000), lambda: next(asked, True), stops=False)


def test_a_long_wait_is_told_and_may_be_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLICE_SECONDS", 0.01)
    told: list[float] = []

    def silence(missing: Missing, waited: float) -> None:
        assert missing is MISSING
        told.append(waited)
        if len(told) == 3:
            raise TimeoutError("too long")

    with pytest.raises(TimeoutError, match="too long"):
        Patience(silence).until(lambda: MISSING, never, stops=False)
    assert told == sorted(told)
    assert told[0] >= 0.01
