"""What a loose plan's reads and contributions look like in frames, both ways.

A contribution or a read is one item, or one for each leaf where the edge has a codec: what travels
is the payload. What does not fit the plan is refused before anything of a frame is done.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

import numpy as np

from flowml.codecs.contract import Codec, Payload
from flowml.keyed_rows import each_once
from flowml.protocol.failures import ProtocolError
from flowml.protocol.table_wire import ANSWER, DELIVER, LEAVE, READ, SKIP, STOP, Act, Item
from flowml.runtime.contributions import NOTHING, Contribution
from flowml.runtime.domain import Layouts, layout_of_port
from flowml.runtime.edge_codec import encoded
from flowml.runtime.fitting import buffers_of, decoded_as, known_keys, leaves_of, unfit
from flowml.runtime.loose_plan import LoosePlan
from flowml.runtime.reads import Room, SharedReads
from flowml.runtime.row_memory import ids_of_gate
from flowml.runtime.row_tables import RowSpec, row_spec
from flowml.runtime.shared_tables import SharedTables
from flowml.types import Array

Buffers = tuple[Array, ...]
CONTENT, NOTHING_SENT, WAS_READ = range(3)
"""In place of the version of an item of a contribution: what it is."""


class TableItems:
    """Both ways between values and items.

    Parameters
    ----------
    loose : LoosePlan
    layouts : mapping of (operator, output) to Layout
    specs : mapping of str to RowSpec
        Of the shared tables that are kept as rows.
    """

    def __init__(self, loose: LoosePlan, layouts: Layouts, specs: Mapping[str, RowSpec]) -> None:
        self.loose = loose
        self._layouts = layouts
        self._specs = specs

    # -- contributions -------------------------------------------------------------------------

    def of_contribution(
        self, gate: int, given: Contribution, payloads: Sequence[Payload]
    ) -> list[Item]:
        """Return a contribution as items.

        Parameters
        ----------
        payloads : sequence of Payload
            What a codec made of it, leaf by leaf; without one, empty.
        """
        if given.empty:
            return [Item(gate, NOTHING_SENT)]
        about = Item(gate, CONTENT, given.staleness, given.examples, given.weight)
        keys = () if given.keys is None else (given.keys,)
        if not payloads:
            found = [about._replace(arrays=(*keys, *given.buffers))]
        else:
            found = [about._replace(arrays=(*keys, *payload)) for payload in payloads]
        if given.read:
            found.append(Item(gate, WAS_READ, arrays=given.read))
        return found

    def nothing(self, gates: Iterable[int]) -> tuple[Item, ...]:
        """Return empty contributions."""
        return tuple(Item(gate, NOTHING_SENT) for gate in gates)

    def contributions(self, act: Act) -> dict[int, Contribution]:
        """Return what a delivery brings, by gate.

        Raises
        ------
        ProtocolError
            It is not what the plan says.
        """
        groups = groupby(act.items, key=lambda item: item.number)
        return {gate: self._contribution(gate, list(items)) for gate, items in groups}

    def _contribution(self, number: int, items: list[Item]) -> Contribution:
        first = items[0]
        if first.version == NOTHING_SENT:
            return NOTHING
        gate = self.loose.gates[number]
        codec = gate.operator.inputs[0].codec
        about = first.examples, first.weight
        if ids_of_gate(gate.operator) is not None:
            spec = self._specs[gate.spec.tables[0]]
            keys, rows = self._rows(spec, first.arrays, codec)
            return Contribution(*about, (rows,), keys, (), first.staleness)
        layout = layout_of_port(self.loose.plan, self._layouts, gate.operator.inputs[0])
        content = [item.arrays for item in items if item.version == CONTENT]
        read = [item.arrays for item in items if item.version == WAS_READ]
        if len(content) != (1 if codec is None else len(layout.leaves)) or len(read) > 1:
            raise unfit("one contribution", [a for item in items for a in item.arrays])
        buffers = (
            buffers_of(layout, content[0]) if codec is None else leaves_of(layout, content, codec)
        )
        if read:
            buffers_of(self._layouts[gate.spec.tables[0], -1], read[0])
        return Contribution(*about, buffers, None, read[0] if read else (), first.staleness)

    def _rows(
        self, spec: RowSpec, arrays: tuple[Array, ...], codec: Codec | None
    ) -> tuple[Array, Array]:
        if not arrays or arrays[0].ndim != 1 or arrays[0].dtype != np.int64:
            raise unfit("the keys of rows", arrays)
        keys, content = known_keys(spec, arrays[0]), arrays[1:]
        if not each_once(keys):
            raise unfit("keys of rows, each once", arrays)
        shape = len(keys), spec.items
        if codec is not None:
            return keys, decoded_as(codec, content, shape, spec.dtype)
        if len(content) != 1 or content[0].shape != shape or content[0].dtype != spec.dtype:
            raise unfit(f"rows of shape {shape}, {spec.dtype}", content)
        return keys, content[0]

    # -- reads ---------------------------------------------------------------------------------

    def read(self, asked: Item, reads: SharedReads, tables: SharedTables, step: int) -> list[Item]:
        """Return the items of a read, copied."""
        number = asked.number
        read, codec = self.loose.reads[number], self.loose.codecs[number]
        about = Item(number, reads.version(number), reads.lateness(number, step))
        if read.answer:
            outputs = self.loose.local.operator(str(self.loose.lookups[number])).outputs
            answers = [tables.answer(read.source, output) for output in range(outputs)]
            return [
                about._replace(
                    examples=math.nan if examples is None else examples,
                    arrays=tuple(b.copy() for b in buffers) if examples != 0.0 else (),
                )
                for examples, buffers in answers
            ]
        if self.loose.lookups[number] is not None:
            if not asked.arrays:
                return [about]
            found = tables.rows(read.source, asked.arrays[0])
            payload = (found,) if codec is None else encoded(codec, found)
            return [about._replace(arrays=payload)]
        if asked.version == about.version + 1:
            return [about]
        buffers = tables.buffers(read.source)
        if codec is None:
            return [about._replace(arrays=tuple(b.copy() for b in buffers))]
        leaves = self._layouts[read.source, -1].leaf_views(buffers).values()
        return [about._replace(arrays=encoded(codec, leaf)) for leaf in leaves]

    def reads(self, act: Act) -> ReplyReads:
        """Return the reads that a reply has."""
        return ReplyReads(self.loose, self._layouts, self._specs, act)

    # -- checks --------------------------------------------------------------------------------

    def check(self, acts: Iterable[Act], members: Mapping[int, int]) -> None:
        """Refuse a request that no replica makes.

        Parameters
        ----------
        members : mapping of team to member
            Of the writer.

        Raises
        ------
        ProtocolError
            Nothing of it may be done.
        """
        for act in acts:
            if act.kind in (READ, ANSWER):
                self._check_read(act)
            elif act.kind in (DELIVER, SKIP):
                if act.place not in members:
                    raise ProtocolError("table request", f"delivers to {list(members)}", str(act))
                self._check_delivery(act)
            elif act.kind not in (LEAVE, STOP):
                raise ProtocolError("table request", "is a known act", str(act.kind))

    def _check_delivery(self, act: Act) -> None:
        """Refuse other gates than those of the team that get something of this step."""
        specs = enumerate(gate.spec for gate in self.loose.gates)
        wanted = [n for n, s in specs if s.team == act.place and s.delivers(act.step)]
        found = [number for number, _ in groupby(item.number for item in act.items)]
        if sorted(found) != wanted:
            required = f"fits team {act.place} in step {act.step}: gates {wanted}"
            raise ProtocolError("table request", required, f"gates {found}")
        self.contributions(act)

    def _check_read(self, act: Act) -> None:
        turns = self.loose.turns
        here = turns[act.place] if act.place < len(turns) else None
        known = () if here is None else here.answers if act.kind == ANSWER else here.reads
        if here is None or any(item.number not in known for item in act.items):
            raise ProtocolError("table request", f"reads what turn {act.place} has", str(act)[:200])
        for item in act.items:
            keys = item.arrays[0] if item.arrays else None
            if keys is not None and (keys.ndim != 1 or keys.dtype != np.int64):
                raise unfit("the keys of rows", item.arrays)
            if keys is not None and self.loose.lookups[item.number] is not None:
                known_keys(self._spec_of(self.loose.reads[item.number].source), keys)

    def _spec_of(self, table: str) -> RowSpec:
        """Return what rows of a table are like, also of one that is not kept as rows."""
        known = self._specs.get(table)
        return known or row_spec(self.loose.plan.table(table), self._layouts[table, -1])


class ReplyReads:
    """Reads from a reply; as `SharedReads`, whose other end this is."""

    def __init__(
        self, loose: LoosePlan, layouts: Layouts, specs: Mapping[str, RowSpec], act: Act
    ) -> None:
        self._loose = loose
        self._layouts = layouts
        self._specs = specs
        groups = groupby(act.items, key=lambda item: item.number)
        self._items = {number: list(items) for number, items in groups}

    def lateness(self, number: int, step: int) -> int:
        """Return how many steps late a read in a step is."""
        return self._items[number][0].staleness

    def version(self, number: int) -> int:
        """Return the version of what is read."""
        return self._items[number][0].version

    def table(self, number: int, targets: Buffers, known: int) -> int:
        """Copy a whole table, unless it was known; return the bytes."""
        items, codec = self._items[number], self._loose.codecs[number]
        if not items[0].arrays:
            return 0
        if codec is None:
            sources: Sequence[Array] = items[0].arrays
        else:
            layout = self._layouts[self._loose.reads[number].source, -1]
            sources = leaves_of(layout, [item.arrays for item in items], codec)
        for source, target in zip(sources, targets, strict=True):
            target[...] = source
        return sum(a.nbytes for item in items for a in item.arrays)

    def rows(self, number: int, keys: Array, room: Room) -> tuple[Array, int]:
        """Return rows, shape (n, items), and the bytes of what a network carried."""
        (item,), codec = self._items[number], self._loose.codecs[number]
        moved = sum(a.nbytes for a in item.arrays)
        if codec is None:
            return item.arrays[0], moved
        source = self._loose.reads[number].source
        like = self._layouts.get((source, -1))
        spec = self._specs.get(source)
        if spec is not None:
            shape, dtype = (len(keys), spec.items), spec.dtype
        else:
            assert like is not None
            (leaf,) = like.leaves
            shape, dtype = (len(keys), math.prod(leaf.shape[1:])), like.dtypes[leaf.buffer]
        return decoded_as(codec, item.arrays, shape, dtype), moved

    def answer(self, number: int, output: int, targets: Buffers) -> float | None:
        """Copy what a gate came to; return its examples: 0, it is empty; None, it has none."""
        item = self._items[number][output]
        for source, target in zip(item.arrays, targets if item.arrays else (), strict=True):
            target[...] = source
        return None if math.isnan(item.examples) else item.examples
