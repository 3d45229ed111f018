"""Where a replica of a loose run stands in its step, for those who drive many in one process.

A step is a sequence of actions. Reads, answers and meetings may have to wait; deliveries and reads
are the events of a record. A cursor does one action at a time, so that its driver can say in which
order replicas go on: in turns, as a record says, or by virtual time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from time import perf_counter

from flowml.protocol.promise_specs import Missing
from flowml.runtime.center_seat import CenterSeat
from flowml.runtime.contributions import Contribution
from flowml.runtime.loose_rank import LooseRank, Row
from flowml.runtime.pulls import Pull


class Act(Enum):
    """What a replica does next."""

    BEGIN = "begin"
    READ = "read"
    GIVE = "give"
    DELIVER = "deliver"
    ANSWER = "answer"
    COMPUTE = "compute"
    MEET = "meet"
    END = "end"


EVENTS = (Act.READ, Act.DELIVER, Act.ANSWER)


@dataclass
class Cursor:
    """One replica and what it does next.

    Attributes
    ----------
    peers : sequence of Cursor
        Those of its group, itself included.
    act : Act
    step : int
    met : int
        How often it has come to where its group meets.
    moved : int
        Bytes of its last action, as a network would carry them.
    """

    seat: CenterSeat
    peers: Sequence[Cursor] = ()
    act: Act = Act.BEGIN
    step: int = 0
    met: int = 0
    moved: int = 0
    phase: int = -1
    """Computed last."""
    seconds: float = 0.0
    """Spent in this step."""
    rows: list[tuple[int, float, float, int]] = field(default_factory=list)
    """Of each step made: its number, loss, seconds, staleness."""
    _turn: int = 0
    _teams: list[int] = field(default_factory=list)
    _made: dict[int, Contribution] = field(default_factory=dict)
    _due: list[Pull] = field(default_factory=list)

    @property
    def rank(self) -> LooseRank:
        """The replica."""
        return self.seat.replica

    @property
    def number(self) -> int:
        """Its rank."""
        return self.rank.number

    def blocked(self) -> Missing | None:
        """Return what its next action must wait for, or None."""
        if self.act is Act.BEGIN:
            return self.seat.full()
        if self.act in (Act.READ, Act.ANSWER):
            return self.seat.missing(self.step, self._due)
        return self._missing_peers() if self.act is Act.MEET else None

    def _missing_peers(self) -> Missing | None:
        late = tuple(p.number for p in self.peers if p.met < self.met)
        return Missing("the group's meeting", late, self.step, -1) if late else None

    def behind(self) -> bool:
        """Tell whether the quorum of its step went on without it, before it has read for it."""
        begins = self.act is Act.BEGIN and self.seat.full() is None
        reads = self.act is Act.READ and self._turn == 0
        return (begins or reads) and self.seat.behind() > 0

    def skip(self) -> list[Row]:
        """Move over its step, which it has not begun."""
        rows = self.seat.skip(self.step)
        self.step, self.act = self.step + 1, Act.BEGIN
        return rows

    def go(self) -> list[Row]:
        """Do the next action, which is not blocked; return its rows if it is an event."""
        began = perf_counter()
        rows = _ACTIONS[self.act](self)
        self.seconds += perf_counter() - began
        if self.act is Act.END:
            rank = self.rank
            rank.commit(self.step)
            self.rows.append((self.step, rank.rank.loss, self.seconds, rank.staleness))
            self.step, self.act, self.seconds = self.step + 1, Act.BEGIN, 0.0
        return rows

    # -- actions: each sets what comes after it ------------------------------------------------

    def _begin(self) -> list[Row]:
        self.rank.begin(self.step)
        self._turn = 0
        self._look()
        return []

    def _look(self) -> None:
        """Stand at the beginning of a turn."""
        turn = self.rank.loose.turns[self._turn]
        self._due = self.rank.due(self.step, turn.reads)
        self._teams = [team for team in turn.teams if team in self.rank.members]
        self.act = Act.READ if self._due else self._after_reads()

    def _read(self) -> list[Row]:
        rows = self._take()
        self.act = self._after_reads()
        return rows

    def _take(self) -> list[Row]:
        rows = self.seat.read(self.step, self._due)
        self.moved = sum(row[3] for row in rows)
        return rows

    def _after_reads(self) -> Act:
        return Act.GIVE if self._teams else self._after_deliveries()

    def _give(self) -> list[Row]:
        self._made = self.rank.give(self.step, self._teams[0])
        self.moved = sum(self.rank.inputs[gate].moved for gate in self._made)
        self.act = Act.DELIVER
        return []

    def _deliver(self) -> list[Row]:
        team = self._teams.pop(0)
        rows = self.seat.deliver(self.step, team, self._made)
        self.act = self._after_reads()
        return rows

    def _after_deliveries(self) -> Act:
        self._due = self.rank.due(self.step, self.rank.loose.turns[self._turn].answers)
        return Act.ANSWER if self._due else self._after_turn()

    def _answer(self) -> list[Row]:
        rows = self._take()
        self.act = self._after_turn()
        return rows

    def _after_turn(self) -> Act:
        return Act.COMPUTE if self._turn + 1 < len(self.rank.loose.turns) else Act.END

    def _compute(self) -> list[Row]:
        self.phase = self._turn
        meets = self.rank.compute(self.step, self._turn)
        self.met += meets
        if meets:
            self.act = Act.MEET
        else:
            self._meet()
        return []

    def _meet(self) -> list[Row]:
        self._turn += 1
        self._look()
        return []


_ACTIONS: dict[Act, Callable[[Cursor], list[Row]]] = {
    Act.BEGIN: Cursor._begin,
    Act.READ: Cursor._read,
    Act.GIVE: Cursor._give,
    Act.DELIVER: Cursor._deliver,
    Act.ANSWER: Cursor._answer,
    Act.COMPUTE: Cursor._compute,
    Act.MEET: Cursor._meet,
}
