"""A dense table in memory: its layout, its current buffers, and the state of its rules."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from flowml.actions import Update
from flowml.data.share import random_seed
from flowml.errors import GraphError
from flowml.layout import Layout, freeze, layout_of
from flowml.plan import Plan, PlanTable
from flowml.rules import At, Rule
from flowml.runtime.place import Place
from flowml.types import Array, Pytree


def initial(plan: Plan, table: PlanTable, instance: int, run_seed: int) -> Pytree:
    """Return the initial value of one instance of a table, as read-only arrays."""
    if not callable(table.init):
        return table.init
    rank = plan.ranks_of(table.scope, instance)[0]
    entropy = (run_seed, random_seed(table.name))
    place = Place(rank, plan.replicas, plan.group_of[rank], 0, entropy)
    where = f"table {table.name!r} ({table.site})"
    try:
        value = table.init(place)
        layout_of(value)
    except Exception as error:
        raise GraphError(
            where,
            "init(here) must return a pytree of numeric arrays",
            f"{type(error).__name__}: {error}",
        ) from error
    return freeze(value)


@dataclass
class RuleState:
    """A rule's state for one table instance, or for a slice of it."""

    rule: Rule
    layout: Layout
    parts: tuple[slice, ...]
    """The part of each buffer that it works on."""
    states: Any = None
    applied: int = 0

    def start(self, buffers: tuple[Array, ...]) -> None:
        """Make the state from the parameters."""
        if self.rule.elementwise:
            self.states = tuple(
                self.rule.init(b[s]) for b, s in zip(buffers, self.parts, strict=True)
            )
        else:
            self.states = self.rule.init(self.layout.leaf_views(buffers))

    def apply(
        self, params: tuple[Array, ...], update: tuple[Array, ...], at: At, out: tuple[Array, ...]
    ) -> None:
        """Write ``params`` changed by ``update`` into ``out``; elementwise rules get slices.

        Parameters
        ----------
        params, update, out : tuple of ndarray
            Slices as long as ``parts`` for an elementwise rule, whole buffers otherwise; so is
            ``at.read`` where the rule reads.
        """
        if not self.rule.elementwise:
            views = self.layout.leaf_views
            here = at if at.read is None else at._replace(read=views(at.read))
            self.rule.step(views(params), views(update), self.states, here, views(out))
        elif at.read is None:
            change = self.rule.step
            for p, u, state, o in zip(params, update, self.states, out, strict=True):
                if p.size:
                    change(p, u, state, at, o)
        else:
            slices = zip(params, update, self.states, out, at.read, strict=True)
            for p, u, state, o, read in slices:
                self.rule.step(p, u, state, at._replace(read=read), o)
        self.applied += 1


def whole(layout: Layout) -> tuple[slice, ...]:
    """Return the slices that cover all of a layout's buffers."""
    return tuple(slice(0, size) for size in layout.sizes)


@dataclass
class TableInstance:
    """One instance of a table, versioned within a step."""

    layout: Layout
    current: tuple[Array, ...]
    """Buffers as they stood at the start of the step."""
    latest: tuple[Array, ...] = ()
    """Buffers after the writes of this step so far."""
    rules: dict[str, RuleState] = field(default_factory=dict)

    def view(self, buffers: tuple[Array, ...]) -> Pytree:
        """Return the pytree over some buffers, read-only."""
        return self.layout.views(buffers, writeable=False)


def make_instance(plan: Plan, table: PlanTable, instance: int, run_seed: int) -> TableInstance:
    """Return an instance at its initial value with the state of its rules."""
    value = initial(plan, table, instance, run_seed)
    layout = layout_of(value)
    buffers = layout.allocate()
    layout.write(value, buffers)
    made = TableInstance(layout, buffers, buffers)
    for name in table.writes:
        action = plan.operator(name).action
        if isinstance(action, Update):
            made.rules[name] = RuleState(action.rule, layout, whole(layout))
            made.rules[name].start(buffers)
    return made
