"""Following a run on its driver: what the run tells anyone is told to the scheduler's page too."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any

from distributed import Client

from flowml.dashboard.card import RunCard
from flowml.dashboard.contract import PAGE
from flowml.dashboard.plugin import EVENT, OPEN, FlowDashboard
from flowml.errors import FlowmlError
from flowml.events import Event, Finished, PageOpened, Warned
from flowml.runtime._dask import tell_from_client
from flowml.runtime.outcome import Order, Outcome

logger = logging.getLogger("flowml")

OPEN_SECONDS = 10.0
"""How long the scheduler may take to take a run in."""


def open_page(client: Client, card: RunCard, order: Order) -> Follower:
    """Show a run in Dask's dashboard from now on.

    Returns
    -------
    Follower
        Its ``link`` is "" where the scheduler has no page for it.
    """
    key, reply = uuid.uuid4().hex[:8], None
    with suppress(OSError, TimeoutError):  # a run says itself that there is no scheduler
        client.register_plugin(FlowDashboard())
        reply = client.sync(
            getattr(client.scheduler, OPEN),
            key=key,
            client=client.id,
            card=card.as_message(),
            callback_timeout=OPEN_SECONDS,
        )
    if reply is None:  # nor does a plugin answer that was taken down
        return Follower(client, key, order, False, "")
    link = page_link(client) if reply["page"] else ""
    if link:
        order.tell(PageOpened(link))
    return Follower(client, key, order, True, link)


@dataclass(frozen=True)
class Follower:
    """Hears the events of a run and tells them to the scheduler.

    Attributes
    ----------
    client : Client
    key : str
        Names the run on the page.
    order : Order
        Of the run, with its other listener.
    is_open : bool
        The scheduler has taken the run in.
    link : str
    """

    client: Client
    key: str
    order: Order
    is_open: bool
    link: str

    def follow(self, execute: Callable[[Order], Outcome], notes: Sequence[str] = ()) -> Outcome:
        """Execute a run and tell what happens in it; its end is told however it ends.

        Parameters
        ----------
        execute : callable
            Given the order with one listener more.
        notes : sequence of str
            Warnings that the user has been told already.
        """
        for text in notes:
            self.tell(Warned(text))
        try:
            outcome = execute(replace(self.order, on_event=self))
        except BaseException as error:
            self.tell(Finished("failed", 0, 0.0, first_line(error)))
            raise
        self.tell(finished(outcome))
        return outcome

    def __call__(self, event: Event) -> None:
        """Hear an event and pass it on."""
        if self.order.on_event is None and isinstance(event, Warned):
            logger.warning(event.text)  # as a run does that nobody listens to
        self.order.tell(event)
        self.tell(event)

    def tell(self, event: Event) -> None:
        """Tell the scheduler an event; nothing happens if the connection is closed."""
        if self.is_open:
            message = {"op": EVENT, "key": self.key, "event": as_message(event)}
            tell_from_client(self.client, message)


def as_message(event: Event) -> dict[str, Any]:
    """Return an event in types that msgpack knows: its fields, and its class as ``kind``."""
    found: dict[str, Any] = {"kind": type(event).__name__}
    for field in fields(event):
        value = getattr(event, field.name)
        found[field.name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    """Return a value without NumPy's numbers, which users' metrics may be."""
    if hasattr(value, "items"):
        return {key: _plain(inner) for key, inner in value.items()}
    return value.item() if hasattr(value, "item") else value


def finished(outcome: Outcome) -> Finished:
    """Return the event of the end of a run."""
    error = outcome.error
    fallen = "" if error is None else str(error.fields.get("operator") or "")
    text = "" if error is None else first_line(error)
    return Finished(outcome.status, outcome.steps, outcome.seconds, text, fallen)


def first_line(error: BaseException) -> str:
    """Return what an error says, in one line."""
    words = str(error) if isinstance(error, FlowmlError) else f"{type(error).__name__}: {error}"
    return words.partition("\n")[0]


def page_link(client: Client) -> str:
    """Return the address of the page, or "" where Dask knows none of its dashboard."""
    try:
        link = str(client.dashboard_link or "")
    except (KeyError, AttributeError):  # no dashboard, or a template that this process cannot fill
        return ""
    return link.removesuffix("status").rstrip("/") + f"/{PAGE}" if link else ""
