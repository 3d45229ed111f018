"""One replica of a loose run: reads when it may, computes at its own pace, delivers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from flowml.actions import REPLICA
from flowml.data.stream import BatchStream
from flowml.freshness import needed_before
from flowml.plan import Firing
from flowml.protocol.failures import ProtocolError
from flowml.runtime.contributions import Contribution
from flowml.runtime.domain import Domain, DomainMemory, Layouts
from flowml.runtime.gate_input import GateInput
from flowml.runtime.loose_plan import LoosePlan
from flowml.runtime.outcome import Order
from flowml.runtime.own_pulls import PullsOf
from flowml.runtime.program import Programs, StepProgram
from flowml.runtime.pulls import Copies, Pull
from flowml.runtime.rank import Rank, rank_tables, start_rules
from flowml.runtime.reads import Reads
from flowml.runtime.row_tables import RowSpec
from flowml.runtime.step_ids import StepIds
from flowml.runtime.unsent import kept_edges

READ, DELIVER, LEAVE, SKIP = range(4)
KINDS = ("read", "deliver", "leave", "skip")
NO_EDGE = MOST_LATE = 0xFFFF
MOST_BYTES = 0xFFFFFFFF
EVENT = np.dtype(
    [
        ("event", np.uint32),
        ("clock", np.uint32),
        ("version", np.uint32),
        ("bytes", np.uint32),
        ("wait_seconds", np.float32),
        ("replica", np.uint16),
        ("staleness", np.uint16),
        ("edge", np.uint16),
        ("kind", np.uint8),
    ]
)
"""One row of the record: its number among all events of the run says the order; an event has a row
for each of its edges. 27 bytes."""
Row = tuple[int, int, int, int, float, int, int, int, int]
"""In the order of EVENT."""


@dataclass
class LooseRank:
    """A replica, the programs of its steps, and what it reads and brings."""

    loose: LoosePlan
    rank: Rank
    firing: Firing
    pulls: tuple[Pull, ...]
    """By number of the read."""
    inputs: Mapping[int, GateInput]
    """By gate: those that this replica brings something to."""
    members: Mapping[int, int]
    """By team: the member that this replica is, or speaks for."""
    programs: Programs
    step_ids: StepIds
    staleness: int = 0
    """Of the reads of this step, in steps."""
    _program: StepProgram | None = None

    @classmethod
    def make(
        cls,
        loose: LoosePlan,
        number: int,
        layouts: Layouts,
        order: Order,
        streams: Mapping[str, BatchStream],
        specs: Mapping[str, RowSpec],
        domain: Domain,
        memory: DomainMemory,
        worker: str = "driver",
        enter: Callable[[int, int], None] = lambda operator, step: None,
    ) -> LooseRank:
        """Return a replica that stands before step 0."""
        local = loose.local
        layouts = {**layouts, **{(c, -1): layouts[s, -1] for c, s in loose.copied().items()}}
        tables = rank_tables(local, number, memory, layouts, order.seed)
        rank = Rank(local, number, domain, memory, layouts, order, streams, tables, worker, enter)
        rank.index = _numbers_in_plan(loose)
        start_rules(rank)
        firing = Firing(local)
        copies = Copies({name: tables[name].versions[0] for name in loose.copied()})
        members, step_ids = members_of(loose, number), StepIds()
        inputs = {
            n: GateInput(loose, n, rank, firing, specs, copies.targets, step_ids)
            for n, gate in enumerate(loose.gates)
            if gate.spec.team in members
        }
        found = PullsOf(loose, rank, firing, copies, specs, layouts, step_ids)
        pulls = tuple(found.of(n) for n in range(len(loose.reads)))
        return cls(loose, rank, firing, pulls, inputs, members, Programs(rank), step_ids)

    @property
    def number(self) -> int:
        """Its rank."""
        return self.rank.number

    @property
    def seats(self) -> list[tuple[str, int]]:
        """(kind of team, member) of all that it is, or speaks for."""
        return seats_of(self.loose, self.members)

    # -- a turn --------------------------------------------------------------------------------

    def due(self, step: int, numbers: tuple[int, ...]) -> list[Pull]:
        """Return which of some reads are made in a step, and make them ready."""
        found = [self.pulls[n] for n in numbers if self.pulls[n].is_due(step)]
        for pull in found:
            pull.prepare()
        return found

    def take(self, reads: Reads, event: int, step: int, due: list[Pull]) -> list[Row]:
        """Make reads, as one event; return its rows for the record."""
        rows = []
        for pull in due:
            number = pull.number
            late = self._bounded(reads.lateness(number, step), number, step)
            self.staleness = max(self.staleness, late)
            moved, version = min(pull.take(reads), MOST_BYTES), reads.version(number)
            row = (event, step, version, moved, 0.0, self.number)
            rows.append((*row, min(late, MOST_LATE), number, READ))
        return rows

    def _bounded(self, late: int, number: int, step: int) -> int:
        """Return how late a read is, which its promise must allow: it has been waited for."""
        if not late:
            return 0
        read = self.loose.reads[number]
        at = step + read.answer
        allowed = at - needed_before(read.promises, at)
        if late > allowed and read.gate >= 0:
            gate = self.loose.gates[read.gate].spec
            allowed += gate.every - 1 if gate.push else 0  # the lead counts steps without a push
        if late > allowed:
            raise ProtocolError(
                f"edge {read.source} -> {read.reader}, replica {self.number}, step {step}",
                f"the read may be at most {allowed} steps late",
                str(late),
                "This is a fault in flowml.",
            )
        return late

    def give(self, step: int, team: int) -> dict[int, Contribution]:
        """Return what this replica has for the gates of a team, by gate."""
        found = {}
        for number, entry in self.inputs.items():
            if entry.gate.spec.team == team:
                given = entry.give(step, self.staleness)
                if given is not None:
                    found[number] = given
        return found

    def expected(self, step: int, team: int) -> list[int]:
        """Return the gates of a team that get something of a step."""
        specs = {number: entry.gate.spec for number, entry in self.inputs.items()}
        return [n for n, spec in specs.items() if spec.team == team and spec.delivers(step)]

    def delivered(self, event: int, step: int, made: Iterable[int]) -> list[Row]:
        """Return the rows of a delivery to some gates."""
        first, late, mine = len(self.pulls), min(self.staleness, MOST_LATE), self.number
        rows = []
        for n in made:
            moved = min(self.inputs[n].moved, MOST_BYTES)
            rows.append((event, step, 0, moved, 0.0, mine, late, first + n, DELIVER))
        return rows or [(event, step, 0, 0, 0.0, mine, late, NO_EDGE, DELIVER)]

    def unsent(self) -> tuple[str, ...]:
        """Return the edges that keep values of steps which this replica has made."""
        kept = kept_edges(self.loose.plan, self.rank.committed, behind_gates=False)
        sent = [edge for entry in self.inputs.values() for edge in entry.unsent]
        return tuple(sorted({*kept, *sent}))

    def skipped(self, event: int, step: int) -> Row:
        """Return the row of a step that was moved over."""
        self.rank.committed = step + 1
        return (event, step, 0, 0, 0.0, self.number, 0, NO_EDGE, SKIP)

    def left(self, event: int, step: int) -> Row:
        """Return the row of a leave."""
        return (event, step, 0, 0, 0.0, self.number, 0, NO_EDGE, LEAVE)

    # -- a phase -------------------------------------------------------------------------------

    def begin(self, step: int) -> None:
        """Stand before the first phase of a step."""
        self.rank.loss, self.staleness = math.nan, 0
        self.step_ids.begin()
        self._program = self.programs.of(step)

    def compute(self, step: int, phase: int) -> bool:
        """Run its operators of a phase; return whether its group meets after it."""
        assert self._program is not None
        found = self._program.phases[phase]
        for act in found.acts:
            act(step)
        return found.meets

    def commit(self, step: int) -> None:
        """Let what the step wrote into tables of its own count."""
        assert self._program is not None
        for table, writes in self._program.commits:
            self.rank.tables[table].commit(writes)
        self.rank.committed = step + 1


def seats_of(loose: LoosePlan, members: Mapping[int, int]) -> list[tuple[str, int]]:
    """Return (kind of team, member) of all that a replica is, or speaks for."""
    return sorted({(loose.teams[team].kind, member) for team, member in members.items()})


def members_of(loose: LoosePlan, number: int) -> dict[int, int]:
    """Return the member that a replica is of each team; the lowest rank speaks for its group."""
    plan, found = loose.plan, {}
    for team, spec in enumerate(loose.teams):
        instance = plan.instance_of(spec.kind, number)
        if spec.kind == REPLICA or plan.ranks_of(spec.kind, instance)[0] == number:
            found[team] = instance
    return found


def _numbers_in_plan(loose: LoosePlan) -> dict[str, int]:
    """Return the numbers of a replica's operators among those of the whole plan.

    Notes
    -----
    What brings rows to an operator is known to the replica alone: it has the operator's number.
    """
    numbers = {o.name: n for n, o in enumerate(loose.plan.steps)}
    for reader in reversed(loose.local.steps):
        for port in reader.inputs:
            if not port.table:
                numbers.setdefault(port.source, numbers[reader.name])
    return numbers
