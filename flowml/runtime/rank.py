"""What one rank carries from step to step in the resident executor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flowml.actions import GLOBAL, REPLICA, Update
from flowml.data.stream import BatchStream
from flowml.layout import slices
from flowml.plan import Firing, Plan, PlanOperator
from flowml.runtime.domain import Domain, DomainMemory, Layouts
from flowml.runtime.outcome import Order
from flowml.runtime.private_rows import PrivateRows
from flowml.runtime.ranktable import RankTable
from flowml.runtime.row_tables import is_row_table
from flowml.runtime.tablestate import RuleState, initial, whole
from flowml.runtime.values import EMPTY, Kept, Value
from flowml.types import Array, Pytree


@dataclass
class Rank:
    """One replica's part of a run: its tables, batches, registers and kept values."""

    plan: Plan
    number: int
    domain: Domain
    memory: DomainMemory
    layouts: Layouts
    order: Order
    streams: Mapping[str, BatchStream]
    tables: dict[str, RankTable | PrivateRows]
    worker: str = "driver"
    enter: Callable[[int, int], None] = lambda operator, step: None
    """Reports (index of the operator, step) to whoever watches for silence."""
    firing: Firing = field(init=False)
    registers: list[Value] = field(init=False)
    slots: dict[tuple[str, int], int] = field(init=False)
    kept: dict[tuple[str, int], Kept] = field(default_factory=dict)
    held: dict[tuple[str, int], Value] = field(default_factory=dict)
    flats: dict[tuple[str, int], tuple[Array, ...]] = field(default_factory=dict)
    """Flat buffers behind the values of gradients and aggregates, by (operator, output); of the
    program that was made last, for those who are made with it."""
    backing: dict[int, tuple[Array, ...]] = field(default_factory=dict)
    """The same by the identity of the value, which lives as long as the rank."""
    index: dict[str, int] = field(init=False)
    ended: bool = False
    committed: int = 0
    """Steps that are done for good."""
    loss: float = float("nan")

    def __post_init__(self) -> None:
        """Lay out the registers."""
        self.firing = Firing(self.plan)
        keys = [(o.name, i) for o in self.plan.steps for i in range(max(1, o.outputs))]
        self.slots = {key: n for n, key in enumerate(keys)}
        self.registers = [EMPTY] * len(keys)
        self.index = {o.name: n for n, o in enumerate(self.plan.steps)}

    def instance(self, scope: str) -> int:
        """Return the instance of a scope that this rank is in."""
        return self.plan.instance_of(scope, self.number)

    def works_on(self, operator: PlanOperator) -> bool:
        """Tell whether this rank does an operator, or a slice of it."""
        if operator.scope == REPLICA or self.plan.own_copies:
            return True
        workers = self.domain.workers_of(self.plan, operator.scope, self.instance(operator.scope))
        return operator.sliced or workers[0] == self.number


def slice_of(rank: Rank, operator: PlanOperator, sizes: tuple[int, ...]) -> tuple[slice, ...]:
    """Return the part of each flat buffer that a rank does of an operator that is shared out."""
    if rank.plan.own_copies:
        return tuple(slice(0, size) for size in sizes)
    instance = rank.instance(operator.scope)
    workers = rank.domain.workers_of(rank.plan, operator.scope, instance)
    mine = workers.index(rank.number)
    return tuple(slices(size, len(workers))[mine] for size in sizes)


def rank_tables(
    plan: Plan, number: int, memory: DomainMemory, layouts: Layouts, run_seed: int
) -> dict[str, RankTable | PrivateRows]:
    """Return the tables of a rank: shared ones in the domain's memory, its own beside.

    Notes
    -----
    Shared tables are initialised by :func:`fill_shared`, once a domain. Rows that all share are
    read from the center of a loose run, and are no table of a rank.
    """
    found: dict[str, RankTable | PrivateRows] = {}
    for table in plan.tables:
        instance = plan.instance_of(table.scope, number)
        if is_row_table(plan, table):
            if table.scope != GLOBAL:
                found[table.name] = PrivateRows.make(plan, table, instance, run_seed)
            continue
        layout = layouts[table.name, -1]
        if table.scope == REPLICA or plan.own_copies:
            versions = [layout.allocate() for _ in range(1 + len(table.writes))]
            layout.write(initial(plan, table, instance, run_seed), versions[0])
        else:
            versions = memory.table(table.name, instance)
        found[table.name] = RankTable(layout, versions)
    return found


def fill_shared(
    plan: Plan, domain: Domain, memory: DomainMemory, layouts: Layouts, run_seed: int
) -> None:
    """Write the initial values of shared tables into a domain's memory."""
    for table in plan.tables:
        if table.scope == REPLICA or plan.own_copies:
            continue
        for instance in domain.present(plan, table.scope):
            value: Pytree = initial(plan, table, instance, run_seed)
            layouts[table.name, -1].write(value, memory.table(table.name, instance)[0])


def start_rules(rank: Rank) -> None:
    """Make the state of each rule that this rank applies, for its slice of the table."""
    for operator in rank.plan.steps:
        action = operator.action
        if not isinstance(action, Update) or not rank.works_on(operator):
            continue
        table = rank.tables[action.table]
        if isinstance(table, PrivateRows):
            continue
        parts = whole(table.layout)
        if operator.sliced:
            parts = slice_of(rank, operator, table.layout.sizes)
        table.rules[operator.name] = RuleState(action.rule, table.layout, parts)
        table.rules[operator.name].start(table.buffers())
