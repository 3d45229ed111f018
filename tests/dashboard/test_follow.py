"""What a driver tells the scheduler of its run."""

import logging
from dataclasses import fields
from typing import get_args

import msgpack
import numpy as np
import pytest
from distributed.client import ClosedClientError

from flowml.dashboard.follow import Follower, as_message, finished, first_line, page_link
from flowml.errors import OperatorError
from flowml.events import (
    Evaluated,
    Event,
    Finished,
    Loaded,
    PageOpened,
    ReplicaDone,
    RunStarted,
    Warned,
    WindowDone,
    WorkerLost,
)
from flowml.runtime.outcome import Order, Outcome

EVENTS = [
    RunStarted("ab", "ssgd", "resident", 2, 100),
    Loaded("batch", 4, 60_000),
    WindowDone(9, 0.5, 10, 0.25),
    ReplicaDone(1, "tcp://a", 9, 10, None, 0.5, 0.1, {0: 8, 3: 2}),
    Evaluated(10, "test", {"loss": 0.5}),
    WorkerLost("tcp://a", 10),
    PageOpened("http://here"),
    Warned("careful"),
    Finished("failed", 10, 1.5, "it broke", "gradient"),
]


class FakeClient:
    """A client that keeps what it is to send."""

    id = "client-1"
    dashboard_link = ""

    def __init__(self, broken=None):
        self.sent = []
        self.broken = broken

    def _send_to_scheduler(self, message):
        if self.broken:
            raise self.broken
        self.sent.append(message)


def follower(client, on_event=None, is_open=True):
    return Follower(client, "ab12", Order(10, None, on_event=on_event), is_open, "")


def test_every_event_is_listed_here():
    assert {type(event) for event in EVENTS} == set(get_args(Event))


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: type(e).__name__)
def test_an_event_travels_with_all_its_fields(event):
    message = msgpack.unpackb(msgpack.packb(as_message(event)), strict_map_key=False)
    assert message.pop("kind") == type(event).__name__
    assert message == {f.name: getattr(event, f.name) for f in fields(event)}


def test_numbers_of_numpy_travel_as_plain_ones():
    message = as_message(Evaluated(10, "test", {"loss": np.float32(0.5), "n": np.int64(3)}))
    assert message["metrics"] == {"loss": 0.5, "n": 3}
    assert [type(v) for v in message["metrics"].values()] == [float, int]


def test_who_listens_hears_first_and_the_scheduler_too():
    heard, client = [], FakeClient()
    follower(client, heard.append)(EVENTS[0])
    assert heard == [EVENTS[0]]
    assert client.sent == [{"op": "flowml-event", "key": "ab12", "event": as_message(EVENTS[0])}]


def test_a_warning_that_nobody_hears_is_logged(caplog):
    with caplog.at_level(logging.WARNING, "flowml"):
        follower(FakeClient())(Warned("careful"))
        follower(FakeClient(), lambda event: None)(Warned("heard"))
    assert caplog.messages == ["careful"]


def test_the_end_of_a_run_is_told():
    client, error = FakeClient(), OperatorError("operator 'g'", "raised X", operator="g")
    outcome = Outcome(None, status="failed", steps=7, seconds=1.5, error=error)
    assert follower(client).follow(lambda order: outcome, ("a note",)) is outcome
    kinds = [message["event"]["kind"] for message in client.sent]
    assert kinds == ["Warned", "Finished"]
    assert client.sent[-1]["event"] == {
        "kind": "Finished",
        "status": "failed",
        "step": 7,
        "seconds": 1.5,
        "error": "operator 'g': raised X",
        "operator": "g",
    }


def test_a_run_that_raises_is_told_as_failed():
    client = FakeClient()

    def execute(order):
        order.tell(EVENTS[0])
        raise KeyError("plan\nand more")

    with pytest.raises(KeyError):
        follower(client).follow(execute)
    assert [m["event"]["kind"] for m in client.sent] == ["RunStarted", "Finished"]
    assert client.sent[-1]["event"]["error"] == "KeyError: 'plan\\nand more'"


def test_a_run_goes_on_when_the_connection_is_closed():
    outcome = Outcome(None)

    def execute(order):
        order.tell(EVENTS[0])
        return outcome

    assert follower(FakeClient(ClosedClientError("closed"))).follow(execute) is outcome


def test_nothing_is_told_to_a_scheduler_that_has_not_taken_the_run_in():
    client = FakeClient()
    follower(client, is_open=False)(EVENTS[0])
    assert client.sent == []


def test_a_run_that_ends_well_has_no_error():
    assert finished(Outcome(None, steps=5, seconds=0.5)) == Finished("done", 5, 0.5, "", "")


def test_an_error_is_told_in_one_line():
    assert first_line(ValueError("one\ntwo")) == "ValueError: one"
    assert first_line(OperatorError("operator 'g'", "raised\nX")) == "operator 'g': raised"


@pytest.mark.parametrize(
    ("link", "page"),
    [
        ("http://127.0.0.1:8787/status", "http://127.0.0.1:8787/flowml"),
        ("/user/me/proxy/8787/status", "/user/me/proxy/8787/flowml"),
        ("https://host/dask", "https://host/dask/flowml"),
        ("", ""),
        (None, ""),
    ],
)
def test_the_page_stands_beside_dasks_own(link, page):
    client = FakeClient()
    client.dashboard_link = link
    assert page_link(client) == page


def test_a_cluster_without_dashboard_has_no_page():
    class Bare(FakeClient):
        @property
        def dashboard_link(self):
            raise KeyError("dashboard")

    assert page_link(Bare()) == ""
