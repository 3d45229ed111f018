"""One replica of a loose run: reads when it may, computes at its own pace, delivers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from flowml.actions import REPLICA
from flowml.data.stream import BatchStream
from flowml.plan import Firing
from flowml.protocol.promise_specs import ReadSpec
from flowml.runtime.center import Center
from flowml.runtime.contributions import NOTHING, Contribution
from flowml.runtime.domain import Domain, DomainMemory, Layouts
from flowml.runtime.gate_input import GateInput
from flowml.runtime.loose_plan import LoosePlan
from flowml.runtime.outcome import Order
from flowml.runtime.program import Programs, StepProgram
from flowml.runtime.pulls import AnswerPull, Copies, Pull, RowPull, TablePull
from flowml.runtime.rank import Rank, rank_tables, start_rules
from flowml.runtime.row_tables import RowSpec, row_spec

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
    pulls: tuple[tuple[int, Pull], ...]
    """(number of the read, what makes it)."""
    inputs: Mapping[int, GateInput]
    """By gate: those that this replica brings something to."""
    members: Mapping[int, int]
    """By team: the member that this replica is, or speaks for."""
    programs: Programs
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
        tables = rank_tables(local, number, memory, layouts, order.seed)
        rank = Rank(local, number, domain, memory, layouts, order, streams, tables, worker, enter)
        rank.index = {o.name: n for n, o in enumerate(loose.plan.steps)}
        start_rules(rank)
        firing = Firing(local)
        whole = {
            read.source
            for read, lookup in zip(loose.reads, loose.lookups, strict=True)
            if lookup is None
        }
        copies = Copies({name: tables[name].versions[0] for name in whole})
        members = _members(loose, number)
        inputs = {
            n: GateInput(loose, n, rank, firing, specs, copies.targets)
            for n, gate in enumerate(loose.gates)
            if gate.spec.team in members
        }
        found = _Pulls(loose, rank, firing, copies, specs, layouts)
        pulls = tuple(enumerate(found.of(n) for n in range(len(loose.reads))))
        return cls(loose, rank, firing, pulls, inputs, members, Programs(rank))

    @property
    def number(self) -> int:
        """Its rank."""
        return self.rank.number

    # -- a turn --------------------------------------------------------------------------------

    def due(self, step: int, numbers: tuple[int, ...]) -> list[tuple[int, Pull]]:
        """Return which of some reads are made in a step, and make them ready."""
        found = [self.pulls[n] for n in numbers if self.pulls[n][1].is_due(step)]
        for _, pull in found:
            pull.prepare()
        return found

    def take(self, center: Center, step: int, due: list[tuple[int, Pull]]) -> list[Row]:
        """Make reads, as one event; return its rows for the record."""
        rule, rows = center.rule, []
        for number, pull in due:
            late = rule.lateness(pull.spec, step)
            self.staleness = max(self.staleness, late)
            moved = min(pull.take(center), MOST_BYTES)
            row = (0, step, pull.version(center), moved, 0.0, self.number)
            rows.append((*row, min(late, MOST_LATE), number, READ))
        event = rule.read()
        return [(event, *row[1:]) for row in rows]

    def give(self, step: int, team: int) -> dict[int, Contribution]:
        """Return what this replica has for the gates of a team, by gate."""
        found = {}
        for number, entry in self.inputs.items():
            if entry.gate.spec.team == team:
                given = entry.give(step, self.staleness)
                if given is not None:
                    found[number] = given
        return found

    def deliver(
        self, center: Center, step: int, team: int, made: dict[int, Contribution]
    ) -> list[Row]:
        """Hand over what was given, as one event; return its rows for the record."""
        event = center.deliver(team, self.members[team], made, self.number)
        first, late = len(self.pulls), min(self.staleness, MOST_LATE)
        sent = {n: min(self.inputs[n].moved, MOST_BYTES) for n in made}
        rows = [
            (event, step, 0, nbytes, 0.0, self.number, late, first + n, DELIVER)
            for n, nbytes in sent.items()
        ]
        return rows or [(event, step, 0, 0, 0.0, self.number, late, NO_EDGE, DELIVER)]

    def skip(self, center: Center, step: int) -> list[Row]:
        """Move over a step whose quorum went on without this replica."""
        rows = []
        for team, member in self.members.items():
            made = {
                n: NOTHING
                for n, entry in self.inputs.items()
                if entry.gate.spec.team == team and entry.gate.spec.delivers(step)
            }
            event = center.deliver(team, member, made, self.number, skips=True)
            rows.append((event, step, 0, 0, 0.0, self.number, 0, NO_EDGE, SKIP))
        self.rank.committed = step + 1
        return rows

    def leave(self, center: Center, step: int) -> list[Row]:
        """Be waited for no longer."""
        rows = []
        for kind, member in sorted(
            {(self.loose.teams[t].kind, m) for t, m in self.members.items()}
        ):
            event = center.leave(kind, member, self.number)
            rows.append((event, step, 0, 0, 0.0, self.number, 0, NO_EDGE, LEAVE))
        return rows

    # -- a phase -------------------------------------------------------------------------------

    def begin(self, step: int) -> None:
        """Stand before the first phase of a step."""
        self.rank.loss, self.staleness = math.nan, 0
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


def _members(loose: LoosePlan, number: int) -> dict[int, int]:
    """Return the member that a replica is of each team; the lowest rank speaks for its group."""
    plan, found = loose.plan, {}
    for team, spec in enumerate(loose.teams):
        instance = plan.instance_of(spec.kind, number)
        if spec.kind == REPLICA or plan.ranks_of(spec.kind, instance)[0] == number:
            found[team] = instance
    return found


@dataclass(frozen=True)
class _Pulls:
    """Makes the reads of one replica."""

    loose: LoosePlan
    rank: Rank
    firing: Firing
    copies: Copies
    specs: Mapping[str, RowSpec]
    layouts: Layouts

    def of(self, number: int) -> Pull:
        read, lookup = self.loose.reads[number], self.loose.lookups[number]
        codec = self.loose.codecs[number]
        if lookup is None:
            layout = self.layouts[read.source, -1]
            return TablePull(read, self.copies, layout, codec, self._fires(read.reader))
        receiver = self.loose.local.operator(lookup)
        if not read.answer:
            spec = self._row_spec(read)
            where = f"edge {read.source} -> {read.reader}"
            fires = self._fires(lookup)
            return RowPull(read, spec, self.rank, receiver, codec, fires, where)
        table = self.loose.plan.operator(read.source).writes
        layouts = [
            self.layouts[table, -1] if table else self.layouts[read.source, output]
            for output in range(receiver.outputs)
        ]
        targets = tuple((layout, layout.allocate()) for layout in layouts)
        return AnswerPull(read, self.rank, receiver, targets, self._fires(lookup), table)

    def _row_spec(self, read: ReadSpec) -> RowSpec:
        known = self.specs.get(read.source)
        if known is not None:
            return known
        return row_spec(self.loose.plan.table(read.source), self.layouts[read.source, -1])

    def _fires(self, operator: str) -> Callable[[int], bool]:
        if self.firing.is_steady:
            return _always
        return partial(self.firing.fires, self.loose.local.operator(operator))


def _always(step: int) -> bool:
    return True
