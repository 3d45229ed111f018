"""A plan whose values pass gates, in two parts: what each replica does, and what all share.

A replica computes from private copies of what it reads, at its own pace. Where its values, or those
of its group, flow into something global (an aggregate, or a table that is pushed to) stands a
*gate*; what the gate's firing leads to, up to the write of a table, is done at once by whoever made
it fire.

A step is cut in phases, as in a synchronous plan, and between two phases is a *turn*: there a
replica reads what all share, delivers what it has made, and receives what that came to.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, replace

from flowml.actions import GLOBAL, REPLICA, Aggregate, Answer, LookUp, Update
from flowml.codecs.contract import Codec
from flowml.freshness import loosest
from flowml.plan import Plan, PlanOperator, PlanPort, PlanTable
from flowml.protocol.promise_specs import GateSpec, ReadSpec, TeamSpec
from flowml.runtime.group_answers import group_readers, hand_round, handed, make_room
from flowml.runtime.row_tables import is_row_table

QUEUE_STEPS = 16
"""Steps of one replica that a gate holds where no promise bounds them."""


@dataclass(frozen=True)
class Gate:
    """Where contributions of replicas become something global."""

    spec: GateSpec
    operator: PlanOperator
    behind: tuple[PlanOperator, ...]
    """What runs on its output, in the order of the step; empty behind a push."""


@dataclass(frozen=True)
class Turn:
    """What happens between two phases; each is a number in the plan's tuples.

    Attributes
    ----------
    reads : tuple of int
        Reads of tables as they stand before the step's own contributions.
    teams : tuple of int
        Those who deliver.
    answers : tuple of int
        Reads of what has come of that.
    """

    reads: tuple[int, ...]
    teams: tuple[int, ...]
    answers: tuple[int, ...]


@dataclass(frozen=True)
class LoosePlan:
    """The parts of a loose plan.

    Attributes
    ----------
    plan : Plan
        All of it.
    local : Plan
        The operators of replicas and groups; shared tables are private copies, not written.
    gates : tuple of Gate
    teams : tuple of TeamSpec
    reads : tuple of ReadSpec
        What operators of replicas get from what all share.
    lookups : tuple of (str or None)
        For each read, the operator of ``local`` that receives it; None: the whole table.
    codecs : tuple of (Codec or None)
        For each read.
    copies : tuple of str
        For each read, the table of ``local`` that is filled with it; "" where it is no whole table.
    turns : tuple of Turn
        One before each phase, and one after the last.
    queue : int
        Steps of one replica that a gate may hold.
    """

    plan: Plan
    local: Plan
    gates: tuple[Gate, ...]
    teams: tuple[TeamSpec, ...]
    reads: tuple[ReadSpec, ...]
    lookups: tuple[str | None, ...]
    codecs: tuple[Codec | None, ...]
    copies: tuple[str, ...]
    turns: tuple[Turn, ...]
    queue: int

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the shared tables."""
        return tuple(t.name for t in self.plan.tables if t.scope == GLOBAL)

    def copied(self) -> dict[str, str]:
        """Return the tables of ``local`` that whole reads fill, with the tables that are read."""
        reads = zip(self.copies, self.reads, strict=True)
        return {copy: read.source for copy, read in reads if copy}


def is_loose(plan: Plan) -> bool:
    """Tell whether values pass gates: an edge is not sync, has a codec, a filter, row ids."""
    ports = [p for o in plan.steps for p in o.inputs]
    return (
        any(loosest(p.promises) > 0 for p in ports)
        or any(p.codec is not None or p.threshold is not None for p in ports)
        or any(p.members is not None or p.ids is not None for p in ports)
        or any(is_row_table(plan, table) for table in plan.tables)
        or any(isinstance(o.action, Update) and o.action.rule.reads for o in plan.steps)
    )


def split(plan: Plan) -> LoosePlan:
    """Return the parts of a loose plan that the compiler has accepted."""
    return _Split(plan).run()


class _Split:
    """The way from a plan to its parts."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.mine = [o for o in plan.steps if o.scope != GLOBAL]
        phases = sorted({o.phase for o in self.mine})
        self.phase = {o.name: phases.index(o.phase) for o in self.mine}
        self.phases = max(1, len(phases))
        self.shared = {t.name for t in plan.tables if t.scope == GLOBAL}
        self.gated = [o for o in plan.steps if self._is_gate(o)]
        self.gate_of = self._gates_of_operators()
        self.reads: list[tuple[ReadSpec, str | None]] = []
        self.codecs: list[Codec | None] = []
        self.copies: list[str] = []
        self.coded: dict[str, list[Codec | None]] = {}
        """The codecs that each shared table is read whole with: a copy for each."""
        self.received: list[PlanOperator] = []
        self.in_groups = group_readers(plan)

    def run(self) -> LoosePlan:
        plan = self.plan
        operators = [self._local(o) for o in self.mine]
        self._whole_tables()
        turn_of = {name: self._turn_of_gate(plan.operator(name)) for name in self._gate_names()}
        placed = [0 if f is None else self.phase[r.reader] for r, f in self.reads]
        operators, turn_of, placed = self._with_room(operators, turn_of, placed)
        teams, team_of = self._teams(turn_of)
        self._answers(turn_of)
        gates = tuple(self._gate(o, team_of[o.name]) for o in self.gated)
        placed += [turn_of[self.gated[r.gate].name] for r, _ in self.reads[len(placed) :]]
        reads = tuple(replace(r, turn=t) for (r, _), t in zip(self.reads, placed, strict=True))
        lookups, codecs = tuple(lookup for _, lookup in self.reads), tuple(self.codecs)
        local = replace(
            plan,
            operators=tuple([*operators, *self.received]),
            tables=(*(self._table(t) for t in plan.tables), *self._more_copies()),
            own_copies=True,
        )
        turns = tuple(self._turn(t, reads, teams) for t in range(self.phases + 1))
        local, queue, copies = _in_order(local), self._queue(gates, reads), tuple(self.copies)
        return LoosePlan(plan, local, gates, teams, reads, lookups, codecs, copies, turns, queue)

    # -- what is global ------------------------------------------------------------------------

    def _is_gate(self, operator: PlanOperator) -> bool:
        """Tell whether values of replicas flow into a global operator; also of only one."""
        if operator.scope != GLOBAL or not operator.inputs or operator.inputs[0].table:
            return False
        return self.plan.operator(operator.inputs[0].source).scope != GLOBAL

    def _gate_names(self) -> list[str]:
        return [o.name for o in self.gated]

    def _gates_of_operators(self) -> dict[str, int]:
        """Return the gate that each global operator comes of."""
        found: dict[str, int] = {o.name: n for n, o in enumerate(self.gated)}
        for operator in self.plan.steps:
            if operator.scope == GLOBAL and operator.name not in found:
                gates = [found[p.source] for p in operator.inputs if p.source in found]
                if gates:
                    found[operator.name] = gates[0]
        return found

    def _behind(self, gate: int) -> tuple[PlanOperator, ...]:
        name = self.gated[gate].name
        return tuple(
            o for o in self.plan.steps if self.gate_of.get(o.name) == gate and o.name != name
        )

    def _gate(self, operator: PlanOperator, team: int) -> Gate:
        port, number = operator.inputs[0], self.gate_of[operator.name]
        behind = self._behind(number)
        members = port.members
        spec = GateSpec(
            operator.name,
            port.promises,
            not isinstance(operator.action, Aggregate),
            tuple(dict.fromkeys(o.writes for o in (operator, *behind) if o.writes)),
            port.every,
            team,
            0 if members is None else members.count,
            members is None or members.late == "carry",
        )
        return Gate(spec, operator, behind)

    def _gate_writing(self, table: str) -> int:
        writers = self.plan.table(table).writes
        return self.gate_of[writers[0]] if writers else -1

    # -- what a replica does -------------------------------------------------------------------

    def _local(self, operator: PlanOperator) -> PlanOperator:
        inputs = tuple(self._local_port(operator, n, p) for n, p in enumerate(operator.inputs))
        return replace(operator, phase=self.phase[operator.name], sliced=False, inputs=inputs)

    def _local_port(self, reader: PlanOperator, number: int, port: PlanPort) -> PlanPort:
        if port.table and port.ids is not None:
            return self._looked_up(reader, number, port)
        if port.table:
            name = self._copy_of(port) if port.source in self.shared else port.source
            return replace(port, source=name, crosses=False)
        source = self.plan.operator(port.source)
        if source.name in self.in_groups and reader.scope != GLOBAL:
            return replace(port, source=handed(source.name, port.output), output=0, crosses=False)
        crosses = source.scope == REPLICA != reader.scope
        return replace(port, crosses=crosses)

    def _looked_up(self, reader: PlanOperator, number: int, port: PlanPort) -> PlanPort:
        """Let rows of a table come from an operator of their own, before the reader."""
        assert port.ids is not None
        name = f"{reader.name} <- {port.source}.at[{number}]"
        source, output = port.ids
        shared = port.source in self.shared
        self.received.append(
            PlanOperator(
                name,
                "receive" if shared else "rows",
                LookUp(port.source),
                reader.scope,
                (PlanPort(source, output, table=False),),
                1,
                reader.site,
                "replica",
                self.phase[reader.name],
                sliced=False,
            )
        )
        if shared:
            gate = self._gate_writing(port.source)
            spec = ReadSpec(port.source, reader.name, port.promises, port.every, gate)
            self._read(spec, name, port)
        return PlanPort(name, 0, table=False, every=1)

    def _whole_tables(self) -> None:
        for operator in self.mine:
            for port in operator.inputs:
                if port.table and port.ids is None and port.source in self.shared:
                    gate = self._gate_writing(port.source)
                    spec = ReadSpec(port.source, operator.name, port.promises, port.every, gate)
                    self._read(spec, None, port, self._copy_of(port))

    def _copy_of(self, port: PlanPort) -> str:
        """Return the name of the copy that a whole read fills: the table's, of its first codec."""
        known = self.coded.setdefault(port.source, [])
        if port.codec not in known:
            known.append(port.codec)
        number = known.index(port.codec)
        return f"{port.source} (copy {number + 1})" if number else port.source

    def _more_copies(self) -> list[PlanTable]:
        """Return the tables that are there because some reads have another codec than the first."""
        sources = {c: read.source for c, (read, _) in zip(self.copies, self.reads, strict=True)}
        return [
            replace(self.plan.table(source), name=copy, writes=())
            for copy, source in sources.items()
            if copy not in ("", source)
        ]

    def _answers(self, turn_of: dict[str, int]) -> None:
        """Let what is global and read in the same step come from an operator that receives it."""
        found: dict[str, list[tuple[PlanOperator, PlanPort]]] = {}
        for operator in self.mine:
            for port in operator.inputs:
                if not port.table and self.plan.operator(port.source).scope == GLOBAL:
                    found.setdefault(port.source, []).append((operator, port))
        for name, readers in found.items():
            source, gate = self.plan.operator(name), self.gate_of[name]
            entry = self.gated[gate].inputs[0]
            turn = turn_of[self.gated[gate].name]
            received = replace(
                source,
                kind="receive",
                action=Answer(name, source.writes),
                scope=REPLICA,
                inputs=(replace(entry, crosses=False, codec=None, ids=None, members=None),),
                placement="replica",
                phase=turn,
                sliced=False,
            )
            self.received.append(received)
            if name in self.in_groups:
                self.received += hand_round(received, self.in_groups[name])
            for reader, port in readers:
                spec = ReadSpec(name, reader.name, port.promises, port.every, gate, answer=True)
                self._read(spec, name, port)

    def _read(self, spec: ReadSpec, lookup: str | None, port: PlanPort, copy: str = "") -> None:
        self.reads.append((spec, lookup))
        self.codecs.append(port.codec)
        self.copies.append(copy)

    def _table(self, table: PlanTable) -> PlanTable:
        return replace(table, writes=()) if table.name in self.shared else table

    # -- turns ---------------------------------------------------------------------------------

    def _turn_of_gate(self, gate: PlanOperator) -> int:
        """Return the first turn at which a gate's values are there, and its tables read."""
        sources = [p.source for p in gate.inputs] + [p.ids[0] for p in gate.inputs if p.ids]
        made = max(1 + self.phase[name] for name in sources if name in self.phase)
        tables = {
            o.writes for o in (gate, *self._behind(self.gate_of[gate.name])) if o.writes is not None
        }
        looked = [self.phase[r.reader] for r, lookup in self.reads if lookup and r.source in tables]
        return max([made, *looked])

    def _teams(self, turn_of: dict[str, int]) -> tuple[tuple[TeamSpec, ...], dict[str, int]]:
        keys: dict[str, tuple[str, int]] = {}
        for gate in self.gated:
            scope = self.plan.operator(gate.inputs[0].source).scope
            keys[gate.name] = (scope, turn_of[gate.name])
        order = sorted(set(keys.values()), key=lambda key: key[1])
        teams = tuple(TeamSpec(s, self.plan.instances(s), turn) for s, turn in order)
        return teams, {name: order.index(key) for name, key in keys.items()}

    def _with_room(
        self, operators: list[PlanOperator], turn_of: dict[str, int], placed: list[int]
    ) -> tuple[list[PlanOperator], dict[str, int], list[int]]:
        """Return operators, turns of gates and of reads with phases in which groups receive."""
        turns = {name: turn_of[self.gated[self.gate_of[name]].name] for name in self.in_groups}
        self.phase = make_room(self.plan, self.phase, turns)
        rooms = sorted(set(turns.values()))
        self.phases += len(rooms)
        self.received = [
            replace(o, phase=bisect_left(rooms, o.phase) + o.phase) for o in self.received
        ]
        return (
            [replace(o, phase=self.phase[o.name]) for o in operators],
            {gate: turn + bisect_left(rooms, turn) for gate, turn in turn_of.items()},
            [turn + bisect_left(rooms, turn) for turn in placed],
        )

    def _turn(self, turn: int, reads: tuple[ReadSpec, ...], teams: tuple[TeamSpec, ...]) -> Turn:
        here = [n for n, r in enumerate(reads) if r.turn == turn]
        return Turn(
            tuple(n for n in here if not reads[n].answer),
            tuple(n for n, team in enumerate(teams) if team.turn == turn),
            tuple(n for n in here if reads[n].answer),
        )

    def _queue(self, gates: tuple[Gate, ...], reads: tuple[ReadSpec, ...]) -> int:
        bounds = [loosest(r.promises) for r in reads] + [loosest(g.spec.promises) for g in gates]
        widest = max(bounds, default=0.0)
        queue = QUEUE_STEPS if math.isinf(widest) else int(2 * widest) + 2
        return max(queue, 2, *(g.spec.every for g in gates))


def _in_order(local: Plan) -> Plan:
    """Return a plan whose operators stand after what they read: those that receive come in."""
    names = {o.name for o in local.operators}
    placed: dict[str, PlanOperator] = {}
    pending = list(local.operators)
    while pending:
        ready = [
            o
            for o in pending
            if all(p.table or p.source in placed or p.source not in names for p in o.inputs)
        ]
        placed |= {o.name: o for o in ready}
        pending = [o for o in pending if o.name not in placed]
    return replace(local, operators=tuple(placed.values()))
