"""Which reads of the plan one replica makes, and how: whole tables, rows, or answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from flowml.layout import Layout
from flowml.plan import Firing, PlanOperator
from flowml.protocol.promise_specs import ReadSpec
from flowml.runtime.domain import Layouts
from flowml.runtime.group_answers import first_of_group, group_readers
from flowml.runtime.loose_plan import LoosePlan
from flowml.runtime.pulls import AnswerPull, Copies, Pull, RowPull, TablePull
from flowml.runtime.rank import Rank
from flowml.runtime.row_tables import RowSpec, row_spec
from flowml.runtime.step_ids import StepIds


@dataclass(frozen=True)
class PullsOf:
    """Makes the reads of one replica.

    Attributes
    ----------
    loose : LoosePlan
    rank : Rank
    firing : Firing
        Of the local plan.
    copies : Copies
    specs : mapping of str to RowSpec
        Of the shared tables that are kept as rows.
    layouts : mapping of (operator, output) to Layout
    step_ids : StepIds
    """

    loose: LoosePlan
    rank: Rank
    firing: Firing
    copies: Copies
    specs: Mapping[str, RowSpec]
    layouts: Layouts
    step_ids: StepIds

    def of(self, number: int) -> Pull:
        """Return a read by its number in the plan."""
        read, lookup = self.loose.reads[number], self.loose.lookups[number]
        if lookup is None:
            copy = self.loose.copies[number]
            return TablePull(number, read, self.copies, copy, self._fires(read.reader))
        receiver, fires = self.loose.local.operator(lookup), self._fires(lookup)
        if not read.answer:
            where = f"edge {read.source} -> {read.reader}"
            spec = self._row_spec(read)
            return RowPull(number, spec, self.rank, receiver, fires, where, self.step_ids)
        targets = tuple((layout, layout.allocate()) for layout in self._answered(read, receiver))
        if receiver.name in group_readers(self.loose.plan) and not first_of_group(
            self.loose.plan, self.rank.number
        ):
            fires = _never
        return AnswerPull(number, read, self.rank, receiver, targets, fires)

    def _answered(self, read: ReadSpec, receiver: PlanOperator) -> list[Layout]:
        """Return the layout of each output of what is received."""
        table = self.loose.plan.operator(read.source).writes
        if table is not None:
            return [self.layouts[table, -1]] * receiver.outputs
        return [self.layouts[read.source, output] for output in range(receiver.outputs)]

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


def _never(step: int) -> bool:
    return False
