"""A replica's way to tables that another host holds: requests, and their replies.

What is delivered does not wait for its reply: it goes on its way with the next read, or before the
replica computes. So a step takes one round trip where it reads once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from time import perf_counter

from flowml.protocol.promise_rule import ENDED, NO_STOP, STOPPED
from flowml.protocol.promise_specs import Missing
from flowml.protocol.table_client import TableClient
from flowml.protocol.table_wire import (
    ANSWER,
    BEHIND,
    DELIVER,
    LEAVE,
    READ,
    REFUSED,
    SKIP,
    STOP,
    Act,
    Frame,
    Item,
)
from flowml.runtime.contributions import Contribution
from flowml.runtime.line import Note, Stand
from flowml.runtime.loose_rank import LooseRank, Row
from flowml.runtime.patience import SLICE_SECONDS, Patience, StoppedInStep
from flowml.runtime.pulls import Pull, RowPull, TablePull
from flowml.runtime.table_call import TableCall
from flowml.runtime.table_items import TableItems
from flowml.runtime.watch import WAITING

NOBODY = Missing("-> tables", (), 0)


class RemoteLine:
    """One replica and the server of the tables.

    Parameters
    ----------
    replica : LooseRank
    client : TableClient
    call : TableCall
    items : TableItems
    shared : memoryview of int64
        A word of this host's memory: that somebody has asked to stop, for those who meet here.
    patience : Patience
    note : callable
    """

    def __init__(
        self,
        replica: LooseRank,
        client: TableClient,
        call: TableCall,
        items: TableItems,
        shared: memoryview,
        patience: Patience,
        note: Note,
    ) -> None:
        self._replica = replica
        self._client = client
        self._call = call
        self._items = items
        self._shared = shared
        self._patience = patience
        self._note = note
        self._pending: list[Act] = []
        self._made: deque[list[Row]] = deque()
        """Rows of each pending or open delivery, but for the numbers of their events."""
        self._open: deque[Future[Frame]] = deque()
        self._results: deque[Act] = deque()
        """Of reads: nothing else is waited for."""

    # -- stop ----------------------------------------------------------------------------------

    @property
    def stop(self) -> int:
        """Why the run is to stop, as far as it is known here; NO_STOP: it goes on."""
        return max(self._client.stop, self._shared[0])

    def request_stop(self, *, ended: bool) -> None:
        """Let every replica leave at its next step."""
        if self.stop == NO_STOP:
            self._pending.append(Act(STOP, place=ENDED if ended else STOPPED))
            self.flush()

    # -- a step --------------------------------------------------------------------------------

    def begin(self, step: int) -> None:
        """Stop, if somebody asked for it; for room the first read of the step waits."""
        if self.stop != NO_STOP:
            raise StoppedInStep

    def read(self, step: int, due: list[Pull], *, turn: int, first: bool) -> Stand:
        """Make reads once they may be, for a later step if the quorum went on without it."""
        if not due and not first:
            return Stand(step)
        found, waited = self._ask(Act(READ, step, turn, items=tuple(map(_asked, due))))
        if found.kind == BEHIND:
            return Stand(step, found.event)
        if found.step > step:
            self._moved(step, found)
        self._take(found, found.step, due, waited)
        return Stand(found.step)

    def _moved(self, step: int, found: Act) -> None:
        """Note the steps that the read moved over, whose events are those before its own."""
        replica = self._replica
        steps = [skipped for skipped in range(step, found.step) for _ in replica.members]
        for event, skipped in enumerate(steps, found.event - len(steps)):
            self._note([replica.skipped(event, skipped)], 0.0)
        replica.begin(found.step)

    def answer(self, step: int, due: list[Pull], *, turn: int) -> None:
        """Receive what the step's own contributions came to."""
        found, waited = self._ask(Act(ANSWER, step, turn, items=tuple(map(_asked, due))))
        self._take(found, step, due, waited)

    def _take(self, found: Act, step: int, due: list[Pull], waited: float) -> None:
        rows = self._replica.take(self._items.reads(found), found.event, step, due)
        self._note(rows, waited)

    def deliver(self, step: int, team: int, made: Mapping[int, Contribution]) -> None:
        """Hand over contributions."""
        items: list[Item] = []
        for gate, given in made.items():
            items += self._items.of_contribution(gate, given, self._replica.inputs[gate].payloads)
        self._pending.append(Act(DELIVER, step, team, items=tuple(items)))
        self._made.append(self._replica.delivered(0, step, made))

    def skip(self, step: int, last: int, behind: int) -> int:
        """Move over steps up to a last one; return the next step."""
        replica, until = self._replica, min(last, step + behind)
        for skipped in range(step, until):
            for team in replica.members:
                gates = replica.expected(skipped, team)
                self._pending.append(Act(SKIP, skipped, team, items=self._items.nothing(gates)))
            self.flush()
        return until

    def leave(self, step: int) -> None:
        """Be waited for no longer."""
        for place, _ in enumerate(self._replica.seats):
            self._pending.append(Act(LEAVE, step, place))
        self.finish()

    def finish(self) -> None:
        """Wait until all that was handed over has arrived."""
        self.flush()
        while self._open:
            self._await_one()

    def meet(self, look: Callable[[], Missing | None]) -> float:
        """Wait for others of the group, who are on this host."""
        return self._patience.until(look, lambda: self.stop != NO_STOP, stops=False)

    # -- requests ------------------------------------------------------------------------------

    def flush(self) -> None:
        """Send what was handed over."""
        if self._pending:
            while not self._client.has_room:
                self._await_one()
            acts, self._pending = self._pending, []
            self._open.append(self._call.start(self._client.ask(*acts)))

    def _ask(self, act: Act) -> tuple[Act, float]:
        """Return what came of a read, and the seconds that it took."""
        self._replica.rank.enter(WAITING, act.step)
        began = perf_counter()
        self._pending.append(act)
        self.flush()
        while not self._results:
            self._await_one()
        waited = perf_counter() - began
        self._patience.waited += waited
        found = self._results.popleft()
        if found.kind == REFUSED:
            raise StoppedInStep
        return found, waited

    def _await_one(self) -> None:
        """Take in the reply to the oldest open request."""
        future, began = self._open[0], perf_counter()
        while True:
            try:
                reply = future.result(SLICE_SECONDS)
                break
            except TimeoutError:
                self._patience.on_silence(NOBODY, perf_counter() - began)
        self._open.popleft()
        for act in self._client.receive(reply) or ():
            self._note_act(act)
        if self._client.stop:
            self._shared[0] = self._client.stop

    def _note_act(self, act: Act) -> None:
        replica = self._replica
        if act.kind == DELIVER:
            self._note([(act.event, *row[1:]) for row in self._made.popleft()], 0.0)
        elif act.kind == SKIP:
            self._note([replica.skipped(act.event, act.step)], 0.0)
        elif act.kind == LEAVE:
            self._note([replica.left(act.event, act.step)], 0.0)
        elif act.kind != STOP:
            self._results.append(act)


def _asked(pull: Pull) -> Item:
    """Return what a read needs to know."""
    if isinstance(pull, TablePull):
        return Item(pull.number, pull.known + 1)
    if isinstance(pull, RowPull) and pull.ids is not None:
        return Item(pull.number, arrays=(pull.ids.reshape(-1),))
    return Item(pull.number)
