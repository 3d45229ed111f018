"""How an operator of the resident executor gets its inputs: a small function for each port."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

from flowml.actions import REPLICA
from flowml.errors import FlowmlError
from flowml.plan import PlanOperator
from flowml.runtime.calls import Spot, returned
from flowml.runtime.domain import (
    Region,
    RegionKey,
    kept_by_source,
    reads_table_buffers,
    region_of_port,
)
from flowml.runtime.moved import Moved
from flowml.runtime.private_rows import PrivateRows
from flowml.runtime.rank import Rank
from flowml.runtime.ranktable import RankTable
from flowml.runtime.values import EMPTY, Kept, Value, agreed_examples, copied

Getter: TypeAlias = Callable[[], Value]


@dataclass(frozen=True)
class Pattern:
    """Which operators fire and which edges deliver in the steps that a program is for."""

    rank: Rank
    step: int
    """Any step of this pattern."""
    moved: Moved = field(default_factory=Moved, compare=False)
    """What the functions made for it write and read of shared memory in such a step."""

    def fires(self, name: str) -> bool:
        """Tell whether an operator fires."""
        return self.rank.firing.fires(self.rank.plan.operator(name), self.step)

    def delivers(self, reader: PlanOperator, number: int) -> bool:
        """Tell whether an edge delivers."""
        return self.rank.firing.delivers(reader.inputs[number], self.step)

    def reads(self, reader: PlanOperator, number: int, nbytes: int) -> None:
        """Count bytes that an input of a reader takes from shared memory."""
        self.moved.read[self.rank.plan.edge_name(reader, number)] += nbytes

    def table(self, reader: PlanOperator, number: int, name: str) -> RankTable | PrivateRows:
        """Return a table that an input reads, and count that if it lies in shared memory."""
        plan, table = self.rank.plan, self.rank.tables[name]
        shared = plan.scope_of(reader.inputs[number]) != REPLICA and not plan.own_copies
        if shared and isinstance(table, RankTable):
            self.reads(reader, number, table.layout.nbytes)
        return table

    def writes_before(self, writer: PlanOperator, *, including: bool) -> int:
        """Return how many writes of its table fire before (or up to) a write."""
        names = self.rank.plan.table(str(writer.writes)).writes
        stop = names.index(writer.name) + including
        return sum(self.fires(name) for name in names[:stop])

    @property
    def parity(self) -> int:
        """Which of two turns of regions this step writes and reads; there is one if steps meet."""
        return self.step % 2 if self.rank.plan.own_copies else 0

    def region(self, key: RegionKey) -> Region:
        """Return a region in this step's turn."""
        return self.rank.memory.region((self.parity, *key))

    def key(self) -> tuple[int, frozenset[str], frozenset[tuple[str, int]]]:
        """Return what makes two steps of the same pattern."""
        plan = self.rank.plan
        return (
            self.parity,
            self.rank.firing.pattern(self.step),
            frozenset(
                (o.name, n) for o in plan.steps for n in range(len(o.inputs)) if self.delivers(o, n)
            ),
        )


def getter(pattern: Pattern, reader: PlanOperator, number: int) -> Getter:
    """Return a function that gives an input when the reader fires."""
    rank = pattern.rank
    if rank.firing.holds(reader.inputs[number], reader):
        held, key = rank.held, (reader.name, number)
        return lambda: held[key]
    return delivered(pattern, reader, number)


def delivered(pattern: Pattern, reader: PlanOperator, number: int) -> Getter:
    """Return a function that gives what an edge delivers in this step."""
    rank, port = pattern.rank, reader.inputs[number]
    if not reads_table_buffers(rank.plan, port) and port.crosses:
        if port.every > 1 and not kept_by_source(rank.plan, port) and rank.firing.keeps(port):
            return rank.kept.setdefault((reader.name, number), Kept(port.keep)).take
        source = rank.instance(rank.plan.scope_of(port))
        region = pattern.region(region_of_port(rank.plan, reader, number, source))
        pattern.reads(reader, number, region.layout.nbytes)
        return read_region(region)
    if port.every > 1 and not port.table and rank.firing.keeps(port):
        return rank.kept.setdefault((reader.name, number), Kept(port.keep)).take
    return fresh(pattern, reader, number)


def fresh(pattern: Pattern, reader: PlanOperator, number: int) -> Getter:
    """Return a function that gives what the source of an input made in this very step."""
    rank, port = pattern.rank, reader.inputs[number]
    if port.table:
        return pattern.table(reader, number, port.source).value
    source = rank.plan.operator(port.source)
    if source.writes is not None:
        writes = pattern.writes_before(source, including=True)
        return partial(pattern.table(reader, number, source.writes).value, writes)
    if port.crosses:
        instance = rank.instance(source.scope)
        region = pattern.region(("out", port.source, port.output, instance))
        pattern.reads(reader, number, region.layout.nbytes)
        return read_region(region)
    registers, slot = rank.registers, rank.slots[port.source, port.output]
    return lambda: registers[slot]


def read_region(region: Region) -> Getter:
    """Return a function that gives a region's value."""
    header, view = region.header, region.view

    def read() -> Value:
        examples = float(header[0])
        if examples == 0.0:
            return EMPTY
        return Value(view, None if examples != examples else examples)

    return read


def hold(pattern: Pattern, reader: PlanOperator, number: int) -> Callable[[int], None]:
    """Return an action that keeps a private copy of what an edge delivers in this step."""
    held, key = pattern.rank.held, (reader.name, number)
    get = delivered(pattern, reader, number)

    def act(step: int) -> None:
        value = get()
        held[key] = Value(copied(value.content), value.examples)

    return act


def keep_at_reader(pattern: Pattern, reader: PlanOperator, number: int) -> Callable[[int], None]:
    """Return an action that adds this step's value to what an edge keeps, at its reader."""
    rank = pattern.rank
    kept = rank.kept.setdefault((reader.name, number), Kept(reader.inputs[number].keep))
    get = fresh(pattern, reader, number)

    def act(step: int) -> None:
        kept.put(get())

    return act


def gather(getters: Sequence[Getter], spot: Callable[[], Spot]) -> tuple[list[Value], float | None]:
    """Return all inputs of an operator and the examples that they stand for."""
    values = [get() for get in getters]
    found: float | None = None
    for _, examples in values:
        if examples is not None and examples != found:
            if found is not None or examples == 0.0:
                return values, _agreed(values, spot)
            found = examples
    return values, found


def _agreed(values: list[Value], spot: Callable[[], Spot]) -> float | None:
    try:
        return agreed_examples(values)
    except ValueError as error:
        raise _disagreement(spot(), error) from error


def _disagreement(spot: Spot, error: ValueError) -> FlowmlError:
    return returned(spot, str(error), "", "Let all inputs come from the same batch.")
