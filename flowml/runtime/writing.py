"""Writes of tables in the resident executor: by slices, by one owner, or by each replica.

A write goes to the next version of its table, so a reader of the old one is never disturbed. A
value that stands for no examples changes nothing: the old version is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flowml.errors import FlowmlError
from flowml.plan import PlanOperator
from flowml.rules import At
from flowml.runtime.bodies import Act, out_regions
from flowml.runtime.calls import Spot, all_finite, diverged, raise_explained, returned
from flowml.runtime.combining import Member, members_of
from flowml.runtime.inputs import Getter, Pattern, getter
from flowml.runtime.private_rows import PrivateRows
from flowml.runtime.rank import Rank, slice_of
from flowml.runtime.ranktable import RankTable
from flowml.runtime.row_bodies import row_write_body
from flowml.runtime.tablestate import RuleState, whole
from flowml.runtime.values import Value
from flowml.types import Array

Contribution = tuple[int, float, tuple[Array, ...]]
"""(writer, examples, slices of its flat buffers)."""


def write_body(pattern: Pattern, operator: PlanOperator) -> Act:
    """Return the body of an update or assign, for all that this rank writes of the table."""
    rank = pattern.rank
    table = rank.tables[str(operator.writes)]
    if isinstance(table, PrivateRows):
        return row_write_body(pattern, operator, table)
    parts = slice_of(rank, operator, table.layout.sizes) if operator.sliced else whole(table.layout)
    contributions = _contributions(pattern, operator, parts)
    before = pattern.writes_before(operator, including=False)
    apply = _application(rank, operator, table.rules.get(operator.name))
    number, enter, checks = rank.index[operator.name], rank.enter, rank.order.on_nonfinite == "stop"
    sources, region = _blamed(pattern, operator), out_regions(pattern, operator)[0]
    mine = [tuple(b[s] for b, s in zip(v, parts, strict=True)) for v in table.versions]
    count = len(mine)

    def act(step: int) -> None:
        enter(number, step)
        at = table.now + before
        old, new = mine[at % count], mine[(at + 1) % count]
        current = old
        for writer, examples, slices in contributions(step):
            try:
                apply(step, writer, examples, current, slices, new)
            except BaseException as error:
                raise_explained(Spot(operator, rank.number, step, rank.worker), error)
            current = new
        if current is old:
            for source, target in zip(old, new, strict=True):
                target[...] = source
        elif checks and not all_finite(new):
            raise not_finite(rank, operator, step, sources())
        if region is not None:
            region.put(table.value(before + 1).content, None)

    return act


Apply = Callable[[int, int, float, tuple[Array, ...], tuple[Array, ...], tuple[Array, ...]], None]
"""(step, writer, examples, old, update, new)."""


def _application(rank: Rank, operator: PlanOperator, rule: RuleState | None) -> Apply:
    if rule is None:
        return _assign
    state = rule

    def apply(
        step: int,
        writer: int,
        examples: float,
        old: tuple[Array, ...],
        update: tuple[Array, ...],
        new: tuple[Array, ...],
    ) -> None:
        state.apply(old, update, At(step, state.applied, 0, writer, examples), new)

    return apply


def _assign(
    step: int,
    writer: int,
    examples: float,
    old: tuple[Array, ...],
    value: tuple[Array, ...],
    new: tuple[Array, ...],
) -> None:
    for source, target in zip(value, new, strict=True):
        target[...] = source


def _contributions(
    pattern: Pattern, operator: PlanOperator, parts: tuple[slice, ...]
) -> Callable[[int], Sequence[Contribution]]:
    """Return what a write applies: one value, or under a push that of each member in order."""
    rank = pattern.rank
    if rank.plan.combines(operator):
        instance = rank.instance(operator.scope)
        members = sorted(members_of(pattern, operator, instance), key=lambda m: int(str(m.key)))
        return lambda step: _pushed(members, parts)
    get = getter(pattern, operator, 0)
    known = _known_buffers(pattern, operator)
    if known is not None:
        slices = tuple(b[s] for b, s in zip(known, parts, strict=True))
        return lambda step: _flat(get(), slices)
    return lambda step: _single(rank, operator, get, parts, step)


def _known_buffers(pattern: Pattern, operator: PlanOperator) -> tuple[Array, ...] | None:
    """Return the flat buffers that the value of a write always lies in, if that is so."""
    rank, port = pattern.rank, operator.inputs[0]
    layout = _dense(rank, operator).layout
    if port.table or port.every > 1 or rank.firing.holds(port, operator):
        return None
    source = rank.plan.operator(port.source)
    if source.writes is not None or rank.layouts.get((port.source, port.output)) != layout:
        return None
    if port.crosses:
        instance = rank.instance(source.scope)
        return pattern.region(("out", port.source, port.output, instance)).buffers
    return rank.flats.get((port.source, port.output))


def _dense(rank: Rank, operator: PlanOperator) -> RankTable:
    table = rank.tables[str(operator.writes)]
    assert isinstance(table, RankTable)
    return table


def _flat(value: Value, slices: tuple[Array, ...]) -> Sequence[Contribution]:
    return () if value.empty else ((0, value.examples or 0.0, slices),)


def _pushed(members: list[Member], parts: tuple[slice, ...]) -> Sequence[Contribution]:
    found = []
    for writer, member in enumerate(members):
        if member.weight():
            slices = tuple(b[s] for b, s in zip(member.buffers(), parts, strict=True))
            examples = member.examples()
            found.append((writer, 0.0 if examples != examples else examples, slices))
    return found


def _single(
    rank: Rank, operator: PlanOperator, get: Getter, parts: tuple[slice, ...], step: int
) -> Sequence[Contribution]:
    value = get()
    if value.empty:
        return ()
    layout = _dense(rank, operator).layout
    wrong = layout.mismatch(value.content)
    if wrong is not None:
        raise returned(
            Spot(operator, rank.number, step, rank.worker),
            f"what is written to table "
            f"{operator.writes!r} must have its structure, shapes and dtypes",
            wrong,
            "Cast or reshape it before.",
        )
    flat = layout.flat(value.content)
    slices = tuple(b[s] for b, s in zip(flat, parts, strict=True))
    return ((0, value.examples or 0.0, slices),)


def _blamed(pattern: Pattern, operator: PlanOperator) -> Callable[[], list[tuple[str, Member]]]:
    """Return a function that lists what went into a write, to name a value that is not finite."""
    plan = pattern.rank.plan
    port = operator.inputs[0]
    if plan.combines(operator):
        combining = operator
    elif not port.table and plan.operator(port.source).kind == "aggregate":
        combining = plan.operator(port.source)
    else:
        return list
    source = combining.inputs[0].source
    instance = pattern.rank.instance(combining.scope)
    return lambda: [(source, m) for m in members_of(pattern, combining, instance)]


def not_finite(
    rank: Rank, operator: PlanOperator, step: int, sources: list[tuple[str, Member]]
) -> FlowmlError:
    """Return the error for a write that would make a table infinite or NaN."""
    for name, member in sources:
        if not member.partial and member.weight() and not all_finite(member.buffers()):
            source = rank.plan.operator(name) if name in rank.index else operator
            first = rank.plan.ranks_of(source.scope, int(str(member.key)))[0]
            return diverged(
                Spot(source, first, step, rank.worker),
                "its value must be finite, and holds infinite or NaN numbers",
            )
    return diverged(
        Spot(operator, rank.number, step, rank.worker),
        f"table {operator.writes!r} must stay finite, and this write makes it infinite or NaN",
    )
