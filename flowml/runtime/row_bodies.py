"""The loop bodies of operators on rows: those of a replica's own tables, and what it receives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from flowml.actions import LookUp
from flowml.plan import PlanOperator
from flowml.rules import At
from flowml.runtime.bodies import written_regions
from flowml.runtime.calls import Spot, placed_errors
from flowml.runtime.inputs import Getter, Pattern, getter
from flowml.runtime.private_rows import PrivateRows
from flowml.runtime.rank import Rank
from flowml.runtime.row_tables import row_spec
from flowml.runtime.values import EMPTY, Value, read_only
from flowml.types import Array

Act = Callable[[int], None]


def received_body(pattern: Pattern, operator: PlanOperator) -> Act:
    """Return a body that shows its group what lies in the registers already, if that reads it."""
    rank = pattern.rank
    regions = written_regions(pattern, operator)
    shown = [
        (rank.slots[operator.name, output], region)
        for output, region in enumerate(regions)
        if region is not None
    ]
    if not shown:
        return _nothing
    registers = rank.registers

    def act(step: int) -> None:
        for slot, region in shown:
            region.put(*registers[slot])

    return act


def _nothing(step: int) -> None:
    """Between two phases it was all done."""


def rows_body(pattern: Pattern, operator: PlanOperator) -> Act:
    """Return the body that looks rows up in a table of the replica's own."""
    rank, action = pattern.rank, operator.action
    assert isinstance(action, LookUp)
    ids, slot, registers = (
        getter(pattern, operator, 0),
        rank.slots[operator.name, 0],
        rank.registers,
    )
    look = _looking(rank, action.table, operator)

    def act(step: int) -> None:
        value = ids()
        registers[slot] = EMPTY if value.empty else Value(look(value.content), None)

    return act


def _looking(rank: Rank, name: str, operator: PlanOperator) -> Callable[[object], Array]:
    table, where = rank.tables[name], f"edge {name} -> {operator.name}"
    if isinstance(table, PrivateRows):
        return lambda ids: table.at(ids, where)
    spec = row_spec(rank.plan.table(name), table.layout)

    def look(ids: object) -> Array:
        found: Array = read_only(table.value().content[spec.check_ids(ids, where)])
        return found

    return look


def row_write_body(pattern: Pattern, operator: PlanOperator, table: PrivateRows) -> Act:
    """Return the body of an update or assign of rows of the replica's own table."""
    rank = pattern.rank
    values = getter(pattern, operator, 0)
    ids: Getter = getter(pattern, operator, 1)
    number, enter, checks = rank.index[operator.name], rank.enter, rank.order.on_nonfinite == "stop"
    where = f"{operator.name} of table {operator.writes!r}"

    def act(step: int) -> None:
        enter(number, step)
        value, named = values(), ids()
        if value.empty or named.empty:
            return
        with placed_errors(partial(Spot, operator, rank.number, step, rank.worker)):
            keys, rows = table.keyed(operator, named.content, value.content, where)
            at = At(step, table.store.writes, 0, rank.number, value.examples or 0.0)
            table.write(operator, keys, rows, at, checks=checks)

    return act
